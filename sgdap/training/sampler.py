"""Keeps a random sample of what passes through a model's train step, which trains as before."""

from __future__ import annotations

from typing import Any

import keras

from sgdap.channels.groups import ChannelGraph
from sgdap.execution.inputs import checked_inputs
from sgdap.surgery.adopt import remake_functions
from sgdap.training.reservoir import HOST, Reservoir


class TrainStepSampler:
    """Lets each training batch pass through a reservoir on its way to the train step.

    The sample lies in the host's memory. A train step that XLA compiles can't reach that from an
    accelerator, so there the sample lies beside the model.

    Args:
        graph: The channels of the compiled model.
        reservoir: What keeps the samples.
    """

    def __init__(self, graph: ChannelGraph, reservoir: Reservoir) -> None:
        self.reservoir = reservoir
        self._graph = graph
        self._model = graph.program.model
        self._own: Any = None
        self._checked = False

    def install(self) -> None:
        """Gives the model a train step that keeps samples."""
        model = self._model
        own = vars(model).get("train_step")
        if own is not None:  # a user's, or that of a run that was interrupted
            del model.train_step
            own = getattr(own, "own_train_step", own)
            if own is not None:
                model.train_step = own
        self._own = own
        train_step = model.train_step

        def sampled(data: Any) -> Any:
            device = None if model.jit_compile else HOST
            self.reservoir.update(self._inputs_of(data), device)
            return train_step(data)

        sampled.own_train_step = own  # type: ignore[attr-defined]
        model.train_step = sampled
        model.make_train_function(force=True)

    def remove(self) -> None:
        """Gives the model its own train step back."""
        del self._model.train_step
        if self._own is not None:
            self._model.train_step = self._own
        remake_functions(self._model)

    def _inputs_of(self, data: Any) -> Any:
        """The inputs of a batch; those of the first one must be such that the model takes them."""
        try:
            x = keras.utils.unpack_x_y_sample_weight(data)[0]
            if not self._checked:
                _check(self._graph, x)
                self._checked = True
        except ValueError as error:
            raise ValueError(
                "The batches of this run are not of the form x, (x, y) or (x, y, sample_weight) "
                "with x as the model takes it, so SGDAPCallback can't tell the model's inputs. "
                "Pass calibration_data to it."
            ) from error
        return x


def _check(graph: ChannelGraph, x: Any) -> None:
    import tensorflow as tf

    if any(None in leaf.shape[1:] for leaf in keras.tree.flatten(x)):
        return  # the reservoir says so
    with tf.init_scope():
        sample = keras.tree.map_structure(lambda t: tf.zeros([1, *t.shape[1:]], t.dtype), x)
        checked_inputs(graph, sample)
