"""The curvature of losses at a model's outputs, as random gradients whose second moment it is.

Pure functions of tensors. A function that *draws* a loss returns a scalar whose gradient g at the
outputs has `E[g gᵀ] = E_y[∂²L/∂ŷ²]`, summed over the batch: the generalised Gauss-Newton matrix,
which for the negative log-likelihoods among them is the Fisher information (Martens 2020, "New
insights and perspectives on the natural gradient method", arXiv 1412.1193, sections 8 and 9).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from sgdap.execution.losses import KnownLoss

TEMPERATURE = 10.0
"""Softmax and sigmoid outputs are softened by it: a trained model is so sure of its calibration
samples that the loss hardly depends on anything there."""

STEP = 0.3
"""How far outputs are moved to measure a curvature, in standard deviations of their own: as far as
a model that lost channels may be off."""

_TINY = 1e-30
_PROBABILITY = 1e-7


def drawn_loss(loss: KnownLoss, y: Any, seed: Any) -> Any:
    """Draws a term of the loss, as Keras averages it over positions and weights it.

    Args:
        loss: The term.
        y: The output, `(batch, …)`.
        seed: Two integers.
    """
    y = tf.cast(y, tf.float32)
    batch, numbers = (tf.cast(n, tf.float32) for n in (tf.shape(y)[0], tf.size(y)))
    if loss.kind == "categorical":
        y = keras.ops.moveaxis(y, loss.axis, -1)
        numbers /= y.shape[-1]
        drawn = drawn_categorical(y, seed, loss.logits, loss.gamma, loss.alpha)
    elif loss.kind == "bernoulli":
        drawn = drawn_bernoulli(y, seed, loss.logits, loss.gamma, loss.alpha)
    elif loss.kind == "poisson":
        drawn = drawn_poisson(y, seed)
    else:
        drawn = drawn_squared(softened(y, loss.activation, loss.axis), seed, loss.weight)
    weight = 1.0 if loss.kind == "squared" else loss.weight
    return drawn * tf.sqrt(weight * batch / (1.0 if loss.summed else numbers))


def drawn_categorical(
    y: Any, seed: Any, logits: bool = False, gamma: float = 0.0, alpha: Any = None
) -> Any:
    """Draws cross-entropies, `-log p[class]`, for classes drawn from the softened prediction.

    At the logits the curvature is `diag(p) - p pᵀ`, p = softmax(logits / T): the loss is scaled up
    by T² as in distillation (Hinton, Vinyals, Dean 2015, arXiv 1503.02531 section 2). A focal loss
    weights each class by `alpha (1 - p)^gamma` (Lin et al. 2017, arXiv 1708.02002 section 3),
    taken as constant.

    Args:
        y: Probabilities, need not add up to 1, or logits, `(…, classes)`.
        seed: Two integers.
        logits: Whether `y` is logits.
        gamma: The exponent of a focal loss.
        alpha: A number, or one for each class.
    """
    flat = tf.reshape(y, [-1, y.shape[-1]])
    flat = flat if logits else tf.math.log(tf.maximum(flat, _TINY))
    log_p = tf.nn.log_softmax(flat / TEMPERATURE)
    drawn = tf.random.stateless_categorical(tf.stop_gradient(log_p), 1, seed)
    drawn = tf.minimum(drawn, y.shape[-1] - 1)  # NaN draws one class too many
    chosen = tf.gather(log_p, drawn, batch_dims=1)
    if gamma or alpha is not None:
        weights = (1 - tf.exp(log_p)) ** gamma * (1.0 if alpha is None else alpha)
        chosen *= tf.sqrt(tf.stop_gradient(tf.gather(weights, drawn, batch_dims=1)))
    return -TEMPERATURE * tf.reduce_sum(chosen)


def drawn_bernoulli(
    y: Any, seed: Any, logits: bool = False, gamma: float = 0.0, alpha: Any = None
) -> Any:
    """Draws binary cross-entropies for bits drawn from the softened prediction.

    At the logits the curvature is `diag(p (1 - p))`, p = sigmoid(logits / T).

    Args:
        y: Probabilities or logits, `(…)`.
        seed: Two integers.
        logits: Whether `y` is logits.
        gamma: The exponent of a focal loss, as for `drawn_categorical`.
        alpha: The weight of ones in a focal loss; zeros have `1 - alpha`.
    """
    if not logits:
        y = tf.clip_by_value(y, _PROBABILITY, 1 - _PROBABILITY)
        y = tf.math.log(y) - tf.math.log(1 - y)
    y = y / TEMPERATURE
    noise = tf.random.stateless_uniform(tf.shape(y), seed)
    drawn = tf.cast(noise < tf.stop_gradient(tf.sigmoid(y)), tf.float32)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=drawn, logits=y)
    if gamma or alpha is not None:
        weights = tf.abs(drawn - tf.sigmoid(y)) ** gamma
        if alpha is not None:
            weights *= drawn * alpha + (1 - drawn) * (1 - alpha)
        losses *= tf.sqrt(tf.stop_gradient(weights))
    return TEMPERATURE * tf.reduce_sum(losses)


def drawn_poisson(y: Any, seed: Any) -> Any:
    """Draws Poisson losses, `ŷ - y log ŷ`: where y has the mean ŷ, the curvature is `1 / ŷ`.

    Args:
        y: Expected counts, `(…)`; those that are not above 0 have no curvature.
        seed: Two integers.
    """
    known = tf.stop_gradient(y)
    root = tf.where(known > 0, tf.math.rsqrt(tf.maximum(known, _PROBABILITY)), 0.0)
    return tf.reduce_sum(y * root * tf.random.stateless_normal(tf.shape(y), seed))


def drawn_squared(y: Any, seed: Any, weight: Any = 0.5) -> Any:
    """Draws squared errors, `weight (ŷ - y)²`, of the curvature `2 weight`.

    Args:
        y: `(…, entries)`.
        seed: Two integers.
        weight: A number, or one for each entry.
    """
    root = tf.sqrt(2 * tf.cast(weight, tf.float32))
    return tf.reduce_sum(y * root * tf.random.stateless_normal(tf.shape(y), seed))


def softened(y: Any, activation: str, axis: int = -1) -> Any:
    """The output of a softmax or sigmoid at a temperature, scaled up by it; others as they are.

    Args:
        y: Probabilities, `(…, classes)`, or any other output.
        activation: What makes it, one of `ENDS` or `""`.
        axis: The axis of the classes.
    """
    if activation == "softmax":
        logits = tf.math.log(tf.maximum(y, _TINY))
        return TEMPERATURE * tf.nn.softmax(logits / TEMPERATURE, axis)
    if activation == "sigmoid":
        y = tf.clip_by_value(y, _PROBABILITY, 1 - _PROBABILITY)
        return TEMPERATURE * tf.sigmoid((tf.math.log(y) - tf.math.log(1 - y)) / TEMPERATURE)
    return y


def secant_curvature(loss: Callable[[Any], Any], y: Any, step: Any, seed: Any) -> Any:
    """Measures the diagonal of a loss's second derivative, over a finite step.

    With random signs `v_j = ± step_j`, the mean of `v_j (∂L(ŷ + v) - ∂L(ŷ - v))_j / 2 step_j²` is
    the second derivative by ŷ_j (Bekas, Kokiopoulou, Saad 2007, "An estimator for the diagonal of a
    matrix"), averaged over the step. So a loss with a kink, as |ŷ - y|, has a curvature too:
    `1 / step` at the kink.

    Args:
        loss: A function of the predictions, the mean over the batch.
        y: Predictions, `(batch, …, entries)`.
        step: How far to go, `(entries,)`.
        seed: Two integers.

    Returns:
        The curvature of each sample's own loss, as `y`.
    """
    signs = tf.random.stateless_uniform(tf.shape(y), seed, 0, 2, tf.int32)
    v = step * (2 * tf.cast(signs, tf.float32) - 1)

    def gradient(at: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            value = loss(at)
        return tape.gradient(value, at, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    batch = tf.cast(tf.shape(y)[0], tf.float32)
    return batch * v * (gradient(y + v) - gradient(y - v)) / (2 * step**2)
