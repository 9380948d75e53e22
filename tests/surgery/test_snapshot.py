"""A snapshot brings architecture, weights and optimizer back, in place and exactly."""

import keras
import numpy as np
from keras import layers

import sgdap
from sgdap.surgery import prune_in_place, restore_snapshot, take_snapshot
from tests.interruption import held_by, unchanged
from tests.models import convnet, digits_like, outputs, randomise
from tests.oracles import random_removal


def prune(model: keras.Model, seed: int = 0) -> None:
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, random_removal(graph, seed))


def state(model: keras.Model) -> list[np.ndarray]:
    """All weights and slots, not the counters of the optimizer, which go on."""
    variables = [*model.weights, *(v for v in model.optimizer.variables if len(v.shape))]
    return [v.numpy() for v in variables]


def test_restoring_after_two_rounds_and_training_between_is_exact():
    model, (x, y) = convnet(optimizer="adam"), digits_like(32)
    model.fit(x, y, verbose=0)
    expected, before = outputs(model, x), state(model)
    configs = [layer.get_config() for layer in model.layers]
    snapshot = take_snapshot(model)
    for seed in range(2):
        prune(model, seed)
        model.fit(x, y, verbose=0)
    assert model.count_params() < sum(v.size for v in before[: len(model.weights)])
    restore_snapshot(model, snapshot)
    assert np.array_equal(outputs(model, x), expected)
    assert all(np.array_equal(a, b) for a, b in zip(before, state(model), strict=True))
    assert [layer.get_config() for layer in model.layers] == configs
    assert int(model.optimizer.iterations) == 3
    model.fit(x, y, verbose=0)


def test_restoring_within_the_same_widths_brings_the_weights_back():
    model, (x, y) = convnet(optimizer="sgd"), digits_like(32)
    snapshot, before = take_snapshot(model), outputs(model, x)
    model.fit(x, y, verbose=0)
    assert not np.array_equal(outputs(model, x), before)
    restore_snapshot(model, snapshot)
    assert np.array_equal(outputs(model, x), before)


def test_a_snapshot_is_not_touched_by_what_comes_after():
    model, x = convnet(), digits_like(8)[0]
    expected, snapshot = outputs(model, x), take_snapshot(model)
    for seed in range(2):
        prune(model, seed)
        restore_snapshot(model, snapshot)
        assert np.array_equal(outputs(model, x), expected)


def test_operations_and_nested_models_come_back_too():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(6), layers.Reshape((2, 3))])
    inputs = keras.Input((4,))
    x = inner(layers.Dense(8, "relu")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    data = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    expected, snapshot = outputs(model, data), take_snapshot(model)
    prune(model)
    assert inner.layers[-1].target_shape != (2, 3)
    restore_snapshot(model, snapshot)
    assert np.array_equal(outputs(model, data), expected)
    assert inner.layers[-1].target_shape == (2, 3)


class TwoOptimizers(keras.Model):
    """An encoder and a decoder, each with an optimizer of its own."""

    def __init__(self):
        super().__init__(name="two")
        self.encoder = keras.Sequential([keras.Input((8,)), layers.Dense(6, "relu")])
        self.decoder = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.Dense(8)])
        self.second = keras.optimizers.Adam(0.01)

    def call(self, x):
        return self.decoder(self.encoder(x))

    def train_step(self, data):
        import tensorflow as tf

        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape(persistent=True) as tape:
            loss = keras.ops.mean(keras.ops.square(self(x, training=True) - x))
        parts = (self.encoder, self.optimizer), (self.decoder, self.second)
        for part, optimizer in parts:
            gradients = tape.gradient(loss, part.trainable_weights)
            optimizer.apply_gradients(zip(gradients, part.trainable_weights, strict=True))
        return {"loss": loss}


def test_all_optimizers_that_a_model_holds_go_along_and_come_back():
    x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    model = TwoOptimizers()
    model(x[:1])
    model.compile("adam")
    model.fit(x, verbose=0)
    before = [v.numpy() for v in model.second.variables]
    assert any(v.shape == (6, 5) for v in before)
    snapshot, expected = take_snapshot(model), outputs(model, x)
    prune(model)
    slots = [tuple(v.shape) for v in model.second.variables if len(v.shape) == 2]
    kernels = [tuple(layer.kernel.shape) for layer in model.decoder.layers]
    assert set(slots) == set(kernels) and (6, 5) not in slots
    model.fit(x, verbose=0)
    assert int(model.second.iterations) == 2
    restore_snapshot(model, snapshot)
    assert np.array_equal(outputs(model, x), expected)
    for variable, value in zip(model.second.variables, before, strict=True):
        assert np.array_equal(variable.numpy(), value) or not value.ndim
    model.fit(x, verbose=0)


def test_a_compiled_model_in_the_model_trains_on_after_surgery_and_after_it_is_undone():
    encoder = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, "relu"), layers.Dense(3)], name="encoder"
    )
    encoder.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    encoder.train_on_batch(x, x[:, :3])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(encoder(inputs)))
    model.compile("sgd", "mse")
    snapshot, expected = take_snapshot(model), outputs(model, x)
    prune(model)
    width = encoder.output.shape[-1]
    assert width < 3
    encoder.train_on_batch(x, x[:, :width])
    restore_snapshot(model, snapshot)
    assert np.array_equal(outputs(model, x), expected)
    encoder.train_on_batch(x, x[:, :3])
    assert int(encoder.optimizer.iterations) == 3


def test_going_back_to_where_the_model_is_changes_nothing():
    model, (x, y) = convnet(optimizer="adam"), digits_like(32)
    model.fit(x, y, verbose=0)
    before = held_by(model)
    restore_snapshot(model, take_snapshot(model))
    assert unchanged(before)
