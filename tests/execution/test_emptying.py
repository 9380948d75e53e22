"""Functions that were compiled with weights which are in no model any more fail."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.surgery import prune_in_place, restore_snapshot, take_snapshot
from tests.models import outputs, randomise, samples
from tests.oracles import random_removal

pytestmark = pytest.mark.compiled

FAILS = (tf.errors.InvalidArgumentError, ValueError)


def network() -> keras.Model:
    i = keras.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(8, "relu", name="hidden")(i))
    return randomise(keras.Model(i, layers.Dense(3, name="end")(x)))


def prune(model: keras.Model) -> None:
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, random_removal(graph))


def stale_step(model, x):
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x, training=True) ** 2)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    return lambda: step(tf.constant(x))


def stale_prediction(model, x):
    inner = keras.Model(model.inputs, model.get_layer("hidden").output)
    return lambda: inner.predict(x, verbose=0)


def stale_fit(model, x):
    around = keras.Sequential([keras.Input((6,)), model, layers.Softmax()])
    around.compile("adam", "mse")
    return lambda: around.train_on_batch(x, np.zeros((len(x), 3)))


@pytest.mark.parametrize("make", [stale_step, stale_prediction, stale_fit])
@pytest.mark.parametrize("change", ["pruned", "undone"])
def test_a_function_compiled_with_old_weights_fails(make, change):
    model = network()
    x = samples(model, 4)
    snapshot = take_snapshot(model)
    if change == "undone":
        prune(model)
    call = make(model, x)
    call()
    if change == "undone":
        restore_snapshot(model, snapshot)
    else:
        prune(model)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(FAILS):
        call()
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_weights_that_are_held_from_before_can_be_neither_assigned_nor_multiplied():
    model = network()
    kernel = model.get_layer("hidden").kernel
    whole = kernel.numpy()
    prune(model)
    with pytest.raises(FAILS):
        kernel.assign(whole)
    with pytest.raises(FAILS):
        keras.ops.matmul(samples(network(), 4), kernel)


def test_a_model_around_a_slim_one_trains_on_when_compiled_again():
    model = network()
    x, y = samples(model, 4), np.zeros((4, 3))
    around = keras.Sequential([keras.Input((6,)), model])
    around.compile("sgd", "mse")
    around.train_on_batch(x, y)
    prune(model)
    around.compile("sgd", "mse")
    before = outputs(model, x)
    around.train_on_batch(x, y)
    assert np.any(outputs(model, x) != before)


def test_a_weight_that_another_layer_of_the_model_still_has_keeps_its_value():
    @keras.saving.register_keras_serializable("sgdap_emptying")
    class Tied(layers.Layer):
        """Has no rule, and reads a weight of another layer."""

        def __init__(self, other, **kwargs):
            super().__init__(**kwargs)
            self.kernel = other.kernel

        def call(self, x):
            return x + keras.ops.sum(self.kernel)

    i = keras.Input((6,))
    hidden = layers.Dense(8, "relu")
    x = layers.Dense(7, "relu")(hidden(i))
    model = randomise(keras.Model(i, Tied(hidden)(layers.Dense(5)(x))))
    data = samples(model, 4)
    prune(model)
    assert np.all(np.isfinite(outputs(model, data)))


def test_a_copy_leaves_the_weights_of_its_model():
    model = network()
    x = samples(model, 32)
    step = stale_prediction(model, x)
    before = step()
    sgdap.apply(model, sgdap.plan(model, x, sgdap.Budget(flops=0.7)))
    np.testing.assert_array_equal(step(), before)


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ((6,), lambda: [layers.Dense(8, "relu")]),
        ((5, 3), lambda: [layers.Conv1D(8, 3), layers.GlobalMaxPooling1D()]),
        ((5,), lambda: [layers.Embedding(9, 8), layers.GlobalAveragePooling1D()]),
        ((5, 3), lambda: [layers.LSTM(8)]),
    ],
    ids=["dense", "convolution", "embedding", "recurrent"],
)
def test_the_page_names_what_tensorflow_says_then(shape, body):
    """So that a search for the error leads there."""
    model = keras.Sequential([keras.Input(shape), *body(), layers.Dense(3)])
    stale = tf.function(lambda x: model(x, training=False))
    x = tf.ones((4, *shape))
    stale(x)
    prune(model)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        stale(x)
    said = re.sub(r"\d+", "0", str(caught.value))
    page = (Path(sgdap.__file__).parents[1] / "docs" / "custom-training-loops.md").read_text()
    named = re.findall(r'"([^"\n]+)"', page[page.index("InvalidArgumentError") :])
    assert any(re.sub(r"\d+", "0", words) in said for words in named)
