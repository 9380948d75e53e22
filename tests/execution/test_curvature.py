"""Gradients that are drawn have the curvature of the loss as their second moment."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sgdap.execution import curvature
from sgdap.execution.curvature import STEP, TEMPERATURE, drawn_loss, secant_curvature
from sgdap.execution.losses import KnownLoss

DRAWS = 40_000
LOGITS = np.array([1.5, -0.5, 0.2], "float32")
LOSSES = keras.losses


def second_moment(loss: KnownLoss, y: np.ndarray, through=tf.identity) -> np.ndarray:
    """E[g gᵀ] at `y` for the loss of a sample, where each row of a batch is a draw."""
    at = tf.constant(np.repeat(np.asarray(y, "float32")[None], DRAWS, axis=0))
    with tf.GradientTape() as tape:
        tape.watch(at)
        drawn = drawn_loss(loss, through(at), tf.constant([3, 0]))
    g = np.asarray(tape.gradient(drawn, at), np.float64).reshape(DRAWS, -1)
    return g.T @ g / DRAWS


def hessian(loss, y: np.ndarray) -> np.ndarray:
    """The second derivative of a function of one sample's prediction."""
    at = tf.constant(y, tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(at)
        with tf.GradientTape() as inner:
            inner.watch(at)
            value = loss(at)
        gradient = inner.gradient(value, at)
    return np.asarray(outer.jacobian(gradient, at)).reshape(y.size, y.size)


@pytest.fixture
def not_softened(monkeypatch):
    monkeypatch.setattr(curvature, "TEMPERATURE", 1.0)


@pytest.mark.usefixtures("not_softened")
@pytest.mark.parametrize(
    ("loss", "function"),
    [
        (KnownLoss(0, "categorical", 3.0, logits=True), LOSSES.CategoricalCrossentropy(True)),
        (KnownLoss(0, "bernoulli", 3.0, logits=True), LOSSES.BinaryCrossentropy(True)),
    ],
)
def test_cross_entropies_of_logits_have_the_hessian_of_the_loss_of_keras(loss, function):
    # it does not depend on the targets, so any will do
    target = tf.constant([[0.0, 1.0, 0.0]], tf.float64)
    expected = 3 * hessian(lambda y: function(target, y[None]), LOGITS)
    np.testing.assert_allclose(second_moment(loss, LOGITS), expected, atol=0.02)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_probabilities_and_their_logits_count_the_same(kind):
    squash = tf.nn.softmax if kind == "categorical" else tf.sigmoid
    of_logits = second_moment(KnownLoss(0, kind, logits=True), LOGITS)
    through = second_moment(KnownLoss(0, kind), LOGITS, squash)
    np.testing.assert_allclose(through, of_logits, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weight", [0.25, np.array([1.0, 4.0, 0.0])])
def test_squared_errors_have_their_constant_curvature(weight):
    found = second_moment(KnownLoss(0, "squared", weight), LOGITS)
    np.testing.assert_allclose(found, np.diag(2 * weight * np.ones(3) / 3), atol=0.06)


def test_poisson_losses_have_the_hessian_at_their_expectation():
    counts = np.array([0.5, 2.0, 8.0], "float32")
    expected = hessian(lambda y: LOSSES.Poisson()(counts[None], y[None]), counts)
    np.testing.assert_allclose(
        second_moment(KnownLoss(0, "poisson"), counts), expected, rtol=0.05, atol=0.01
    )


def test_counts_that_are_not_above_zero_have_no_curvature():
    found = second_moment(KnownLoss(0, "poisson"), np.array([0.0, -1.0]))
    np.testing.assert_array_equal(found, 0)


def test_positions_are_averaged_and_sums_add_them_up():
    map_of = np.tile(LOGITS, (4, 1))
    mean = second_moment(KnownLoss(0, "categorical", logits=True), map_of)
    one = second_moment(KnownLoss(0, "categorical", logits=True), LOGITS)
    np.testing.assert_allclose(mean[:3, :3], one / 4, atol=0.01)
    batch = tf.constant(map_of[None])

    def drawn(loss):
        return float(drawn_loss(loss, batch, tf.constant([1, 1])))

    summed = drawn(KnownLoss(0, "categorical", logits=True, summed=True))
    np.testing.assert_allclose(summed, 2 * drawn(KnownLoss(0, "categorical", logits=True)))


def test_classes_may_lie_on_any_axis():
    values = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    last = second_moment(KnownLoss(0, "categorical", logits=True), values)
    first = second_moment(KnownLoss(0, "categorical", logits=True, axis=1), values.T)
    order = np.arange(6).reshape(2, 3).T.reshape(-1)
    np.testing.assert_allclose(first, last[np.ix_(order, order)], atol=0.01)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_focal_losses_count_unsure_classes_more(kind):
    plain = np.trace(second_moment(KnownLoss(0, kind, logits=True), LOGITS))
    focal = np.trace(second_moment(KnownLoss(0, kind, logits=True, gamma=2.0, alpha=0.25), LOGITS))
    p = np.exp(LOGITS / TEMPERATURE) / np.exp(LOGITS / TEMPERATURE).sum()
    bits = 1 / (1 + np.exp(-LOGITS / TEMPERATURE))
    expected = {
        "categorical": 0.25 * np.sum(p * (1 - p) ** 2 * (1 - 2 * p + np.sum(p**2))),
        "bernoulli": np.mean(
            0.25 * bits * (1 - bits) ** 4 + 0.75 * (1 - bits) * bits**4  # (1 - p_t)^2 times g²
        ),
    }[kind]
    assert focal < plain
    np.testing.assert_allclose(focal, expected, rtol=0.05)


def test_a_softmax_under_the_squared_error_is_softened_too():
    sure = np.array([40.0, 0.0, 0.0], "float32")

    def curvature_of(activation):
        loss = KnownLoss(0, "squared", 1.0, activation)
        return np.trace(second_moment(loss, sure, tf.nn.softmax))

    assert curvature_of("") < 1e-6
    assert curvature_of("softmax") > 1e-3


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda y, p: (p - y) ** 2, lambda step: 2.0),
        (lambda y, p: abs(p - y), lambda step: 1 / step),
        (lambda y, p: (p - y) ** 4, lambda step: 4 * step**2),
    ],
)
def test_a_secant_curvature_is_the_mean_second_derivative_over_the_step(unit, function, expected):
    y = unit * np.random.default_rng(0).normal(size=(50, 2)).astype("float32")
    step = np.array([STEP * unit, 2 * STEP * unit], "float32")
    found = secant_curvature(
        lambda p: tf.reduce_mean(tf.reduce_sum(function(y, p), 1)), y, step, [0, 1]
    )
    np.testing.assert_allclose(found, np.tile(expected(step), (50, 1)) + 0 * y, rtol=1e-2)
