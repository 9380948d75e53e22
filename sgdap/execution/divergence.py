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
    if loss.kind in ("categorical", "bernoulli"):
        each = softened_divergence(loss.kind, logits_of(loss, y), logits_of(loss, z))
    elif loss.kind == "poisson":
        each = poisson_divergence(y, z)
    else:
        each = (softened(z, loss.activation) - softened(y, loss.activation)) ** 2
    each *= tf.cast(loss.weight, tf.float32)
    per_sample = tf.reduce_sum(each) / tf.cast(tf.shape(y)[0], tf.float32)
    return float(per_sample if loss.summed else tf.reduce_mean(each))


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
