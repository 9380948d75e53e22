import contextlib
import io

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.quantization import PCM, QAM, Affine, Binary, Codebook, Pairs, Ternary
from sgdap.weights import working


@pytest.fixture(autouse=True)
def small(monkeypatch):
    keras.utils.set_random_seed(0)
    monkeypatch.setattr(working, "STEPS", 5)
    monkeypatch.setattr(working, "LAST", 10)


def mlp(**last):
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, "relu", name="first"),
            layers.Dense(16, "relu", name="second"),
            layers.Dense(4, name="end", **{"activation": "softmax", **last}),
        ]
    )


def points(count=256):
    return np.random.default_rng(0).normal(size=(count, 8)).astype("float32")


def images(count=24):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 4)).astype("float32")


def kernels_of(model):
    names = ("kernel", "embeddings")
    return {w.path: w.numpy() for w in model.weights if w.name.endswith(names)}


def apart(model, other, x):
    return float(np.abs(model.predict(x, verbose=0) - other.predict(x, verbose=0)).mean())


def assert_on_lattice(kernel, levels):
    """Every output has so many values at most, in the last axis' order of outputs."""
    for channel in kernel.reshape(-1, kernel.shape[-1]).T:
        assert len(np.unique(channel)) <= levels


# What comes out


@pytest.mark.parametrize("compensate", [True, "layerwise", False])
@pytest.mark.parametrize(
    "scheme", ["int4", "ternary", "quaternary", "mu_law", Affine(bits=3, symmetric=False)], ids=str
)
def test_kernels_lie_on_their_lattices_and_the_model_is_left_alone(scheme, compensate):
    model = mlp()
    before = model.get_weights()
    made = sgdap.quantize(model, points(), scheme, compensate=compensate)
    for kernel in kernels_of(made).values():
        assert_on_lattice(kernel, sgdap.quantization.get_scheme(scheme).levels)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("compensate", [True, "layerwise"])
def test_integers_times_a_scale_to_the_bit(compensate):
    made = sgdap.quantize(mlp(), points(), "int3", compensate=compensate)
    for kernel in kernels_of(made).values():
        for channel in kernel.T:
            steps = np.diff(np.unique(np.abs(np.concatenate([channel, [0.0]]))))
            scale = np.float32(steps.min())
            whole = np.round(channel / scale)
            assert np.abs(whole).max() <= 3
            np.testing.assert_array_equal(whole.astype("float32") * scale, channel)


def test_without_compensation_it_is_the_scheme_itself():
    model = mlp()
    made = sgdap.quantize(model, None, "int4", compensate=False)
    for old, new in zip(kernels_of(model).values(), kernels_of(made).values(), strict=True):
        scheme = sgdap.quantization.get_scheme("int4")
        np.testing.assert_array_equal(new, scheme.quantize(old).dequantize())


def test_it_is_a_plain_model_compiled_alike(tmp_path):
    model = mlp()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = points(), np.random.default_rng(0).integers(0, 4, 256)
    made = sgdap.quantize(model, (x, y), "int4")
    assert type(made) is keras.Sequential
    assert made.evaluate(x, y, verbose=0, return_dict=True).keys() == {"accuracy", "loss"}
    made.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    for old, new in zip(made.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "scheme", ["int3", "ternary", Codebook(size=3), QAM(size=9), Pairs(size=6)], ids=str
)
def test_each_compensation_brings_the_answers_nearer(scheme):
    model, x = mlp(activation=None), points()
    plain, rows, whole = (
        apart(model, sgdap.quantize(model, x, scheme, compensate=own), x)
        for own in (False, "layerwise", True)
    )
    assert rows < 0.95 * plain
    assert whole < rows


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_the_unit_of_an_output_changes_nothing(unit):
    x, gaps = points(), []
    for own in (1.0, unit):
        model = mlp(activation=None)
        model.layers[-1].kernel.assign(model.layers[-1].kernel * own)
        made = sgdap.quantize(model, x, "ternary", layers=["first", "second", "end"])
        gaps.append(apart(model, made, x) / own)
        keras.utils.set_random_seed(0)
    assert gaps[1] == pytest.approx(gaps[0], rel=0.1)


def test_labels_are_learnt_where_there_are_some():
    model = mlp()
    model.compile("adam", "sparse_categorical_crossentropy")
    x = points(512)
    y = (x[:, 0] > 0) + 2 * (x[:, 1] > 0)
    losses = [sgdap.quantize(model, data, "int4").evaluate(x, y, verbose=0) for data in (x, (x, y))]
    assert losses[1] < 0.7 * losses[0]


def test_the_mean_output_stays_where_a_bias_makes_up_for_it():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(4)(inputs))
    x = points() + 3
    made = sgdap.quantize(model, x, "ternary", compensate="layerwise")
    means = [own.predict(x, verbose=0).mean(axis=0) for own in (model, made)]
    np.testing.assert_allclose(*means, atol=1e-4)


def test_powers_of_two_stay_powers_of_two():
    made = sgdap.quantize(mlp(), points(), Affine(bits=4, power_of_two=True))
    for kernel in kernels_of(made).values():
        for channel in kernel.T:
            steps = np.log2(np.abs(channel[channel != 0]).min())
            whole = channel / 2.0 ** np.floor(steps - 3)
            np.testing.assert_array_equal(whole, np.round(whole))


def test_one_scale_for_all_of_a_grouped_kernel():
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, layers.Conv2D(6, 3, groups=2)(inputs))
    made = sgdap.quantize(model, images(), Ternary(per="tensor"))
    assert len(np.unique(np.abs(made.layers[1].kernel))) == 2


@pytest.mark.parametrize("compensate", [True, "layerwise", False])
@pytest.mark.parametrize("scheme", ["int4", "ternary", Affine(bits=4, symmetric=False)], ids=str)
def test_zeros_of_a_sparse_model_stay(scheme, compensate):
    sparse = sgdap.sparsify(mlp(), points(), 0.6, reconstruction="layerwise")
    made = sgdap.quantize(sparse, points(), scheme, compensate=compensate)
    for old, new in zip(kernels_of(sparse).values(), kernels_of(made).values(), strict=True):
        assert (new[old == 0] == 0).all()


@pytest.mark.parametrize(
    ("per", "compensate"),
    [("tensor", True), ("tensor", False), ("channel", "layerwise"), (6, "layerwise")],
)
def test_pairs_of_each_kernel_take_few_points(per, compensate):
    made = sgdap.quantize(mlp(), points(), Pairs(size=3, per=per), compensate=compensate)
    for kernel in kernels_of(made).values():
        pairs = kernel.reshape(-1, 2, kernel.shape[1]).transpose(2, 0, 1)  # of each output
        units = {"tensor": [pairs], "channel": pairs}.get(per, [pairs[:, :3]])
        for unit in units:
            most = 3 if per != 6 else 3 * len(pairs)
            assert len(np.unique(unit.reshape(-1, 2), axis=0)) <= most


@pytest.mark.parametrize("name", ["grouped", "depthwise", "transposed"])
def test_kernels_of_all_kinds_take_pairs(name):
    inputs = keras.Input((8, 8, 4))
    x = LAYERS[name]()(layers.Conv2D(4, 1, name="stem")(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    scheme, data = Pairs(size=6), images()
    plain, made = (
        sgdap.quantize(model, data, scheme, compensate=own) for own in (False, "layerwise")
    )
    for kernel, own in kernels_of(made).items():
        assert len(np.unique(own)) <= 12, kernel
    assert apart(model, made, data) < apart(model, plain, data)


def test_a_grid_with_a_point_at_zero_keeps_zeros():
    model = mlp()
    for layer in model.layers:
        kernel = layer.kernel.numpy()
        layer.kernel.assign(np.where(np.abs(kernel) < 0.2, 0, kernel))
    made = sgdap.quantize(model, points(), QAM(size=25))
    for old, new in zip(kernels_of(model).values(), kernels_of(made).values(), strict=True):
        assert (new[old == 0] == 0).all()


# Which kernels


LAYERS = {
    "conv": lambda: layers.Conv2D(6, 3),
    "strided, dilated": lambda: layers.Conv2D(6, 3, strides=2, padding="same"),
    "grouped": lambda: layers.Conv2D(6, 3, groups=2),
    "depthwise": lambda: layers.DepthwiseConv2D(3),
    "separable": lambda: layers.SeparableConv2D(6, 3),
    "transposed": lambda: layers.Conv2DTranspose(6, 3),
    "einsum": lambda: layers.EinsumDense("abcd,de->abce", (8, 8, 5), bias_axes="e"),
    "attention": lambda: Attention(),
    "recurrent": lambda: keras.Sequential(  # few steps: each takes as long as another layer
        [layers.AveragePooling2D((4, 3)), layers.TimeDistributed(layers.LSTM(5))]
    ),
    "normalised": lambda: layers.UnitNormalization(),
}


class Attention(layers.Layer):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.inner = layers.MultiHeadAttention(2, 3)

    def build(self, shape):
        self.inner.build(shape, shape)

    def call(self, x):
        return self.inner(x, x)


@pytest.mark.parametrize("name", LAYERS)
def test_kernels_of_all_kinds_come_nearer_than_by_rounding(name):
    inputs = keras.Input((8, 8, 4))
    x = LAYERS[name]()(layers.Conv2D(4, 1, name="stem")(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    data = images()
    plain, made = (sgdap.quantize(model, data, "int3", compensate=own) for own in (False, True))
    assert all(len(np.unique(own)) < own.size for own in kernels_of(made).values() if own.size > 40)
    assert apart(model, made, data) < apart(model, plain, data)


def test_embeddings_have_levels_for_each_feature():
    model = keras.Sequential(
        [keras.Input((5,), dtype="int32"), layers.Embedding(30, 6), layers.Flatten()]
    )
    model.add(layers.Dense(3))
    made = sgdap.quantize(model, np.random.default_rng(0).integers(0, 30, (64, 5)), "int2")
    assert_on_lattice(made.layers[0].embeddings.numpy(), 3)


def test_layers_and_overrides_choose():
    model, x = mlp(), points()
    made = sgdap.quantize(
        model, x, "int4", layers=["first", "end"], overrides={"end": "binary"}, compensate=True
    )
    first, second, end = kernels_of(made).values()
    assert_on_lattice(first, 15)
    assert_on_lattice(end, 2)
    np.testing.assert_array_equal(second, model.layers[1].kernel)
    np.testing.assert_array_equal(made.layers[1].bias, model.layers[1].bias)
    made = sgdap.quantize(model, x, Binary(), overrides={"second": None})
    np.testing.assert_array_equal(made.layers[1].kernel, model.layers[1].kernel)


def test_a_model_nested_in_a_model():
    inner = mlp(activation="relu")
    model = keras.Sequential([keras.Input((8,)), inner, layers.Dense(3)])
    made = sgdap.quantize(model, points(), "ternary")
    assert len(kernels_of(made)) == 4
    for kernel in kernels_of(made).values():
        assert_on_lattice(kernel, 3)


def test_mixed_precision_and_batches_of_a_fixed_size():
    inputs = keras.Input(batch_shape=(16, 8))
    x = layers.Dense(8, "relu", dtype="mixed_bfloat16")(inputs)
    model = keras.Model(inputs, layers.Dense(4, "softmax", dtype="float32")(x))
    made = sgdap.quantize(model, points(64), "int4")
    for kernel in kernels_of(made).values():
        assert_on_lattice(kernel, 15)


def test_the_table_names_kernels_and_bits():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        sgdap.quantize(mlp(), points(), "int4", verbose=1)
    assert "second/kernel" in out.getvalue()
    assert "6.00" in out.getvalue()  # 16 codes of 4 bits and a scale of 32


def test_random_numbers_are_left_as_they_were():
    keras.utils.set_random_seed(3)
    model = mlp()
    wanted = keras.random.normal((2,))
    keras.utils.set_random_seed(3)
    model = mlp()
    sgdap.quantize(model, points(), "int4")
    np.testing.assert_array_equal(keras.random.normal((2,)), wanted)


# A budget


@pytest.mark.parametrize("share", [0.3, 0.24, 0.5])
def test_a_budget_is_met_and_spent(share):
    model, x = mlp(), points()
    made = sgdap.quantize(model, x, sgdap.Budget(bytes=share), compensate="layerwise")
    used = 4 * sum(w.size for w in made.get_weights()[1::2])
    for kernel in kernels_of(made).values():
        most = max(len(np.unique(np.abs(channel))) for channel in kernel.T)
        bits = next(b for b in range(2, 9) if most <= 2 ** (b - 1))
        used += (bits * kernel.size + 32 * kernel.shape[1]) / 8
    whole = 4 * model.count_params()
    assert used <= share * whole
    if share == 0.24:
        assert used > 0.8 * share * whole


def test_bits_go_where_the_loss_needs_them():
    inputs = keras.Input((40,))
    strong, weak = layers.Dense(16, "relu", name="strong"), layers.Dense(16, "relu", name="weak")
    x = layers.Concatenate()([strong(inputs), weak(inputs)])
    model = keras.Model(inputs, layers.Dense(1, name="end")(x))
    x_40 = np.random.default_rng(0).normal(size=(256, 40)).astype("float32")
    end = model.get_layer("end").kernel
    end.assign(np.concatenate([np.asarray(end[:16]), np.asarray(end[16:]) / 100]))
    made = sgdap.quantize(model, x_40, sgdap.Budget(bytes=0.2), compensate="layerwise")
    levels = {
        name: np.mean([len(np.unique(c)) for c in made.get_layer(name).kernel.numpy().T])
        for name in ("strong", "weak")
    }
    assert levels["strong"] > 1.5 * levels["weak"]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"scheme": "int1"}, ValueError, "No scheme is called"),
        ({"scheme": 4}, TypeError, "scheme must be a name"),
        ({"data": None}, ValueError, "need calibration data"),
        ({"compensate": "all"}, ValueError, "compensate must be"),
        ({"layers": ["third"]}, ValueError, "No layer with a kernel is called 'third'"),
        ({"layers": "first"}, TypeError, "layers must be a list"),
        ({"overrides": {"*": None}}, ValueError, "Nothing to quantize"),
        ({"overrides": ["first"]}, TypeError, "overrides must be a dict"),
        ({"overrides": {"first": "int0"}}, ValueError, "No scheme is called 'int0'"),
        ({"data": np.zeros((4, 7), "float32")}, ValueError, "shape"),
        ({"scheme": sgdap.Budget(flops=0.5)}, ValueError, "Fewer bits save bytes"),
        ({"scheme": sgdap.Budget(bytes=0.05)}, ValueError, "can't be met: with 2 bits"),
        (
            {"scheme": sgdap.Budget(bytes=0.3), "overrides": {"end": "int8"}},
            ValueError,
            "overrides may only leave some",
        ),
        ({"scheme": sgdap.Budget(bytes=0.3), "data": None}, ValueError, "need calibration data"),
        ({"samples": 0}, ValueError, "samples must be"),
    ],
)
def test_bad_input_is_refused_in_words(arguments, error, words):
    own = {"data": points(), "scheme": "int4", **arguments}
    with pytest.raises(error, match=words):
        sgdap.quantize(mlp(), own.pop("data"), own.pop("scheme"), **own)


def test_what_can_not_hold_levels_is_refused():
    half = mlp(dtype="float16")
    with pytest.raises(ValueError, match="float16 variable, which can't hold levels"):
        sgdap.quantize(half, points(), "int4")
    broken = mlp()
    broken.layers[1].kernel.assign(np.full((16, 16), np.nan))
    with pytest.raises(ValueError, match="not finite"):
        sgdap.quantize(broken, points(), "int4")
    integers = mlp()
    integers.layers[1].quantize("int8")
    with pytest.raises(ValueError, match="quantized to int8"):
        sgdap.quantize(integers, points(), PCM(bits=4))
