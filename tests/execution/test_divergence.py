"""The rise of the loss is that of Keras' own losses, with the model's predictions as targets."""

import keras
import numpy as np
import pytest

from sgdap.execution.divergence import rise_of, rises
from sgdap.execution.losses import KnownLoss

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
    assert rise_of(loss, y, z).mean() == pytest.approx(expected(y, z), rel=1e-4)
    assert rise_of(loss, y, y) == pytest.approx(0, abs=1e-6)


def test_a_loss_that_is_summed_is_not_divided_by_the_positions():
    y, z = LOGITS
    mean, summed = (rise_of(KnownLoss(0, "squared", summed=s), y, z).mean() for s in (False, True))
    assert summed == pytest.approx(20 * mean, rel=1e-5)


def test_the_terms_of_a_loss_add_up_at_each_sample_of_all_batches():
    y, z = map(softmax, LOGITS)
    runs = [([y[:5]], [z[:5]]), ([y[5:]], [z[5:]])]
    each = keras.losses.categorical_crossentropy
    expected = np.asarray(each(y, z) - each(y, y)).mean(1)
    found = rises(2 * [KnownLoss(0, "categorical")], runs)
    np.testing.assert_allclose(found, 2 * expected, rtol=1e-4, atol=1e-6)
