"""How far outputs of a slim model are from the whole one's, in the unit of the model's loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.execution.curvature import softened
from sgdap.execution.losses import KnownLoss

_TINY = 1e-30
_PROBABILITY = 1e-7


def rises(
    losses: Sequence[KnownLoss], runs: Iterable[tuple[list[Any], list[Any]]]
) -> npt.NDArray[np.float64]:
    """The rise of a model's loss from the outputs of one model to those of another.

    The targets are the first one's predictions, so that the rise is 0 for the same outputs and
    never below: the Kullback-Leibler divergence for cross-entropies, squared errors else.

    Args:
        losses: What errors of the outputs count.
        runs: Both models' outputs of each batch, flattened.

    Returns:
        The rise at each sample, `(samples,)`.
    """
    found = [
        sum(rise_of(own, targets[own.output], made[own.output]) for own in losses)
        for targets, made in runs
    ]
    return np.concatenate(found) if found else np.zeros(0)


def rise_of(loss: KnownLoss, y: Any, z: Any) -> npt.NDArray[np.float64]:
    """The rise of a term of the loss from the prediction y to z, at each sample, `(batch,)`.

    Args:
        loss: The term.
        y: The output that is the target, `(batch, …)`.
        z: The output that is judged, as `y`.
    """
    y, z = tf.cast(y, tf.float32), tf.cast(z, tf.float32)
    if loss.kind in ("categorical", "bernoulli"):
        each = softened_divergence(loss.kind, logits_of(loss, y), logits_of(loss, z))
    elif loss.kind == "poisson":
        each = poisson_divergence(y, z)
    else:
        apart = [softened(own, loss.activation, loss.axis) for own in (y, z)]
        each = (apart[1] - apart[0]) ** 2
    each *= tf.cast(loss.weight, tf.float32)
    each = each.numpy().astype(np.float64).reshape(len(each), -1)
    found: npt.NDArray[np.float64] = each.sum(1) if loss.summed else each.mean(1)
    return found


def softened_divergence(kind: str, y: Any, z: Any, temperature: float = 1.0) -> Any:
    """The Kullback-Leibler divergence of distributions at a temperature, times its square.

    `T² Σ p log(p / q)` with `p = softmax(y / T)` and `q = softmax(z / T)`: its gradient by z is of
    the same size at all temperatures (Hinton, Vinyals, Dean 2015, "Distilling the knowledge in a
    neural network"). Of a Bernoulli distribution it is that of each entry.

    Args:
        kind: `"categorical"` or `"bernoulli"`.
        y: Logits of the target, `(…, classes)`.
        z: Logits that are judged, as `y`.
        temperature: The temperature.

    Returns:
        `(…)` for a categorical distribution, and as `y` for a Bernoulli one.
    """
    y, z = y / temperature, z / temperature
    if kind == "categorical":
        p, q = tf.nn.log_softmax(y), tf.nn.log_softmax(z)
        each = tf.reduce_sum(tf.exp(p) * (p - q), -1)
    else:
        cross = [
            tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.sigmoid(y), logits=own)
            for own in (z, y)
        ]
        each = cross[0] - cross[1]
    return temperature**2 * each


def poisson_divergence(y: Any, z: Any) -> Any:
    """The Kullback-Leibler divergence of Poisson distributions of rates y and z, as these."""
    y, z = tf.maximum(y, _PROBABILITY), tf.maximum(z, _PROBABILITY)
    return z - y - y * tf.math.log(z / y)


def logits_of(loss: KnownLoss, y: Any) -> Any:
    """The logits of a categorical or Bernoulli output, the classes on the last axis.

    Args:
        loss: What the output is.
        y: The output. Of probabilities the logits are known but for a constant.
    """
    if loss.kind == "bernoulli":
        return y if loss.logits else _bernoulli_logits(y)
    y = keras.ops.moveaxis(y, loss.axis, -1)
    return y if loss.logits else tf.math.log(tf.maximum(y, _TINY))


def _bernoulli_logits(y: Any) -> Any:
    y = tf.clip_by_value(y, _PROBABILITY, 1 - _PROBABILITY)
    return tf.math.log(y) - tf.math.log(1 - y)
