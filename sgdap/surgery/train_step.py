"""Puts steps around a model's train step for the time of one `fit`; leaves a plain model behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sgdap.surgery.adopt import remake_functions

Around = Callable[[Callable[[Any], Any], Any], Any]
"""A step around another one: it takes that one and the batch, and returns what that one returns."""


def put_around_train_step(model: Any, around: Around) -> None:
    """Puts a step around the train step of a model that is in its `fit`.

    Several may be around it, each around those that came before. They are taken away by
    `take_from_train_step`, when the train function raises, and when the next `fit` or
    `train_on_batch` begins, if an error elsewhere ended this one. A `train_step` that is called by
    hand, not by this `fit`, is the model's own at all times.

    Args:
        model: The compiled model.
        around: The step. Keras compiles the train function anew.
    """
    stepped = _stepped(model)
    if stepped is None:
        stepped = _Stepped(model)
        model.train_step = stepped
        model.make_train_function = stepped.make_train_function
    stepped.around.append(around)
    model.make_train_function(force=True)


def take_from_train_step(model: Any, around: Around) -> None:
    """Takes a step away that was put around a model's train step, if it is there still."""
    stepped = _stepped(model)
    if stepped is None or around not in stepped.around:
        return
    stepped.around.remove(around)
    if stepped.around:
        remake_functions(model)
    else:
        stepped.give_back()


def give_back_train_step(model: Any) -> None:
    """Takes all steps away that were put around a model's train step."""
    stepped = _stepped(model)
    if stepped is not None:
        stepped.give_back()


def _stepped(model: Any) -> _Stepped | None:
    found = vars(model).get("train_step")
    return found if isinstance(found, _Stepped) else None


class _Stepped:
    """A model's train step with others around it.

    Attributes:
        around: The steps, the innermost first.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._own = {name: vars(model).get(name) for name in ("train_step", "make_train_function")}
        self._train_step = model.train_step
        self._make = model.make_train_function
        self.around: list[Around] = []
        self._in_fit = False

    def __call__(self, data: Any) -> Any:
        step = self._train_step
        for around in self.around if self._in_fit else ():  # else it is called by hand
            step = partial(around, step)
        return step(data)

    def make_train_function(self, force: bool = False) -> None:
        """Makes the train function; if that is not forced, another `fit` begins."""
        if not force:
            self.give_back()
            self._model.make_train_function()
            return
        self._make(force=True)
        self._model.train_function = partial(self._guarded, self._model.train_function)

    def give_back(self) -> None:
        """Gives the model its own train step back."""
        for name, own in self._own.items():
            if name in vars(self._model):
                delattr(self._model, name)
            if own is not None:
                setattr(self._model, name, own)
        remake_functions(self._model)

    def _guarded(self, function: Callable[[Any], Any], iterator: Any) -> Any:
        self._in_fit = True
        try:
            return function(iterator)
        except StopIteration:  # the epoch is over
            raise
        except BaseException:
            self.give_back()
            raise
        finally:
            self._in_fit = False
