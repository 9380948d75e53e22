"""Taps a model's train step: a random sample of what passes, without a change to the training."""

from __future__ import annotations

from typing import Any

import keras

from sgdap.channels.groups import ChannelGraph
from sgdap.execution.inputs import checked_inputs
from sgdap.surgery.adopt import remake_functions
from sgdap.training.reservoir import Reservoir


class TrainStepTap:
    """Lets each training batch pass through a reservoir on its way to the train step.

    Args:
        graph: The channels of the compiled model.
        capacity: How many samples are kept.
        seed: Of the choice.

    Attributes:
        reservoir: The samples.
    """

    def __init__(self, graph: ChannelGraph, capacity: int, seed: int) -> None:
        reservoir = self.reservoir = Reservoir(capacity, seed)
        model = graph.program.model
        self._model = model
        own = vars(model).get("train_step")
        if own is not None:  # a user's, or the tap of a run that was interrupted
            del model.train_step
            own = getattr(own, "own_train_step", own)
            if own is not None:
                model.train_step = own
        self._own = own
        self._checked = False
        train_step = model.train_step

        def tapped(data: Any) -> Any:
            reservoir.update(self._inputs_of(data, graph))
            return train_step(data)

        tapped.own_train_step = own  # type: ignore[attr-defined]
        model.train_step = tapped
        model.make_train_function(force=True)

    def remove(self) -> None:
        """Gives the model its own train step back."""
        del self._model.train_step
        if self._own is not None:
            self._model.train_step = self._own
        remake_functions(self._model)

    def _inputs_of(self, data: Any, graph: ChannelGraph) -> Any:
        """The inputs of a batch; those of the first one must be such that the model takes them."""
        try:
            x = keras.utils.unpack_x_y_sample_weight(data)[0]
            if not self._checked:
                _check(graph, x)
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
