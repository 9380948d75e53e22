"""Feeds the training batches of a model to a reservoir; never changes how the model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from sgdap.channels.groups import ChannelGraph
from sgdap.execution.inputs import checked_inputs
from sgdap.surgery.train_step import put_around_train_step, take_from_train_step
from sgdap.training.reservoir import HOST, Reservoir


class TrainStepSampler:
    """Wraps a model's train step, so that each batch is offered to a reservoir first.

    The sample is in the host's memory. A train step that XLA compiles for an accelerator can't
    reach that memory; then the sample is on the model's device.

    Args:
        graph: The channels of the compiled model.
        reservoir: The reservoir that keeps the samples.
        targets: Whether the inputs' targets are kept too, where their shape is known.
        first: Inputs and targets that are the sample until there is a batch.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        reservoir: Reservoir,
        targets: bool = False,
        first: tuple[Any, Any] | None = None,
    ) -> None:
        self.reservoir = reservoir
        self._first = first
        self._targets = targets
        self._graph = graph
        self._model = graph.program.model
        self._checked = False

    def install(self) -> None:
        """Replaces the model's train step by one that samples the batches."""
        put_around_train_step(self._model, self._sampled)

    def remove(self) -> None:
        """Gives the model its own train step back."""
        take_from_train_step(self._model, self._sampled)

    def _sampled(self, step: Callable[[Any], Any], data: Any) -> Any:
        device = None if self._model.jit_compile else HOST
        try:
            self.reservoir.update(self._kept_of(data), device)
        except ValueError:  # of these batches no sample can be kept: the model trains without
            self.remove()
            raise
        return step(data)

    def sample(self) -> tuple[Any, ...]:
        """The inputs that are kept, and their targets if they are: `(x,)` or `(x, y)`.

        Raises:
            ValueError: No batch was seen yet.
        """
        if self._first is not None and not self.reservoir.seen:
            return self._first if self._targets else self._first[:1]
        kept = self.reservoir.sample()
        return tuple(kept) if self._targets else (kept,)  # x alone may have any structure

    def _kept_of(self, data: Any) -> Any:
        """What is kept of a batch. The inputs of the first batch are checked to fit the model."""
        try:
            x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
            x = _of_known_sizes(self._graph, x)
            if not self._checked:
                _check(self._graph, x)
                self._checked = True
        except ValueError as error:
            raise ValueError(
                "The batches of this run are not of the form x, (x, y) or (x, y, sample_weight) "
                "with x as the model takes it, so the callback can't tell the model's inputs. Pass "
                "calibration_data to it."
            ) from error
        if not self._targets:
            return x
        known = y is not None and not any(
            leaf is None or leaf.shape.rank is None or None in leaf.shape[1:]
            for leaf in keras.tree.flatten(y)
        )
        return (x, y) if known else (x,)


def _of_known_sizes(graph: ChannelGraph, x: Any) -> Any:
    """Inputs with the sizes that the model takes, where the data leave them open (windows)."""
    import tensorflow as tf

    def closed(leaf: Any, taken: Any) -> Any:
        if not isinstance(leaf, tf.Tensor):
            return leaf
        known = leaf.shape.rank is not None and None not in leaf.shape[1:]
        return leaf if known else tf.ensure_shape(leaf, [None, *taken.shape[1:]])

    functional = graph.program.functional
    if functional is None:
        return x
    try:
        return keras.tree.map_structure(closed, x, functional.input)
    except (ValueError, TypeError):  # of another structure, or of another rank
        return x


def _check(graph: ChannelGraph, x: Any) -> None:
    import tensorflow as tf

    if any(None in leaf.shape[1:] for leaf in keras.tree.flatten(x)):
        return  # the reservoir says so
    with tf.init_scope():
        sample = keras.tree.map_structure(lambda t: tf.zeros([1, *t.shape[1:]], t.dtype), x)
        checked_inputs(graph.program, sample)
