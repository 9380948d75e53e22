"""Taps a model's train step: a random sample of what passes, without a change to the training."""

from __future__ import annotations

from typing import Any

import keras

from sgdap.statistics.reservoir import Reservoir
from sgdap.surgery.rebuild import remake_functions


class TrainStepTap:
    """Lets each training batch pass through a reservoir on its way to the train step.

    Args:
        model: The compiled model.
        capacity: How many samples are kept.
        seed: Of the choice.

    Attributes:
        reservoir: The samples.
    """

    def __init__(self, model: Any, capacity: int, seed: int) -> None:
        reservoir = self.reservoir = Reservoir(capacity, seed)
        self._model = model
        own = vars(model).get("train_step")
        if own is not None:  # a user's, or the tap of a run that was interrupted
            del model.train_step
            own = getattr(own, "own_train_step", own)
            if own is not None:
                model.train_step = own
        self._own = own
        train_step = model.train_step

        def tapped(data: Any) -> Any:
            reservoir.update(_inputs_of(data))
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


def _inputs_of(data: Any) -> Any:
    try:
        return keras.utils.unpack_x_y_sample_weight(data)[0]
    except ValueError as error:
        raise ValueError(
            "The batches of this run are not of the form x, (x, y) or (x, y, sample_weight), so "
            "SGDAPCallback can't tell the model's inputs. Pass calibration_data to it."
        ) from error
