"""The rise of the loss is that of Keras' own losses, with the model's predictions as targets."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.execution.divergence import Divergence, rise_of
from sgdap.execution.losses import KnownLoss
from tests.models import randomise

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(2, 7, 5, 4)).astype("float32")


def softmax(x):
    return np.asarray(keras.ops.softmax(x))


def sigmoid(x):
    return np.asarray(keras.ops.sigmoid(x))


def mean_of(loss, y, z) -> float:
    return float(keras.ops.mean(loss(y, z)) - keras.ops.mean(loss(y, y)))


CASES = {
    "probabilities": (
        KnownLoss(0, "categorical"),
        softmax,
        lambda y, z: mean_of(keras.losses.categorical_crossentropy, y, z),
    ),
    "logits": (
        KnownLoss(0, "categorical", logits=True),
        lambda x: x,
        lambda y, z: mean_of(keras.losses.categorical_crossentropy, softmax(y), softmax(z)),
    ),
    "bits": (
        KnownLoss(0, "bernoulli"),
        sigmoid,
        lambda y, z: mean_of(keras.losses.binary_crossentropy, y, z),
    ),
    "counts": (KnownLoss(0, "poisson"), np.exp, lambda y, z: mean_of(keras.losses.poisson, y, z)),
    "squares": (
        KnownLoss(0, "squared", 3.0),
        lambda x: x,
        lambda y, z: 3 * mean_of(keras.losses.mean_squared_error, y, z),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rise_is_that_of_keras_loss(case):
    loss, activation, expected = CASES[case]
    y, z = map(activation, LOGITS)
    assert rise_of(loss, y, z) == pytest.approx(expected(y, z), rel=1e-4)
    assert rise_of(loss, y, y) == pytest.approx(0, abs=1e-6)


def test_a_loss_that_is_summed_is_not_divided_by_the_positions():
    y, z = LOGITS
    mean, summed = (rise_of(KnownLoss(0, "squared", summed=s), y, z) for s in (False, True))
    assert summed == pytest.approx(20 * mean, rel=1e-5)


def test_other_values_of_variables_are_judged_and_none_is_changed():
    inputs = keras.Input((6,))
    x = layers.Dense(8, "relu", name="hidden")(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(3, "softmax", name="end")(x)))
    data = RANDOM.normal(size=(50, 6)).astype("float32")
    whole = model.predict(data, verbose=0)
    graph = sgdap.channel_graph(model)
    judge = Divergence(graph, data, [KnownLoss(0, "categorical")], [("end", 0), ("end", 1)], 16)
    assert judge.of({}) == pytest.approx(0, abs=1e-6)
    kernel = model.get_layer("end").kernel.numpy()
    other = kernel + RANDOM.normal(size=kernel.shape).astype("float32")
    found = judge.of({("end", 0): other})
    assert np.array_equal(model.get_layer("end").kernel.numpy(), kernel)
    model.get_layer("end").kernel.assign(other)
    slim = model.predict(data, verbose=0)
    assert found == pytest.approx(
        mean_of(keras.losses.categorical_crossentropy, whole, slim), rel=1e-3
    )
