import functools
import logging
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.sparsity import one_shot
from sgdap.weights import working
from tests.models import functions_compiled

GENERATOR = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    keras.utils.set_random_seed(0)
    monkeypatch.setattr(working, "STEPS", 10)
    monkeypatch.setattr(working, "LAST", 15)


def mlp(constraint=None, **last):
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, "relu", kernel_constraint=constraint, name="first"),
            layers.Dense(16, "relu", name="second"),
            layers.Dense(4, name="end", **{"activation": "softmax", **last}),
        ]
    )


def clusters(count=256):
    """Points around four centres, and the centre of each."""
    y = GENERATOR.integers(0, 4, count)
    centres = np.random.default_rng(7).normal(size=(4, 8))
    return (centres[y] + 0.3 * GENERATOR.normal(size=(count, 8))).astype("float32"), y


def trained():
    model = mlp()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.set_weights(trained_weights())
    return model


@functools.cache
def trained_weights():
    model = mlp()
    model.compile("adam", "sparse_categorical_crossentropy")
    with functions_compiled():
        model.fit(*clusters(512), epochs=15, batch_size=64, verbose=0)
    return model.get_weights()


def kernels_of(model):
    return [w.numpy() for w in model.weights if not w.name.endswith("bias")]


def share_of_zeros(model):
    return sum((w == 0).sum() for w in kernels_of(model)) / sum(w.size for w in kernels_of(model))


def apart(model, other, x):
    return float(np.abs(model.predict(x, verbose=0) - other.predict(x, verbose=0)).mean())


# What comes out


@pytest.mark.parametrize(
    ("guidance", "reconstruction"),
    [
        *((guidance, False) for guidance in one_shot.GUIDANCES),
        ("second_order", True),
        ("magnitude", True),
        ("random", "layerwise"),
    ],
)
def test_the_share_of_zeros_is_met_and_the_model_is_left_alone(guidance, reconstruction):
    model = mlp()
    before = model.get_weights()
    made = sgdap.sparsify(
        model, clusters()[0], 0.8, guidance=guidance, reconstruction=reconstruction
    )
    assert sum((w == 0).sum() for w in kernels_of(made)) == math.ceil(0.8 * (128 + 256 + 64))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_it_is_a_plain_model_compiled_alike(tmp_path):
    model = trained()
    made = sgdap.sparsify(model, clusters(), 0.5, reconstruction=False)
    assert type(made) is keras.Sequential
    assert made.evaluate(*clusters(), verbose=0, return_dict=True).keys() == {"accuracy", "loss"}
    made.save(tmp_path / "sparse.keras")
    loaded = keras.models.load_model(tmp_path / "sparse.keras")
    assert share_of_zeros(loaded) == share_of_zeros(made)


def test_nothing_changes_where_nothing_leaves():
    model = trained()
    x, _ = clusters()
    assert apart(model, sgdap.sparsify(model, x, 0.0), x) < 1e-6


def test_weights_without_moving_are_the_old_ones_or_zero():
    model = trained()
    made = sgdap.sparsify(model, clusters()[0], 0.7, reconstruction=False)
    for old, new in zip(model.get_weights(), made.get_weights(), strict=True):
        np.testing.assert_array_equal(new[new != 0], old[new != 0])


def test_magnitude_without_moving_is_the_classical_rule():
    model = trained()
    made = sgdap.sparsify(
        model, clusters()[0], None, threshold=0.2, guidance="magnitude", reconstruction=False
    )
    for old, new in zip(kernels_of(model), kernels_of(made), strict=True):
        np.testing.assert_array_equal(new, np.where(np.abs(old) < 0.2, 0, old))


def test_each_way_to_move_the_weights_comes_nearer():
    model = trained()
    x, _ = clusters(1024)
    found = [
        apart(model, sgdap.sparsify(model, x, 0.8, reconstruction=way), x)
        for way in (False, "layerwise", True)
    ]
    assert found[2] < found[1] < found[0]


def test_labels_count_where_they_are_given():
    model = mlp()
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    made = sgdap.sparsify(model, clusters(1024), 0.5)
    assert made.evaluate(*clusters(), verbose=0)[1] > 0.9
    without = sgdap.sparsify(model, clusters(1024)[0], 0.5)
    assert without.evaluate(*clusters(), verbose=0)[1] < 0.7


def test_superfluous_weights_are_found():
    """Half of the inputs are doubles: their weights can leave without a loss."""
    model = mlp(activation="linear")
    x = clusters(512)[0]
    x[:, 4:] = x[:, :4]
    made = sgdap.sparsify(model, x, None, threshold=1e-5, reconstruction="layerwise")
    assert (made.get_weights()[0] == 0).sum() >= 64
    assert apart(model, made, x) < 1e-2


@pytest.mark.filterwarnings("ignore:All weights of")
def test_dead_inputs_of_unlike_scale_break_nothing():
    x = clusters(64)[0] * np.array([1e6, 1e-6, 1, 0, 0, 1, 1, 1], "float32")
    made = sgdap.sparsify(mlp(), x, 0.9)
    assert all(np.isfinite(w).all() for w in made.get_weights())


# Layers


def of_layers(*stack, shape):
    return keras.Sequential([keras.Input(shape), *stack, layers.Flatten(), layers.Dense(4)])


KINDS = {
    "convolution": (layers.Conv2D(8, 3, padding="same"), (6, 6, 4)),
    "grouped": (layers.Conv2D(8, 3, groups=2), (6, 6, 4)),
    "depthwise": (layers.DepthwiseConv2D(2, depth_multiplier=2), (6, 6, 4)),
    "separable": (layers.SeparableConv2D(8, 2), (6, 6, 4)),
    "transposed": (layers.Conv2DTranspose(8, 2, strides=2), (4, 4, 4)),
    "volume": (layers.Conv3D(8, 2), (4, 4, 4, 4)),
    "einsum": (layers.EinsumDense("abc,cde->abde", (5, 2, 4)), (5, 4)),
    "lstm": (layers.LSTM(8, return_sequences=True), (5, 4)),
    "both": (layers.Bidirectional(layers.GRU(8)), (5, 4)),
    "steps": (layers.TimeDistributed(layers.Dense(8)), (5, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_all_layers_get_their_zeros(kind):
    layer, shape = KINDS[kind]
    model = of_layers(layer.__class__.from_config(layer.get_config()), shape=shape)
    x = GENERATOR.normal(size=(128, *shape)).astype("float32")
    made = sgdap.sparsify(model, x, 0.5, reconstruction="layerwise")
    assert share_of_zeros(made) == pytest.approx(0.5, abs=0.02)
    bare = sgdap.sparsify(model, x, 0.5, guidance="magnitude", reconstruction=False)
    assert apart(model, made, x) < apart(model, bare, x)


@pytest.mark.filterwarnings("ignore:All weights of")
def test_attention_and_tables_get_their_zeros():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, name="table")(tokens)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(tokens, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))
    data = GENERATOR.integers(0, 20, (256, 6)).astype("int32")
    made = sgdap.sparsify(model, data, 0.5)
    assert share_of_zeros(made) == pytest.approx(0.5, abs=0.01)
    bare = sgdap.sparsify(model, data, 0.5, guidance="random", reconstruction=False)
    assert apart(model, made, data) < 0.5 * apart(model, bare, data)


@pytest.mark.parametrize("pattern", ["1:4", "2:4"])
def test_n_of_m_is_exact_in_every_row_of_the_reduction_axis(pattern):
    n = int(pattern[0])
    model = trained()
    made = sgdap.sparsify(model, clusters(), 1 - n / 4, pattern=pattern, reconstruction="layerwise")
    for kernel in kernels_of(made):
        assert ((kernel.reshape(-1, 4, kernel.shape[-1]) != 0).sum(axis=1) == n).all()


def test_blocks_are_zero_as_a_whole():
    made = sgdap.sparsify(
        trained(), clusters(), 0.75, pattern="block 4x2", reconstruction="layerwise"
    )
    for kernel in kernels_of(made):
        blocks = kernel.reshape(kernel.shape[0] // 4, 4, -1, 2) != 0
        assert (blocks.all(axis=(1, 3)) == blocks.any(axis=(1, 3))).all()
    assert share_of_zeros(made) == pytest.approx(0.75, abs=0.01)


def test_large_kernels_are_swept(monkeypatch):
    monkeypatch.setattr("sgdap.sparsity.surgeon.SCORED", 1.0)
    monkeypatch.setattr("sgdap.sparsity.surgeon.REFITTED", 1.0)
    model = trained()
    x, _ = clusters(1024)
    made = sgdap.sparsify(model, x, 0.7, reconstruction="layerwise")
    bare = sgdap.sparsify(model, x, 0.7, reconstruction=False)
    assert share_of_zeros(made) == pytest.approx(0.7, abs=0.01)
    assert apart(model, made, x) < 0.9 * apart(model, bare, x)


def test_models_too_large_for_a_step_say_so(monkeypatch, capsys):
    monkeypatch.setattr("sgdap.weights.joint.WORK", 1.0)
    sgdap.sparsify(trained(), clusters(), 0.7, verbose=1)
    assert "kernel by kernel only" in " ".join(capsys.readouterr().out.split())


# What is chosen


def test_layers_and_overrides_choose_and_others_stay():
    model = trained()
    made = sgdap.sparsify(
        model, clusters(64), 0.6, layers=["first", "second"], overrides={"first": 0.25}
    )
    first, second, end = kernels_of(made)
    assert (first == 0).mean() == 0.25
    assert (second == 0).mean() == pytest.approx(0.6, abs=0.01)
    np.testing.assert_array_equal(end, kernels_of(model)[2])


def test_a_budget_counts_what_is_not_zero():
    model = trained()
    total = model.count_params()
    made = sgdap.sparsify(model, clusters(), sgdap.Budget(params=0.4), reconstruction=False)
    left = sum((w != 0).sum() for w in made.get_weights())
    assert left <= 0.4 * total
    stored = sgdap.sparsify(model, clusters(), sgdap.Budget(bytes=0.4), reconstruction=False)
    bits = sum(w.size for w in kernels_of(stored)) / 8
    size = bits + 4 * (total - sum((w == 0).sum() for w in kernels_of(stored)))
    assert 0.39 * 4 * total < size <= 0.4 * 4 * total


def test_biases_may_leave_too():
    model = trained()
    made = sgdap.sparsify(
        model, clusters(), 0.9, biases=True, guidance="magnitude", reconstruction=False
    )
    weights = made.get_weights()
    assert sum((w == 0).sum() for w in weights) == math.ceil(0.9 * sum(w.size for w in weights))


def test_weights_under_a_constraint_are_not_moved():
    model = mlp(keras.constraints.NonNeg())
    model.layers[0].kernel.assign(np.abs(model.layers[0].kernel.numpy()))
    first = sgdap.sparsify(model, clusters()[0], 0.5).get_weights()[0]
    assert (first >= 0).all()
    assert np.isin(first, [0, *model.get_weights()[0].ravel()]).all()


def test_the_same_seed_makes_the_same_model():
    model, data = trained(), clusters()
    first, second = (sgdap.sparsify(model, data, 0.8, seed=3).get_weights() for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("make", [lambda x, y: (x, y), lambda x, y: iter([(x, y)])])
def test_data_come_in_any_form(make):
    model = trained()
    made = sgdap.sparsify(model, make(*clusters(64)), 0.5, reconstruction="layerwise")
    assert share_of_zeros(made) == 0.5


def test_datasets_are_read():
    data = tf.data.Dataset.from_tensor_slices(clusters()).batch(32)
    assert share_of_zeros(sgdap.sparsify(trained(), data, 0.5, reconstruction="layerwise")) == 0.5


def test_models_of_a_fixed_batch_size_are_run():
    model = keras.Sequential([keras.Input(batch_shape=(16, 8)), layers.Dense(6), layers.Dense(3)])
    made = sgdap.sparsify(model, clusters()[0], 0.5)
    assert share_of_zeros(made) == 0.5


def test_normalisation_follows():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, "softmax"),
        ]
    )
    x = GENERATOR.normal(size=(128, 6, 6, 3)).astype("float32")
    made = sgdap.sparsify(model, x, 0.6)
    names = [w.path.rpartition("/")[2] for w in made.weights]
    for name, old, new in zip(names, model.get_weights(), made.get_weights(), strict=True):
        if name.startswith("moving"):
            np.testing.assert_array_equal(old, new)
    bare = sgdap.sparsify(model, x, 0.6, reconstruction=False)
    assert apart(model, made, x) < apart(model, bare, x)


@pytest.mark.parametrize("pattern", ["unstructured", "block 4x1"])
def test_zeros_are_no_fewer_than_asked_for(pattern):
    model, x = mlp(), clusters(64)[0]
    for allocation in ("global", "uniform"):
        made = sgdap.sparsify(
            model, x, 0.9, pattern=pattern, allocation=allocation, reconstruction=False
        )
        assert 0.9 <= share_of_zeros(made) < 0.93
    budget = sgdap.Budget(params=0.5)
    made = sgdap.sparsify(model, x, budget, pattern=pattern, reconstruction=False)
    assert sum((w != 0).sum() for w in made.get_weights()) <= 0.5 * model.count_params()


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16"])
@pytest.mark.parametrize("labels", [True, False])
def test_models_of_half_precision_are_moved_in_full(policy, labels):
    plain = trained()
    half = keras.models.clone_model(
        plain,
        clone_function=lambda layer: type(layer).from_config(
            layer.get_config() | {"dtype": policy}
        ),
    )
    half.set_weights(plain.get_weights())
    half.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = clusters(512)
    made = sgdap.sparsify(half, (x, y) if labels else x, 0.7)
    assert {layer.dtype_policy.name for layer in made.layers} == {policy}
    assert made.evaluate(x, y, verbose=0)[1] > 0.9


def test_a_threshold_is_of_the_weights_that_were_given():
    model = trained()
    made = sgdap.sparsify(model, clusters(), None, threshold=0.2, guidance="magnitude")
    for old, new in zip(kernels_of(model), kernels_of(made), strict=True):
        np.testing.assert_array_equal(new == 0, np.abs(old) < 0.2)


@pytest.mark.parametrize("options", [{"sparsity": 0}, {"sparsity": None, "threshold": 0.0}])
def test_no_weight_moves_where_none_leaves(options):
    model = mlp()
    model.compile(loss="sparse_categorical_crossentropy")
    made = sgdap.sparsify(model, clusters(), **options)
    for old, new in zip(model.get_weights(), made.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_only_layers_that_may_have_zeros_change():
    model = trained()
    made = sgdap.sparsify(model, clusters(), 0.8, layers=["second"])
    changed = [
        variable.path.split("/", 1)[1]
        for variable, old, new in zip(
            model.weights, model.get_weights(), made.get_weights(), strict=True
        )
        if (old != new).any()
    ]
    assert changed == ["second/kernel", "second/bias"]


def test_a_kernel_without_weights_is_named():
    model = trained()
    model.layers[1].kernel.assign(model.layers[1].kernel.numpy() * 1e-3)
    with pytest.warns(UserWarning, match="All weights of 'second/kernel' are zero"):
        sgdap.sparsify(model, clusters()[0], 0.7, guidance="magnitude", reconstruction=False)


def test_the_table_has_no_empty_column(capsys):
    sgdap.sparsify(trained(), clusters()[0], 0.5, reconstruction=False, verbose=1)
    heading = next(line for line in capsys.readouterr().out.splitlines() if "weights " in line)
    assert all(cell.strip() for cell in heading.strip("┃").split("┃"))


def test_keras_draws_what_it_would_have_drawn():
    model = mlp()
    keras.utils.set_random_seed(3)
    keras.random.normal((1,))
    expected = float(keras.random.normal((1,))[0])
    keras.utils.set_random_seed(3)
    keras.random.normal((1,))
    sgdap.sparsify(model, clusters(64)[0], 0.5)
    assert float(keras.random.normal((1,))[0]) == expected


@pytest.mark.compiled
def test_calls_in_a_row_bring_no_warning_of_tracing(caplog):
    logging.getLogger("tensorflow").propagate = True
    model, (x, y) = trained(), clusters(70)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            sgdap.sparsify(model, x, None, threshold=0.1, guidance="magnitude")
            sgdap.sparsify(model, (x, y), None, threshold=0.1, guidance="magnitude")
    assert not [r for r in caplog.records if "retracing" in r.getMessage()]


# Refusals


WRONG_TARGETS = {
    "class numbers from 0 to 3. Received: 4, 6, 9": lambda x, y: (x, np.where(y == 1, 4, y * 3)),
    "can't be computed of these targets": lambda x, y: (x, np.eye(4)[y]),
    "NaN or infinit": lambda x, y: (x, np.where(y == 1, np.nan, y)),
    "finite, not negative and not all zero.*NaN": lambda x, y: (x, y, np.full(len(y), np.nan)),
    "not all zero.*zeros only": lambda x, y: (x, y, np.zeros(len(y))),
    "not all zero.*below zero": lambda x, y: (x, y, np.where(y == 1, -1.0, 1.0)),
}


@pytest.mark.parametrize("words", WRONG_TARGETS)
def test_targets_and_sample_weights_that_do_not_fit_are_refused(words):
    model, data = trained(), WRONG_TARGETS[words](*clusters(64))
    before = model.get_weights()
    with pytest.raises(ValueError, match=words):
        sgdap.sparsify(model, data, 0.5)
    with pytest.raises(ValueError, match=words):
        sgdap.distill(model, mlp(), data, label_weight=0.5, epochs=1)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_model_without_kernels_is_refused_in_words():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
    with pytest.raises(ValueError, match="There are none."):
        sgdap.sparsify(model, np.zeros((8, 4), "float32"), 0.5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((1.0,), {}, ValueError, "up to below 1"),
        ((-0.1,), {}, ValueError, "up to below 1"),
        (("half",), {}, TypeError, "share of zeros or a sgdap.Budget"),
        ((None,), {}, ValueError, "either sparsity or threshold"),
        ((0.5,), {"threshold": 0.1}, ValueError, "either sparsity or threshold"),
        ((0.5,), {"pattern": "filter"}, ValueError, "pattern must be"),
        ((0.25,), {"pattern": "2:4"}, ValueError, "Ask for 0.5 or more"),
        ((0.5,), {"pattern": "2:3"}, ValueError, "'first/kernel': .* no multiple of 3"),
        ((0.75,), {"pattern": "1:4", "overrides": {"end": 0.5}}, ValueError, "'end/kernel': 0.5}"),
        ((0.5,), {"layers": ["first"], "overrides": {"end": 0.5}}, ValueError, "leaves out"),
        ((None,), {"threshold": -0.1}, ValueError, "not be negative"),
        ((None,), {"threshold": 1e9}, ValueError, "none would stay. The highest score is"),
        ((0.5,), {"verbose": "auto"}, ValueError, "verbose must be"),
        ((0.5,), {"verbose": 5}, ValueError, "verbose must be"),
        ((0.5,), {"memory_limit": 10}, ValueError, "what 3 kernels read"),
        ((None,), {"pattern": "2:4", "threshold": 1.0}, ValueError, "Pass sparsity=0.5"),
        ((0.5,), {"guidance": "lasso"}, ValueError, "guidance must be"),
        ((0.5,), {"allocation": "best"}, ValueError, "allocation must be"),
        ((0.5,), {"reconstruction": "all"}, ValueError, "reconstruction must be"),
        ((sgdap.Budget(flops=0.5),), {}, ValueError, "save no FLOPs"),
        ((sgdap.Budget(params=10),), {}, ValueError, "can't be met: .* 36 params are left"),
        ((sgdap.Budget(bytes=0.01),), {}, ValueError, "can't be met: .* 200 bytes are left"),
        ((0.5,), {"layers": ["third"]}, ValueError, "No layer with a kernel"),
    ],
)
def test_bad_arguments_are_refused_in_words(arguments, options, error, words):
    with pytest.raises(error, match=words):
        sgdap.sparsify(mlp(), clusters()[0], *arguments, **options)


def test_an_axis_that_does_not_fit_stays_dense_where_the_user_says_so():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="odd"), layers.Dense(4)])
    x = clusters()[0][:, :6]
    with pytest.raises(ValueError, match="'odd/kernel': its reduction axis is 6 long"):
        sgdap.sparsify(model, x, 0.5, pattern="2:4")
    odd, end = kernels_of(
        sgdap.sparsify(model, x, 0.5, pattern="2:4", overrides={"odd": 0}, reconstruction=False)
    )
    np.testing.assert_array_equal(odd, kernels_of(model)[0])
    assert (end == 0).mean() == 0.5


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit model"):
        sgdap.sparsify(mlp(), np.zeros((8, 5), "float32"), 0.5)
