"""The layer against NumPy: what it computes, what its gradients are, how it grows."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.layers import DynamicRangeActivation
from tests.layers.mirrored_run import samples_to_grow_on
from tests.models import functions_compiled, outputs, randomise

FUNCTIONS = {
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
    "silu": (
        lambda z: z / (1 + np.exp(-z)),
        lambda z: (1 + np.exp(-z) + z * np.exp(-z)) / (1 + np.exp(-z)) ** 2,
    ),
}
"""f and f' in NumPy."""


def grown(activation="sigmoid", growth="trainable", channels=5, **arguments):
    """A model of the layer alone, with random α and δ; compiled to lower the sum of its squares."""
    layer = DynamicRangeActivation(activation, growth, **arguments)
    model = keras.Sequential([keras.Input((3, channels)), layer])
    random = np.random.default_rng(1)
    layer.growth_rate.assign(random.normal(1, 0.4, channels))
    layer.offset.assign(random.normal(0, 0.4, channels))
    return model, layer


def step_by_hand(layer, x, y, activation, bound=np.inf):
    """α, δ and g = ∂L/∂z for L the mean over the batch of the mean square of f(z) − y."""
    alpha, delta = layer.growth_rate.numpy().astype(float), layer.offset.numpy().astype(float)
    f, slope = FUNCTIONS[activation]
    raw = alpha * (x + delta)
    z = np.clip(raw, -bound, bound)
    g = 2 * (f(z) - y) / y.size * slope(z) * (np.abs(raw) <= bound)
    return alpha, delta, g


def data(count=7, channels=5, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 3, channels)).astype("float32")
    return x, random.normal(size=x.shape).astype("float32")


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_outputs_are_those_of_the_formula(activation):
    model, layer = grown(activation, clip=0.7)
    x, _ = data()
    alpha, delta = layer.growth_rate.numpy(), layer.offset.numpy()
    expected = FUNCTIONS[activation][0](np.clip(alpha * (x + delta), -0.7, 0.7))
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)


def test_a_new_layer_computes_the_plain_activation():
    x, _ = data()
    layer = DynamicRangeActivation("silu")
    np.testing.assert_array_equal(layer(x).numpy(), keras.activations.silu(x).numpy())


@pytest.mark.parametrize("axis", [1, 2, -1, -2])
def test_channels_may_lie_along_any_axis(axis):
    x, _ = data()
    layer = DynamicRangeActivation("relu", channel_axis=axis)
    layer.build(x.shape)
    layer.growth_rate.assign(np.arange(1, 1 + x.shape[axis]))
    rates = np.moveaxis(np.ones(x.shape), axis, -1) * np.arange(1, 1 + x.shape[axis])
    expected = np.maximum(x * np.moveaxis(rates, -1, axis), 0)
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("activation", "jit_compile"), [("sigmoid", False), ("relu", False), ("silu", True)]
)
@pytest.mark.compiled
def test_one_step_of_a_trainable_growth_is_that_of_the_formula(activation, jit_compile):
    model, layer = grown(activation, growth_regularizer=0.03, clip=0.7)
    model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=jit_compile)
    x, y = data()
    alpha, delta, g = step_by_hand(layer, x, y, activation, 0.7)
    model.train_on_batch(x, y)
    slope = (g * (x + delta)).sum((0, 1)) + 0.03 * np.sign(alpha)
    np.testing.assert_allclose(layer.growth_rate.numpy(), alpha - 0.5 * slope, atol=1e-5)
    np.testing.assert_allclose(
        layer.offset.numpy(), delta - 0.5 * (alpha * g).sum((0, 1)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("activation", "jit_compile"), [("sigmoid", False), ("relu", False), ("silu", True)]
)
@pytest.mark.compiled
def test_one_step_of_a_growth_by_statistics_is_that_of_the_formula(activation, jit_compile):
    model, layer = grown(activation, "statistics", momentum=0.6, clip=0.7)
    model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=jit_compile)
    x, y = data()
    alpha, delta, g = step_by_hand(layer, x, y, activation, 0.7)
    model.train_on_batch(x, y)
    sizes = np.abs(g).mean((0, 1))
    np.testing.assert_allclose(
        layer.growth_rate.numpy(), 0.6 * alpha + 0.4 * sizes / sizes.mean(), atol=1e-5
    )
    np.testing.assert_allclose(
        layer.offset.numpy(), delta - 0.5 * (alpha * g).sum((0, 1)), atol=1e-5
    )


@pytest.mark.parametrize("growth", ["trainable", "statistics"])
@pytest.mark.parametrize("activation", ["sigmoid", "silu", "tanh"])
def test_gradients_are_the_numeric_ones(activation, growth):
    x, y = (tensor.astype("float64") for tensor in data())
    layer = DynamicRangeActivation(activation, growth, dtype="float64")
    layer.build(x.shape)
    random = np.random.default_rng(2)
    for variable in layer.variables:
        variable.assign(random.normal(1, 0.3, 5))

    def loss(x):
        return tf.reduce_sum(layer(x) * y)

    x = tf.Variable(x)
    watched = [x, *(v.value for v in layer.trainable_variables)]
    with tf.GradientTape() as tape:
        value = loss(x)
    found = tape.gradient(value, watched)
    for variable, gradient in zip(watched, found, strict=True):
        for index in list(np.ndindex(*variable.shape))[:20]:
            sides = []
            for shift in (1e-6, -1e-6):
                before = variable.numpy()
                changed = before.copy()
                changed[index] += shift
                variable.assign(changed)
                sides.append(float(loss(x)))
                variable.assign(before)
            assert abs((sides[0] - sides[1]) / 2e-6 - gradient.numpy()[index]) < 1e-5


def test_growth_by_statistics_changes_neither_gradients_nor_inference():
    x, y = data()
    found = []
    for growth in ("trainable", "statistics"):
        model, layer = grown("silu", growth, growth_regularizer=None)
        before = layer.growth_rate.numpy()
        outputs(model, x)
        model.compile("sgd", "mse")
        model.evaluate(x, y, verbose=0)
        np.testing.assert_array_equal(layer.growth_rate.numpy(), before)
        tensor = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            loss = tf.reduce_sum((model(tensor, training=True) - y) ** 2)
        found.append(tape.gradient(loss, tensor).numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    assert (layer.growth_rate.numpy() != before).all()


@pytest.mark.parametrize("gradient", [0.0, np.nan, np.inf])
def test_gradients_that_say_nothing_leave_the_growth_rates(gradient):
    model, layer = grown("sigmoid", "statistics")
    before = layer.growth_rate.numpy()
    x = tf.constant(data()[0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model(x, training=True)
    tape.gradient(y, x, output_gradients=tf.fill(y.shape, np.float32(gradient)))
    np.testing.assert_allclose(layer.growth_rate.numpy(), before, rtol=1e-6)


def test_it_grows_where_the_tape_is_outside_of_the_compiled_function():
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    found = []
    for compiled in (False, True):
        layer = DynamicRangeActivation("relu", growth="statistics", momentum=0.5)
        layer.build((None, 4))
        forward = lambda x, layer=layer: layer(x, training=True)  # noqa: E731
        forward = tf.function(forward) if compiled else forward
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(forward(tf.constant(x)) ** 2)
        tape.gradient(loss, layer.trainable_weights[0].value)
        found.append(layer.growth_rate.numpy())
    assert not np.allclose(found[0], 1)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_a_frozen_layer_does_not_grow():
    layer = DynamicRangeActivation("sigmoid", "statistics", trainable=False)
    model = keras.Sequential([keras.Input((3, 5)), layers.Dense(5), layer])
    before = layer.growth_rate.numpy()
    x, y = data()
    model.compile("sgd", "mse")
    model.train_on_batch(x, y)
    np.testing.assert_array_equal(layer.growth_rate.numpy(), before)


@pytest.mark.compiled
@pytest.mark.parametrize("growth", ["trainable", "statistics"])
def test_it_trains_in_mixed_precision(growth):
    model, layer = grown("sigmoid", growth, dtype="mixed_float16", momentum=0.5)
    assert layer.growth_rate.dtype == "float32"
    x, y = data()
    assert layer(x.astype("float16")).dtype == "float16"
    model.compile(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=64), "mse"
    )
    alpha, delta, g = step_by_hand(layer, x, y, "sigmoid")
    model.train_on_batch(x, y)
    sizes = np.abs(g).mean((0, 1))
    expected = (
        0.5 * alpha + 0.5 * sizes / sizes.mean()
        if growth == "statistics"
        else alpha - 0.5 * ((g * (x + delta)).sum((0, 1)) + 1e-5 * np.sign(alpha))
    )
    np.testing.assert_allclose(layer.growth_rate.numpy(), expected, atol=2e-3)
    np.testing.assert_allclose(
        layer.offset.numpy(), delta - 0.5 * (alpha * g).sum((0, 1)), atol=2e-3
    )


def test_half_precision_does_not_overflow():
    x = np.full((1, 2), 60000, "float16")
    for clip, bound in ((None, 32752.0), (100.0, 100.0)):
        layer = DynamicRangeActivation("relu", dtype="float16", clip=clip)
        layer.build(x.shape)
        layer.growth_rate.assign([30, 0])
        layer.offset.assign([60000, 60000])
        np.testing.assert_array_equal(layer(x).numpy(), [[bound, 0]])
    assert DynamicRangeActivation("relu").bound is None


@pytest.mark.parametrize("growth", ["trainable", "statistics"])
@pytest.mark.parametrize("activation", ["silu", layers.LeakyReLU(0.3)])
def test_a_saved_model_loads_with_all_its_settings(activation, growth, tmp_path):
    model, layer = grown(
        activation,
        growth,
        growth_regularizer=keras.regularizers.L2(0.2),
        momentum=0.7,
        clip=1.5,
        channel_axis=2,
        activity_regularizer="l1",
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x, _ = data()
    np.testing.assert_array_equal(outputs(loaded, x), outputs(model, x))
    assert loaded.layers[0].get_config() == layer.get_config()


def test_the_pull_brings_an_idle_channel_to_nothing():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, use_bias=False, name="hidden"),
            DynamicRangeActivation("relu", growth_regularizer=0.05),
            layers.Dense(1, name="end"),
        ]
    )
    randomise(model)
    model.layers[1].growth_rate.assign([1, 1, 1])
    kernel = model.layers[2].kernel.numpy()
    kernel[1] = 0  # the next layer does not read channel 1
    model.layers[2].kernel.assign(kernel)
    model.layers[2].trainable = False
    model.compile(keras.optimizers.SGD(0.1), "mse")
    y = outputs(model, x)
    with functions_compiled():
        for _ in range(100):
            model.train_on_batch(x, y)
    rates = np.abs(model.layers[1].growth_rate.numpy())
    assert rates[1] < 0.6
    assert rates[1] == rates.min()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"growth": "fast"}, "growth must be 'trainable' or 'statistics'. Received: growth='fast'"),
        ({"momentum": 1}, "Received: momentum=1"),
        ({"momentum": "0.9"}, "Received: momentum='0.9'"),
        ({"clip": 0}, "Received: clip=0"),
        ({"clip": float("inf")}, "Received: clip=inf"),
        ({"channel_axis": 0}, "channel_axis=0"),
        ({"channel_axis": 1.0}, "channel_axis=1.0"),
        ({"channel_axis": True}, "channel_axis=True"),
        ({"growth_regularizer": -0.1}, "Received: growth_regularizer=-0.1"),
        ({"growth_regularizer": float("nan")}, "Received: growth_regularizer=nan"),
        ({"growth_regularizer": "no such"}, "Received: growth_regularizer='no such'"),
        ({"growth_regularizer": [1]}, r"Received: growth_regularizer=\[1\]"),
        ({"growth_regularizer": True}, "Received: growth_regularizer=True"),
        ({"activation": "no such"}, "no such"),
    ],
)
def test_arguments_without_meaning_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        DynamicRangeActivation(**arguments)


def test_numbers_of_numpy_are_taken():
    layer = DynamicRangeActivation(
        momentum=np.float32(0.5),
        clip=np.int64(3),
        growth_regularizer=np.float32(0.25),
        channel_axis=np.int64(-1),
    )
    config = json.loads(json.dumps(layer.get_config()))
    again = DynamicRangeActivation.from_config(config)
    assert (again.momentum, again.clip, again.channel_axis) == (0.5, 3.0, -1)
    assert float(again.growth_regularizer.l1) == 0.25


def test_an_input_of_another_width_is_refused():
    layer = DynamicRangeActivation(name="grown")
    layer(np.ones((2, 3)))
    assert layer(np.ones((2, 5, 3))).shape == (2, 5, 3)
    with pytest.raises(ValueError, match="'grown' is incompatible with the layer.*value 3"):
        layer(np.ones((2, 4)))


def test_inputs_without_known_channels_are_refused():
    with pytest.raises(ValueError, match=r"needs to know the number of its channels"):
        DynamicRangeActivation()(keras.Input((4, None)))
    with pytest.raises(ValueError, match="channel_axis=2 of 'layer' is no axis of channels"):
        DynamicRangeActivation(channel_axis=2, name="layer")(keras.Input((4,)))
    with pytest.raises(ValueError, match="must have no weights of its own"):
        DynamicRangeActivation(layers.PReLU())(keras.Input((4,)))


@pytest.mark.compiled
@pytest.mark.parametrize("growth", ["trainable", "statistics"])
def test_a_model_with_it_shrinks_inside_fit(growth):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(256, 6)), random.integers(3, size=256)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16),
            DynamicRangeActivation("relu", growth),
            layers.Dense(3, "softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    callback = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), guidance="growth", verbose=0)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[callback])
    assert model.layers[0].units <= 8
    assert model.layers[1].growth_rate.shape == (model.layers[0].units,)


@pytest.mark.devices
def test_replicas_grow_as_one(devices):
    found = devices.found_by("tests.layers.mirrored_run")
    x, y = samples_to_grow_on()
    f = 1 / (1 + np.exp(-x))
    sizes = np.abs((f - y) * f * (1 - f)).reshape(2, 8, 4).mean(1)  # of each replica
    by_replica = 0.5 + 0.5 * (sizes / sizes.mean(1, keepdims=True)).mean(0)
    one, two = found["one"], found["two"]
    for name in ("growth_rate", "offset"):
        np.testing.assert_allclose(two["trainable"][name], one["trainable"][name], atol=1e-5)
    np.testing.assert_allclose(two["statistics"]["growth_rate"], by_replica, atol=1e-5)
    np.testing.assert_allclose(two["statistics"]["offset"], one["statistics"]["offset"], atol=1e-5)
