"""Even ranges: the model computes the same, and neighbouring kernels share what is uneven."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import sgdap
from sgdap.layers.equalization import even_scales
from tests.layers.test_folding import SMOOTH, assert_equal
from tests.models import assemble, outputs, randomise, samples


def spread(layer: keras.layers.Layer, axis: int, number: int = 0) -> float:
    """How many times the range of one channel is that of another."""
    kernel = np.moveaxis(np.abs(layer.weights[number].numpy()), axis, 0)
    ranges = kernel.reshape(len(kernel), -1).max(axis=1)
    return float(ranges.max() / ranges.min())


def uneven(between, seed: int = 0) -> keras.Model:
    """Two dense layers, the channels between them of very different ranges."""
    model = randomise(
        keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, name="first"),
                *between,
                layers.Dense(5, name="second"),
            ]
        ),
        seed,
    )
    first = model.get_layer("first")
    first.kernel.assign(first.kernel * np.exp2(np.arange(8.0) - 3))
    return model


def assert_same(model: keras.Model, **options) -> keras.Model:
    x = samples(model)
    before = outputs(model, x)
    made = sgdap.fold(model, equalize=True, **options)
    assert_equal(outputs(made, x), before)
    np.testing.assert_array_equal(outputs(model, x), before)
    return made


def test_two_layers_meet_in_the_middle():
    model = uneven([layers.ReLU()])
    first, second = (model.get_layer(name).kernel.numpy() for name in ("first", "second"))
    made = assert_same(model)
    middle = np.sqrt(np.abs(first).max(axis=0) * np.abs(second).max(axis=1))
    np.testing.assert_allclose(np.abs(made.get_layer("first").kernel).max(axis=0), middle, 1e-3)
    np.testing.assert_allclose(np.abs(made.get_layer("second").kernel).max(axis=1), middle, 1e-3)


@pytest.mark.parametrize(
    "between",
    [
        [],
        [layers.ReLU()],
        [layers.LeakyReLU()],
        [layers.PReLU(alpha_initializer="normal")],
        [layers.Dropout(0.5), layers.Activation("relu")],
        [layers.Reshape((2, 4)), layers.GlobalMaxPooling1D()],
        [layers.Lambda(lambda x: keras.ops.maximum(x, 0.1 * x))],
        [layers.BatchNormalization(), layers.ReLU()],
    ],
    ids=lambda between: "-".join(layer.__class__.__name__ for layer in between) or "none",
)
def test_scales_pass_what_is_positively_homogeneous(between):
    model = uneven(between)
    made = assert_same(model)
    assert spread(made.get_layer("first"), 1) < spread(model.get_layer("first"), 1) / 2


@pytest.mark.parametrize(
    "activation",
    ["relu6", "sigmoid", "tanh", "softmax", "elu", "gelu", "softplus", "hard_silu", "exponential"],
)
def test_other_activations_stop_them(activation):
    model = uneven([layers.Activation(activation)])
    made = assert_same(model)
    for mine, theirs in zip(made.weights, model.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_an_activation_that_bends_far_away_stops_them():
    model = uneven([layers.ReLU(max_value=2000.0)])
    made = sgdap.fold(model, equalize=True)
    np.testing.assert_array_equal(made.get_layer("first").kernel, model.get_layer("first").kernel)


def convolutional(*, activation="relu") -> keras.Model:
    """An inverted residual block, as in MobileNetV2, with channels of different ranges."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(inputs)
    skip = x = layers.Activation(activation)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.Activation(activation)(layers.BatchNormalization()(x))
    x = layers.Conv2D(6, 1, name="project")(x)
    x = layers.MaxPooling2D()(layers.ZeroPadding2D()(layers.Add()([skip, x])))
    model = keras.Model(inputs, layers.Dense(2, name="end")(layers.Flatten()(x)))
    randomise(model)
    depthwise = model.get_layer("depthwise").kernel
    depthwise.assign(depthwise * np.exp2(np.arange(6.0) - 3)[:, None])
    return model


@pytest.mark.parametrize("folded", [True, False])
def test_depthwise_kernels_become_even_too(folded):
    model = convolutional()
    made = assert_same(model, batch_normalization=folded)
    assert spread(model.get_layer("depthwise"), 2) > 16
    assert spread(made.get_layer("depthwise"), 2) < 8


def test_a_gate_is_left_alone():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(inputs)
    gate = layers.Dense(6, "sigmoid", name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Conv2D(4, 1, name="read")(layers.Multiply()([gate, x]))
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    made = assert_same(model)
    theirs = model.get_layer("gate").bias
    np.testing.assert_array_equal(made.get_layer("gate").bias, theirs)
    assert not np.array_equal(made.get_layer("conv").kernel, model.get_layer("conv").kernel)


def test_what_else_depends_on_weights_keeps_them():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "relu", kernel_constraint=keras.constraints.MaxNorm(1.0)),
            layers.Dense(7, "relu6"),
            layers.Dense(8, "relu", activity_regularizer="l2"),
            layers.Dense(5),
        ]
    )
    made = assert_same(randomise(model))
    for mine, theirs in zip(made.weights, model.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_a_layer_that_is_used_twice_is_scaled_once():
    shared = layers.Dense(8, "relu", name="shared")
    first, second = keras.Input((8,)), keras.Input((8,))
    read = layers.Dense(3, name="read")
    sum_ = layers.Add()([read(shared(first)), read(shared(second))])
    model = randomise(keras.Model([first, second], sum_))
    kernel = model.get_layer("shared").kernel
    kernel.assign(kernel * np.exp2(np.arange(8.0)))
    x = [np.random.default_rng(i).normal(size=(8, 8)).astype("float32") for i in range(2)]
    made = sgdap.fold(model, equalize=True)
    assert_equal(outputs(made, x), outputs(model, x))
    assert spread(made.get_layer("shared"), 1) < spread(model.get_layer("shared"), 1) / 4


def test_dead_channels_keep_their_scale():
    makes, reads = np.array([[1.0, 0.0, 4.0]]), np.array([[1.0, 1.0, 1.0]])
    np.testing.assert_allclose(even_scales(makes, reads), [1.0, 1.0, 0.5])


def test_where_kernels_are_on_one_side_only_they_become_equal():
    reads = np.array([[1.0, 4.0, 2.0]])
    scales = even_scales(np.zeros((0, 3)), reads)
    np.testing.assert_allclose(reads / scales, 2.0)
    assert even_scales(np.zeros((0, 3)), np.zeros((0, 3))).tolist() == [1.0, 1.0, 1.0]


def test_one_range_for_a_whole_kernel_then_loses_less():
    model = convolutional()
    folded = sgdap.fold(model, batch_normalization=True)
    even = sgdap.fold(model, batch_normalization=True, equalize=True)
    x = samples(model, 32)
    scheme = sgdap.quantization.Affine(bits=5, per="tensor")

    def error(given):
        small = sgdap.quantize(given, None, scheme, compensate=False)
        return float(((outputs(small, x) - outputs(model, x)) ** 2).mean())

    assert error(even) < error(folded) / 2


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning")
@pytest.mark.filterwarnings("ignore:.* stays a DynamicRangeActivation:UserWarning")
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning")
@pytest.mark.hypothesis
@settings(max_examples=settings.default.max_examples // 10)
@given(st.integers(0, 3), SMOOTH)
def test_random_models_compute_the_same(spatial, recipe):
    model = assemble(spatial, recipe)
    x = samples(model)
    made = sgdap.fold(model, equalize=True)
    assert_equal(outputs(made, x), outputs(model, x))
