"""The loss of a model on stored samples and its gradient by some variables; it changes none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.channels.groups import ChannelGraph
from sgdap.execution.compiled import traced_for_any_batch
from sgdap.execution.curvature import drawn_loss
from sgdap.execution.inputs import input_batches
from sgdap.execution.losses import KnownLoss
from sgdap.execution.precision import full_precision

Array = npt.NDArray[np.float64]
Loss = Callable[[Any, Any, Any, Any], Any]
"""Of a batch's inputs, targets, outputs and sample weights, in Keras' structure: a mean."""


class StoredLoss:
    """The mean loss of a model, run as `predict` runs it, on samples in memory.

    Args:
        model: The model.
        variables: Its variables by which gradients are taken.
        data: Inputs, targets and sample weights as arrays, in Keras' structure; the last two may
            be None.
        loss: The loss of a batch.
        batch_size: Samples in a batch.
    """

    def __init__(
        self,
        model: Any,
        variables: Sequence[Any],
        data: tuple[Any, Any, Any],
        loss: Loss,
        batch_size: int,
    ) -> None:
        self._variables = variables
        self._data, self._batch = data, batch_size
        self._samples = len(keras.tree.flatten(data[0])[0])

        def value(x: Any, y: Any, weight: Any) -> Any:
            return tf.cast(loss(x, y, model(x, training=False), weight), tf.float32)

        def both(x: Any, y: Any, weight: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                own = [variable.value for variable in variables]
                tape.watch(own)
                made = value(x, y, weight)
            zero = tf.UnconnectedGradients.ZERO
            found = tape.gradient(made, own, unconnected_gradients=zero)
            return made, [tf.convert_to_tensor(gradient) for gradient in found]

        value(*next(self._batches())[0])  # metrics are made outside of compiled functions
        self._traced: dict[Any, Any] = {}
        self._value = tf.function(value, autograph=False)
        self._both = tf.function(both, autograph=False)

    def value(self) -> float:
        """The mean loss over all samples."""
        with full_precision():
            pairs = self._batches()
            return sum(share * float(self._run(self._value, batch)) for batch, share in pairs)

    def value_and_gradients(self) -> tuple[float, list[Array]]:
        """The mean loss and its gradients by the variables."""
        total, sums = 0.0, [np.zeros(tuple(v.shape)) for v in self._variables]
        with full_precision():
            for batch, share in self._batches():
                made, found = self._run(self._both, batch)
                total += share * float(made)
                for own, gradient in zip(sums, found, strict=True):
                    own += share * np.asarray(gradient, np.float64)
        return total, sums

    def _run(self, function: Any, batch: Any) -> Any:
        """Runs what is traced for each shape; TensorFlow warns of functions made many times."""
        if tf.config.functions_run_eagerly():
            return function(*batch)
        shapes = [tuple(own.shape) for own in keras.tree.flatten(batch) if own is not None]
        key = (id(function), *shapes)
        if key not in self._traced:
            self._traced[key] = function.get_concrete_function(*batch)
        return self._traced[key](*batch)

    def _batches(self) -> Iterator[tuple[Any, float]]:
        for start in range(0, self._samples, self._batch):
            stop = min(start + self._batch, self._samples)
            batch = keras.tree.map_structure(
                lambda own, start=start, stop=stop: (
                    None if own is None else tf.convert_to_tensor(own[start:stop])
                ),
                self._data,
            )
            yield batch, (stop - start) / self._samples


def gradient_powers(
    graph: ChannelGraph,
    variables: Sequence[Any],
    losses: Sequence[KnownLoss],
    data: Any,
    *,
    batch_size: int,
    samples: int | None,
    seed: int,
) -> list[Array]:
    """The mean square of the gradient of each variable's entries, over the samples.

    Targets are drawn from the model's own predictions, as for the sensitivity. So gradients of
    several samples cancel out in the mean, and the square of a batch's sum is the sum of squares:
    the diagonal of the Fisher information (Martens & Grosse 2015, arXiv 1503.05671, section 2).

    Args:
        graph: The channels of the model.
        variables: Its variables.
        losses: What errors of its outputs count.
        data: Inputs as `collect_statistics` takes them.
        batch_size: Samples in a batch.
        samples: Stop after this many samples; None takes all.
        seed: Seed for the targets.

    Returns:
        For each variable the mean squares, in its shape.
    """
    program = graph.program

    def squares(x: list[Any], number: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            own = [variable.value for variable in variables]
            tape.watch(own)
            made = program.run_flat(x)
            drawn = [
                drawn_loss(loss, made[loss.output], tf.stack([seed + i, number]))
                for i, loss in enumerate(losses)
            ]
            total = tf.add_n(drawn)
        zero = tf.UnconnectedGradients.ZERO
        found = tape.gradient(total, own, unconnected_gradients=zero)
        return [tf.square(tf.cast(tf.convert_to_tensor(g), tf.float32)) for g in found]

    run = traced_for_any_batch([program.shapes[ref.index] for ref in program.inputs], squares)
    sums = [np.zeros(tuple(variable.shape)) for variable in variables]
    seen = 0
    with full_precision():
        for number, x in input_batches(graph, data, batch_size, samples, batch_size):
            for own, found in zip(sums, run(x, tf.constant(number)), strict=True):
                own += np.asarray(found)
            seen += int(x[0].shape[0])
    return [own / max(seen, 1) for own in sums]
