"""Gives the objects of a model what a prepared change holds, all at once; computes nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.program import Shape


@dataclass(frozen=True, eq=False)
class Change:
    """What becomes of a model, computed from the model as it is; nothing of it has changed yet.

    It belongs to the model as it was when the change was prepared.

    Attributes:
        insides: Layers, operations, variables and optimizers that change, each with one that was
            made for it and whose inside it gets.
        arguments: Keras' records of calls whose arguments change, with the positional and the
            keyword arguments.
        shapes: Symbolic tensors of the model and their new shapes.
        composites: Layers and models that were built with shapes that are no longer true.
    """

    insides: tuple[tuple[Any, Any], ...] = ()
    arguments: tuple[tuple[Any, tuple[Any, ...], dict[str, Any]], ...] = ()
    shapes: tuple[tuple[keras.KerasTensor, Shape], ...] = ()
    composites: tuple[Any, ...] = ()


def adopt(model: Any, change: Change) -> None:
    """Changes a model in place, as a whole or, where it is interrupted, not at all.

    The model, its layers, variables and optimizers stay the same objects. Its train, test and
    predict functions, which Keras compiled for the old variables, are made anew when they are
    next called.

    Args:
        model: The model.
        change: What was prepared for it.
    """
    attributes = _Attributes()
    for old, new in change.insides:
        # What Keras made over `new` (its wrapped `build`, say) acts on `old` from now on.
        attributes.share(old, new, _keras.with_inside(old, new))
    for node, args, kwargs in change.arguments:
        attributes.of(node).update(_keras.with_arguments(node, args, kwargs))
    for tensor, shape in change.shapes:
        for changed, entries in _keras.with_shape(tensor, shape):
            attributes.of(changed).update(entries)
    for composite in change.composites:
        attributes.of(composite).update(_keras.NOT_BUILT_WITH_SHAPES)
    layers = [pair for pair in change.insides if isinstance(pair[0], keras.Layer)]
    attributes.of(model).update(_keras.with_trainable_state(model, layers))
    _remake_functions(model, attributes)
    attributes.exchange()


def remake_functions(model: Any) -> None:
    """Lets the train, test and predict functions be made anew, where they exist.

    Those of models inside the model are dropped; Keras makes them when they are needed.

    Args:
        model: The model.
    """
    attributes = _Attributes()
    _remake_functions(model, attributes)
    attributes.exchange()


class _Attributes:
    """All attributes that objects will have, by object."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, dict[str, Any]]] = {}

    def of(self, changed: Any) -> dict[str, Any]:
        """The future attributes of an object, at first those that it has."""
        return self._found.setdefault(id(changed), (changed, dict(vars(changed))))[1]

    def share(self, first: Any, second: Any, attributes: dict[str, Any]) -> None:
        """Lets two objects have all their attributes in common."""
        self._found[id(first)], self._found[id(second)] = (first, attributes), (second, attributes)

    def exchange(self) -> None:
        """Gives all objects their attributes, in one step.

        Python handles an interruption between two steps of its own code, never within one call of
        a function written in C. So there is no moment at which a part of the objects has changed.
        """
        objects = [changed for changed, _ in self._found.values()]
        attributes = [entries for _, entries in self._found.values()]
        before = [vars(changed) for changed in objects]  # freed afterwards: that may run code
        deque(map(object.__setattr__, objects, repeat("__dict__"), attributes), maxlen=0)
        del before


def _remake_functions(model: Any, attributes: _Attributes) -> None:
    for part in _keras.flatten_layers(model):
        if not isinstance(part, keras.Model):
            continue
        for kind in ("train", "test", "predict"):
            name = f"{kind}_function"
            if vars(part).get(name) is not None:
                made = _made_when_called(part, kind) if part is model else None
                attributes.of(part)[name] = made


def _made_when_called(model: Any, kind: str) -> Callable[[Iterator[Any]], Any]:
    """A function that makes the model's function of a kind, puts it in its place and calls it."""

    def function(iterator: Iterator[Any]) -> Any:
        getattr(model, f"make_{kind}_function")(force=True)
        return getattr(model, f"{kind}_function")(iterator)

    return function
