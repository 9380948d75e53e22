"""Puts steps around a model's own for the time of one `fit`; leaves a plain model behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from sgdap import _keras
from sgdap.surgery.adopt import remake_functions

Around = Callable[[Callable[[Any], Any], Any], Any]
"""A step around another one: it takes that one and the batch, and returns what that one returns."""


Kind = Literal["train", "test", "predict"]
"""Whose step it is: that of `fit`, `evaluate` or `predict`."""


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
    _put(model, "train", around)
    model.make_train_function(force=True)


def put_around_step(model: Any, kind: Kind, around: Around) -> None:
    """Puts a step around that of `evaluate` or `predict` of a model that is in its `fit`.

    Where no `fit` of the model runs when `evaluate` or `predict` is called, an error ended it, and
    all steps around this one are taken away.

    Args:
        model: The compiled model.
        kind: `"test"` or `"predict"`.
        around: The step. Keras compiles the function anew when it is called.
    """
    _put(model, kind, around)
    setattr(model, f"{kind}_function", None)


def _put(model: Any, kind: Kind, around: Around) -> None:
    stepped = _stepped(model, kind)
    if stepped is None:
        stepped = _Stepped(model, kind)
        setattr(model, f"{kind}_step", stepped)
        setattr(model, f"make_{kind}_function", stepped.make_function)
    stepped.around.append(around)


def take_from_train_step(model: Any, around: Around) -> None:
    """Takes a step away that was put around a model's train step, if it is there still."""
    take_from_step(model, "train", around)


def take_from_step(model: Any, kind: Kind, around: Around) -> None:
    """Takes a step away that was put around a step of a model, if it is there still."""
    stepped = _stepped(model, kind)
    if stepped is None or around not in stepped.around:
        return
    stepped.around.remove(around)
    if stepped.around:
        remake_functions(model)
    else:
        stepped.give_back()


def give_back_train_step(model: Any) -> None:
    """Takes all steps away that were put around a model's train step."""
    stepped = _stepped(model, "train")
    if stepped is not None:
        stepped.give_back()


def _stepped(model: Any, kind: Kind) -> _Stepped | None:
    found = vars(model).get(f"{kind}_step")
    return found if isinstance(found, _Stepped) else None


class _Stepped:
    """A step of a model with others around it.

    Attributes:
        around: The steps, the innermost first.
    """

    def __init__(self, model: Any, kind: Kind) -> None:
        self._model, self._kind = model, kind
        self._names = f"{kind}_step", f"make_{kind}_function", f"{kind}_function"
        self._own = {name: vars(model).get(name) for name in self._names[:2]}
        self._step, self._make = (getattr(model, name) for name in self._names[:2])
        self.around: list[Around] = []
        self._runs = False

    def __call__(self, data: Any) -> Any:
        step = self._step
        for around in self.around if self._runs else ():  # else it is called by hand
            step = partial(around, step)
        return step(data)

    def make_function(self, force: bool = False) -> None:
        """Makes the function of the step; gives it back where the `fit` is over.

        Keras forces no train function when another `fit` begins, and no other one at any time.
        """
        _, make, function = self._names
        over = self._kind == "train" or _keras.training_data(self._model) is None
        if not force and over:
            self.give_back()
            getattr(self._model, make)()
        elif force or getattr(self._model, function) is None:
            self._make(force=True)
            made = partial(self._guarded, getattr(self._model, function))
            setattr(self._model, function, made)

    def give_back(self) -> None:
        """Gives the model its own step back."""
        for name, own in self._own.items():
            if name in vars(self._model):
                delattr(self._model, name)
            if own is not None:
                setattr(self._model, name, own)
        remake_functions(self._model)

    def _guarded(self, function: Callable[[Any], Any], iterator: Any) -> Any:
        self._runs = True
        try:
            return function(iterator)
        except StopIteration:  # the epoch is over
            raise
        except BaseException:
            self.give_back()
            raise
        finally:
            self._runs = False
