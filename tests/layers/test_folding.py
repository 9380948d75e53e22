"""Without its dynamic range activations a model computes the same, and needs no sgdap."""

import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

import sgdap
from sgdap.layers import DynamicRangeActivation, to_dra
from tests.models import STEPS, assemble, convnet, examples_of_models, outputs, randomise, samples
from tests.test_random_graphs import RECIPES

NOT_SMOOTH = {
    "reversible_embedding",
    "embedding",
    "ops_unary",
    "ops_any",
    "ops_where",
    "ops_compare",
    "ops_argmax",
    "ops_softmax",
    "unit_normalization",
}
"""Steps that make much of a small difference: they round, compare or divide by what can be 0."""

SMOOTH = st.lists(
    st.tuples(st.sampled_from(sorted(set(STEPS) - NOT_SMOOTH)), st.integers(0, 11)),
    min_size=2,
    max_size=8,
)


def growing(model: keras.Model) -> list[str]:
    return [x.name for x in model.layers if isinstance(x, DynamicRangeActivation)]


def grown(model: keras.Model, seed: int = 0) -> keras.Model:
    """The model with random growth rates and offsets, some negative, some 0."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, DynamicRangeActivation):
            size = layer.growth_rate.shape
            layer.growth_rate.assign(random.normal(0.5, 0.7, size) * (random.random(size) > 0.2))
            layer.offset.assign(random.normal(0, 0.5, size))
    return model


def assert_equal(one: np.ndarray, other: np.ndarray) -> None:
    """Within 1e-5 of the outputs' size."""
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1, np.abs(other).max()))


def assert_folds(model: keras.Model) -> keras.Model:
    """Folds a model without a rest and returns what comes out."""
    x = samples(model)
    before = outputs(model, x)
    folded = sgdap.fold(model)
    assert not growing(folded)
    assert_equal(outputs(folded, x), before)
    np.testing.assert_array_equal(outputs(model, x), before)
    return folded


def test_convnet_folds_through_batch_normalisation():
    model = grown(to_dra(convnet()))
    folded = assert_folds(model)
    assert [type(x) for x in folded.layers[1:]] == [
        layers.Conv2D,
        layers.BatchNormalization,
        layers.ReLU,
        layers.MaxPooling2D,
        layers.Conv2D,
        layers.Activation,
        layers.Flatten,
        layers.Dense,
        layers.Activation,
        layers.Dropout,
        layers.Dense,
    ]


@pytest.mark.compiled  # grouped convolutions need XLA on CPUs
@pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning")
@examples_of_models
@given(st.integers(0, 3), SMOOTH, st.integers(0, 5))
def test_random_models_fold_exactly(spatial, recipe, seed):
    model = assemble(spatial, recipe)
    try:
        model = grown(to_dra(model), seed)
    except ValueError:
        return  # no activation in it
    x = samples(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folded = sgdap.fold(model)
    said = [str(w.message) for w in caught if "stays a DynamicRangeActivation" in str(w.message)]
    assert len(said) == len(growing(folded))
    assert_equal(outputs(folded, x), outputs(model, x))


def normalisations(model):
    return [x for x in model._flatten_layers() if isinstance(x, layers.BatchNormalization)]


@pytest.mark.compiled  # grouped convolutions need XLA on CPUs
@pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning")
@pytest.mark.filterwarnings("ignore:.* stays a DynamicRangeActivation:UserWarning")
@examples_of_models
@given(st.integers(0, 3), RECIPES)
def test_random_models_predict_the_same_without_normalisations(spatial, recipe):
    model = assemble(spatial, recipe)
    x = samples(model)
    folded = sgdap.fold(model, batch_normalization=True)
    assert len(normalisations(folded)) <= len(normalisations(model))
    assert_equal(outputs(folded, x), outputs(model, x))


def test_every_normalisation_of_a_residual_network_leaves():
    model = randomise(keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3)))
    folded = sgdap.fold(model, batch_normalization=True)
    assert not normalisations(folded)
    x = samples(model, 2)
    np.testing.assert_allclose(outputs(folded, x), outputs(model, x), rtol=1e-3, atol=1e-5)


def test_activations_that_grow_leave_with_the_normalisations_before_them():
    model = grown(to_dra(convnet()))
    folded = sgdap.fold(model, batch_normalization=True)
    assert not growing(folded)
    assert not normalisations(folded)
    x = samples(model)
    assert_equal(outputs(folded, x), outputs(model, x))


def between(*parts):
    x = inputs = keras.Input((6,))
    for part in parts:
        x = part(x)
    return randomise(keras.Model(inputs, x))


STAY = {
    "by the batch": lambda: between(
        layers.Dense(4), lambda x: layers.BatchNormalization()(x, training=True)
    ),
    "before": lambda: between(layers.BatchNormalization(), layers.Dense(4)),
    "after an activation": lambda: between(layers.Dense(4, "relu"), layers.BatchNormalization()),
    "read twice": lambda: between(
        layers.Dense(4), lambda x: layers.Add()([x, layers.BatchNormalization()(x)])
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_normalisations_stay_where_nothing_can_take_them(name):
    model = STAY[name]()
    folded = sgdap.fold(model, batch_normalization=True)
    assert len(normalisations(folded)) == 1
    x = samples(model)
    assert_equal(outputs(folded, x), outputs(model, x))


def test_of_two_normalisations_in_a_row_one_leaves():
    model = between(layers.Dense(4), layers.BatchNormalization(), layers.BatchNormalization())
    folded = sgdap.fold(model, batch_normalization=True)
    assert len(normalisations(folded)) == 1
    x = samples(model)
    assert_equal(outputs(folded, x), outputs(model, x))


def test_the_option_is_true_or_false():
    with pytest.raises(ValueError, match="batch_normalization must be"):
        sgdap.fold(convnet(), batch_normalization="all")


PRODUCERS = {
    "dense": (0, lambda bias: layers.Dense(4, use_bias=bias)),
    "dense_on_positions": (1, lambda bias: layers.Dense(4, use_bias=bias)),
    "convolution": (2, lambda bias: layers.Conv2D(4, 2, use_bias=bias)),
    "grouped": (2, lambda bias: layers.Conv2D(4, 2, groups=2, use_bias=bias)),
    "transposed": (2, lambda bias: layers.Conv2DTranspose(4, 2, strides=2, use_bias=bias)),
    "transposed_1d": (1, lambda bias: layers.Conv1DTranspose(4, 2, use_bias=bias)),
    "depthwise": (2, lambda bias: layers.DepthwiseConv2D(2, depth_multiplier=3, use_bias=bias)),
    "separable": (2, lambda bias: layers.SeparableConv2D(4, 2, use_bias=bias)),
    "einsum": (
        1,
        lambda bias: layers.EinsumDense("abc,cd->abd", (7, 4), bias_axes="d" * bias or None),
    ),
    "einsum_of_heads": (
        1,
        lambda bias: layers.EinsumDense(
            "abc,chd->abhd", (7, 2, 4), bias_axes="hd" if bias else None
        ),
    ),
    "einsum_turned": (
        1,
        lambda bias: layers.EinsumDense("abc,dc->abd", (7, 4), bias_axes="d" if bias else None),
    ),
    "normalisation": (2, lambda bias: layers.BatchNormalization(center=bias, scale=bias)),
}


@pytest.mark.compiled  # grouped convolutions need XLA on CPUs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", PRODUCERS)
def test_each_producer_takes_growth_rates_and_offsets(name, bias):
    rank, make = PRODUCERS[name]
    x = keras.Input(((6,), (7, 3), (6, 6, 2))[rank])
    y = make(bias)(x)
    y = layers.Dense(2)(DynamicRangeActivation("silu", name="growing")(y))
    model = grown(randomise(keras.Model(x, y)))
    assert_folds(model)


def test_a_bias_is_added_only_where_an_offset_needs_one():
    x = keras.Input((6,))
    y = DynamicRangeActivation("relu", name="growing")(layers.Dense(4, use_bias=False, name="a")(x))
    model = grown(randomise(keras.Model(x, layers.Dense(2)(y))))
    assert assert_folds(model).get_layer("a").use_bias
    model.get_layer("growing").offset.assign(np.zeros(4))
    assert not assert_folds(model).get_layer("a").use_bias


def test_channels_first_is_folded_along_its_axis():
    x = keras.Input((3, 5))
    y = layers.Conv1D(5, 1, data_format="channels_first")(x)
    y = DynamicRangeActivation("tanh", channel_axis=1, name="first")(y)
    y = DynamicRangeActivation("tanh", channel_axis=2, name="second")(
        layers.Conv1D(5, 1, data_format="channels_first")(y)
    )
    model = grown(keras.Model(x, y))
    with pytest.warns(UserWarning, match="channel_axis=2 is not the axis of the channels"):
        folded = sgdap.fold(model)
    assert growing(folded) == ["second"]


def test_an_active_clip_stays_as_an_operation_of_keras(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(4),
            DynamicRangeActivation("silu", clip=0.3),
            layers.Dense(2),
        ]
    )
    folded = assert_folds(grown(randomise(model)))
    x = samples(model)
    inside = model.layers[0](x).numpy() + model.layers[1].offset.numpy()
    assert (np.abs(inside * model.layers[1].growth_rate.numpy()) > 0.3).any()
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(outputs(loaded, samples(model)), outputs(folded, samples(model)))


def kept(build) -> str:
    """Why the activation of a model stays."""
    x = keras.Input((4,))
    model = grown(randomise(keras.Model(x, build(x))))
    given = samples(model)
    with pytest.warns(UserWarning, match="'growing' of model .* stays") as caught:
        folded = sgdap.fold(model)
    assert growing(folded) == ["growing"]
    np.testing.assert_allclose(outputs(folded, given), outputs(model, given), atol=1e-6)
    return str(caught[0].message)


def activation():
    return DynamicRangeActivation("relu", name="growing")


def test_what_can_not_be_folded_stays_and_the_reason_is_said():
    def several_readers(x):
        y = layers.Dense(3, name="made")(x)
        return layers.Concatenate(name="both")([y, activation()(y)])

    assert "what 'made' makes is read by both too" in kept(several_readers)

    def model_output(x):
        y = layers.Dense(3, name="made")(x)
        return [y, activation()(y)]

    assert "read by the model's output too" in kept(model_output)
    assert "it reads an input of the model" in kept(activation())
    assert "follows 'sum' (of class Add)" in kept(
        lambda x: activation()(layers.Add(name="sum")([layers.Dense(3)(x), layers.Dense(3)(x)]))
    )
    assert "'made' (of class Dense) has an activation of its own" in kept(
        lambda x: activation()(layers.Dense(3, "tanh", name="made")(x))
    )
    assert "has an activity regularizer" in kept(
        lambda x: activation()(layers.Dense(3, activity_regularizer="l2")(x))
    )

    def several_makers(x):
        shared = activation()
        return layers.Add()(
            [shared(layers.Dense(3, name="a")(x)), shared(layers.Dense(3, name="b")(x))]
        )

    assert "it is called on what several layers make (a, b)" in kept(several_makers)

    def a_maker_used_without(x):
        made = layers.Dense(4, name="made")
        return layers.Add()([activation()(made(x)), layers.Dense(4, name="reader")(made(x))])

    assert "what 'made' makes is read by reader too" in kept(a_maker_used_without)


@keras.saving.register_keras_serializable(package="tests")
class Leaking(DynamicRangeActivation):
    def call(self, inputs, training=None):
        return super().call(inputs, training=training) + 0.1 * inputs


def test_an_activation_of_another_class_stays():
    why = kept(lambda x: Leaking("relu", name="growing")(layers.Dense(3)(x)))
    assert "its class Leaking may compute something else" in why


@pytest.mark.parametrize(
    "holder",
    [
        lambda: layers.TimeDistributed(DynamicRangeActivation("relu"), name="holder"),
        lambda: layers.Dense(3, activation=DynamicRangeActivation("relu"), name="holder"),
    ],
)
def test_an_activation_inside_another_layer_stays_and_it_is_said(holder):
    model = keras.Sequential([keras.Input((2, 4)), layers.Dense(3), holder(), layers.Dense(2)])
    given = samples(model)
    expected = outputs(model, given)
    with pytest.warns(UserWarning, match="'holder' of model .* stays .* it is inside a "):
        folded = sgdap.fold(model)
    np.testing.assert_allclose(outputs(folded, given), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [layers.ReLU, layers.LeakyReLU, layers.ELU])
def test_an_activation_layer_inside_is_saved_after_folding(kind, tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), kind(), layers.Dense(2)])
    folded = sgdap.fold(randomise(sgdap.layers.to_dra(model)))
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    x = samples(model)
    np.testing.assert_array_equal(outputs(loaded, x), outputs(folded, x))
    assert kind in map(type, loaded.layers)


def test_a_call_by_name_folds_with_its_clip():
    x = keras.Input((3,))
    y = DynamicRangeActivation("relu", clip=0.1)(inputs=layers.Dense(4)(x))
    model = keras.Model(x, layers.Dense(2)(y))
    given = samples(model)
    np.testing.assert_allclose(outputs(sgdap.fold(model), given), outputs(model, given), atol=1e-6)


def test_a_call_that_says_whether_it_trains_folds_with_its_clip():
    x = keras.Input((4,))
    y = DynamicRangeActivation("relu", clip=0.5)(layers.Dense(3)(x), training=True)
    assert_folds(grown(randomise(keras.Model(x, layers.Dense(2)(y)))))


def test_an_activation_that_never_grew_is_taken_out_wherever_it_stands():
    x = keras.Input((4,))
    y = layers.Add()([layers.Dense(3)(x), layers.Dense(3)(x)])
    model = randomise(keras.Model(x, layers.Concatenate()([y, DynamicRangeActivation("tanh")(y)])))
    model.layers[4].growth_rate.assign(np.ones(3))
    model.layers[4].offset.assign(np.zeros(3))
    assert_folds(model)


def test_a_shared_layer_with_a_shared_activation_folds():
    made, growing_one = layers.Dense(4), DynamicRangeActivation("tanh")
    x = keras.Input((4,))
    y = growing_one(made(growing_one(made(x))))
    assert_folds(grown(randomise(keras.Model(x, layers.Dense(2)(y)))))


def test_folding_undoes_the_conversion():
    model = randomise(
        keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(4),
                layers.LeakyReLU(0.2, name="leaky"),
                layers.Dense(2),
            ]
        )
    )
    folded = assert_folds(to_dra(model))
    assert isinstance(folded.get_layer("leaky"), layers.LeakyReLU)
    assert folded.get_layer("leaky").negative_slope == 0.2
    np.testing.assert_allclose(outputs(folded, samples(model)), outputs(model, samples(model)))


def test_a_compiled_model_stays_compiled_and_frozen_layers_frozen():
    model = to_dra(convnet(optimizer="adam"))
    model.get_layer("conv_1").trainable = False
    folded = sgdap.fold(model)
    assert folded.compiled
    assert not folded.get_layer("conv_1").trainable


LOAD = """
import sys
import keras, numpy as np
model = keras.models.load_model(sys.argv[1] + "/folded.keras")
x = np.load(sys.argv[1] + "/x.npy")
np.save(sys.argv[1] + "/y.npy", model(x).numpy())
assert not any(name.split(".")[0] == "sgdap" for name in sys.modules)
"""


def test_a_folded_model_loads_without_sgdap(tmp_path):
    model = grown(to_dra(convnet()))
    x = samples(model)
    sgdap.fold(model).save(tmp_path / "folded.keras")
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True, capture_output=True)
    assert_equal(np.load(tmp_path / "y.npy"), outputs(model, x))


def test_other_things_than_models_are_refused():
    with pytest.raises(TypeError, match=r"Expected a keras.Model"):
        sgdap.fold("model")
