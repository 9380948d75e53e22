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
    if loss.kind == "categorical":
        p, q = (
            _log_probabilities(keras.ops.moveaxis(o, loss.axis, -1), loss.logits) for o in (y, z)
        )
        each = loss.weight * tf.reduce_sum(tf.exp(p) * (p - q), -1)
    elif loss.kind == "bernoulli":
        y, z = (own if loss.logits else _logits(own) for own in (y, z))
        cross = [
            tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.sigmoid(y), logits=own)
            for own in (z, y)
        ]
        each = loss.weight * (cross[0] - cross[1])
    elif loss.kind == "poisson":
        y, z = tf.maximum(y, _PROBABILITY), tf.maximum(z, _PROBABILITY)
        each = loss.weight * (z - y - y * tf.math.log(z / y))
    else:
        apart = softened(z, loss.activation) - softened(y, loss.activation)
        each = apart**2 * tf.cast(loss.weight, tf.float32)
    each = each.numpy().astype(np.float64).reshape(len(each), -1)
    found: npt.NDArray[np.float64] = each.sum(1) if loss.summed else each.mean(1)
    return found


def _log_probabilities(y: Any, logits: bool) -> Any:
    return tf.nn.log_softmax(y if logits else tf.math.log(tf.maximum(y, _TINY)))


def _logits(y: Any) -> Any:
    y = tf.clip_by_value(y, _PROBABILITY, 1 - _PROBABILITY)
    return tf.math.log(y) - tf.math.log(1 - y)
