"""How far outputs of a slim model are from the whole one's, in the unit of the model's loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.execution.compiled import traced_for_any_batch
from sgdap.execution.curvature import softened
from sgdap.execution.inputs import input_batches
from sgdap.execution.losses import KnownLoss

_TINY = 1e-30
_PROBABILITY = 1e-7


class Divergence:
    """The rise of a model's loss when some of its variables have other values.

    The targets are the model's own predictions, so that the rise is 0 for its own values and never
    below: the Kullback-Leibler divergence for cross-entropies, squared errors else.

    Args:
        graph: The model's channels.
        data: Inputs, as for `collect_statistics`.
        losses: What errors of the outputs count.
        keys: The variables that may have other values, by path of the layer and number.
        most: Batches of more samples are cut into several.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        data: Any,
        losses: Sequence[KnownLoss],
        keys: Iterable[tuple[str, int]],
        most: int = 256,
    ) -> None:
        program = graph.program
        self._losses = losses
        self._variables = {key: variable_of(program, key) for key in keys}
        shapes = [program.shapes[ref.index] for ref in program.inputs]

        def step(inputs: list[Any], values: list[Any]) -> list[Any]:
            mapping = list(zip(self._variables.values(), values, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                known = dict(zip((ref.index for ref in program.inputs), inputs, strict=True))
                program.advance(known, None, 0)
            return [known[ref.index] for ref in program.outputs]

        self._step = traced_for_any_batch(shapes, step)
        own = self._values({})
        self._batches = [
            (inputs, self._step(inputs, own))
            for _, inputs in input_batches(graph, data, most, None, most)
        ]

    def of(self, values: Mapping[tuple[str, int], npt.NDArray[Any]]) -> float:
        """The rise of the loss, the mean over the samples.

        Args:
            values: The values of variables, in their shapes; others keep their own.
        """
        given = self._values(values)
        total, samples = 0.0, 0
        for inputs, targets in self._batches:
            size = int(inputs[0].shape[0])
            made = self._step(inputs, given)
            rises = [rise_of(o, targets[o.output], made[o.output]) for o in self._losses]
            total += size * float(np.sum(rises))
            samples += size
        return total / max(samples, 1)

    def _values(self, values: Mapping[tuple[str, int], npt.NDArray[Any]]) -> list[Any]:
        return [
            tf.cast(tf.constant(values[key] if key in values else variable.numpy()), variable.dtype)
            for key, variable in self._variables.items()
        ]


def rise_of(loss: KnownLoss, y: Any, z: Any) -> float:
    """The rise of a term of the loss from the prediction y to z, the mean over the samples.

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
    per_sample = tf.reduce_sum(each) / tf.cast(tf.shape(y)[0], tf.float32)
    return float(per_sample if loss.summed else tf.reduce_mean(each))


def _log_probabilities(y: Any, logits: bool) -> Any:
    return tf.nn.log_softmax(y if logits else tf.math.log(tf.maximum(y, _TINY)))


def _logits(y: Any) -> Any:
    y = tf.clip_by_value(y, _PROBABILITY, 1 - _PROBABILITY)
    return tf.math.log(y) - tf.math.log(1 - y)
