"""Adopts a prepared change in a model, whole or not at all; computes nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import keras

from sgdap import _keras
from sgdap.execution.emptying import emptying
from sgdap.model.program import Shape


@dataclass(frozen=True, eq=False)
class Change:
    """A prepared change of a model, not adopted yet.

    It fits only the model in the state that it was prepared from.

    Attributes:
        insides: Pairs of an object of the model (layer, operation, variable or optimizer) and a
            new object of its kind. The old object takes over the new one's attributes.
        arguments: Keras' nodes of calls whose arguments change, each with its new positional and
            keyword arguments.
        shapes: Symbolic tensors of the model and their new shapes.
        composites: Layers and models that hold others, whose stored build shapes are outdated.
        leaving: The backend's variables that will be in no part of the model.
        entries: Other objects of the model and the attributes that they get at last.
    """

    insides: tuple[tuple[Any, Any], ...] = ()
    arguments: tuple[tuple[Any, tuple[Any, ...], dict[str, Any]], ...] = ()
    shapes: tuple[tuple[keras.KerasTensor, Shape], ...] = ()
    composites: tuple[Any, ...] = ()
    leaving: tuple[Any, ...] = ()
    entries: tuple[tuple[Any, Mapping[str, Any]], ...] = ()


def adopt(model: Any, change: Change) -> None:
    """Changes a model in place. If it is interrupted, nothing has changed.

    The model, its layers, variables and optimizers stay the same objects. Keras compiled the
    train, test and predict functions for the old variables; they are made again when next called.
    All other functions that were compiled with the old variables (a `tf.function` of the user's,
    those of another model on the same layers) fail from now on: these variables are emptied.

    Args:
        model: The model.
        change: The change that was prepared for it.
    """
    attributes = _Attributes()
    for old, new in change.insides:
        # Keras' wrappers around `new`, such as its wrapped `build`, must act on `old` from now on.
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
    for changed, given in change.entries:
        attributes.of(changed).update(given)
    _remake_functions(model, attributes)
    empty = emptying(change.leaving)
    attributes.exchange()
    empty()


def remake_functions(model: Any) -> None:
    """Replaces the train, test and predict functions that exist, so that they are compiled again.

    Those of models inside the model are dropped; Keras makes them when they are needed.

    Args:
        model: The model.
    """
    attributes = _Attributes()
    _remake_functions(model, attributes)
    attributes.exchange()


class _Attributes:
    """The future attributes of all objects that change."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, dict[str, Any]]] = {}

    def of(self, changed: Any) -> dict[str, Any]:
        """The future attributes of an object, to be edited; at first a copy of the present ones."""
        return self._found.setdefault(id(changed), (changed, dict(vars(changed))))[1]

    def share(self, first: Any, second: Any, attributes: dict[str, Any]) -> None:
        """Makes two objects share one dict of attributes."""
        self._found[id(first)], self._found[id(second)] = (first, attributes), (second, attributes)

    def exchange(self) -> None:
        """Gives all objects their future attributes in one uninterruptible step.

        Python handles interrupts between instructions of Python code, never inside one call of a
        C function. So at no time have only some of the objects changed.
        """
        objects = [changed for changed, _ in self._found.values()]
        attributes = [entries for _, entries in self._found.values()]
        before = [vars(changed) for changed in objects]  # freeing them may run code
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
    """A placeholder that, on its first call, makes the model's real function and calls that."""

    def function(iterator: Iterator[Any]) -> Any:
        getattr(model, f"make_{kind}_function")(force=True)
        return getattr(model, f"{kind}_function")(iterator)

    return function
