"""The layers that make predictions are found, and others are not taken for one."""

import keras
import pytest
from keras import layers

import sgdap
from sgdap.execution.heads import heads


def model(*end, loss=None) -> keras.Model:
    inputs = keras.Input((6, 5))
    x = layers.Dense(8, "relu", name="hidden")(inputs)
    for layer in end:
        x = layer(x)
    made = keras.Model(inputs, x)
    if loss is not None:
        made.compile(loss=loss)
    return made


SPARSE = keras.losses.SparseCategoricalCrossentropy
CASES = {
    "softmax": ([layers.Dense(3, "softmax", name="end")], None, "categorical"),
    "a layer behind": ([layers.Dense(3, name="end"), layers.Softmax()], "kld", "categorical"),
    "an activation": (
        [layers.Dense(3, name="end"), layers.Activation("softmax")],
        SPARSE(),
        "categorical",
    ),
    "logits": ([layers.Dense(3, name="end")], SPARSE(from_logits=True), "categorical"),
    "logarithms": ([layers.Dense(3, "log_softmax", name="end")], None, "categorical"),
    "logarithms as logits": (
        [layers.Dense(3, name="end"), layers.Activation("log_softmax")],
        SPARSE(from_logits=True),
        "categorical",
    ),
    "bits": ([layers.Dense(3, "sigmoid", name="end")], "binary_crossentropy", "bernoulli"),
    "numbers": ([layers.Dense(3, name="end")], "mse", None),
    "another activation": ([layers.Dense(3, "relu", name="end")], SPARSE(from_logits=True), None),
    "a softmax over positions": ([layers.Dense(3, name="end"), layers.Softmax(1)], "kld", None),
    "something between": (
        [layers.Dense(3, name="end"), layers.LeakyReLU(), layers.Softmax()],
        "kld",
        None,
    ),
    "a focal loss": (
        [layers.Dense(3, "softmax", name="end")],
        keras.losses.CategoricalFocalCrossentropy(),
        None,
    ),
    "a bound": (
        [layers.Dense(3, "softmax", kernel_constraint="non_neg", name="end")],
        "kld",
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_whose_logits_the_loss_reads_is_a_head(case):
    end, loss, kind = CASES[case]
    end = [type(own).from_config(own.get_config()) for own in end]
    graph = sgdap.channel_graph(model(*end, loss=loss))
    assert heads(graph) == ({} if kind is None else {"end": kind})


def test_what_another_layer_reads_too_is_none():
    inputs = keras.Input((5,))
    hidden = layers.Dense(8, "relu")(inputs)
    logits = layers.Dense(3, name="end")(hidden)
    prediction = layers.Softmax()(logits)
    other = layers.Dense(2, name="other")(logits)
    graph = sgdap.channel_graph(keras.Model(inputs, [prediction, other]))
    assert heads(graph) == {}


@pytest.mark.parametrize(
    ("function", "loss", "kind"),
    [
        (keras.ops.softmax, "kld", "categorical"),
        (keras.ops.log_softmax, SPARSE(from_logits=True), "categorical"),
        (keras.ops.sigmoid, "binary_crossentropy", "bernoulli"),
        (lambda x: keras.ops.softmax(x, axis=1), "kld", None),
    ],
)
def test_an_operation_behind_a_layer_is_what_an_activation_is(function, loss, kind):
    graph = sgdap.channel_graph(model(layers.Dense(3, name="end"), function, loss=loss))
    assert heads(graph) == ({} if kind is None else {"end": kind})
