"""Which layer classes a program keeps as single calls: those that rules are registered for."""

from __future__ import annotations

from typing import Any

_CLASSES: set[type] = set()


def is_of_keras(operation: Any) -> bool:
    """Whether a layer, model or operation is of one of Keras' own classes."""
    return type(operation).__module__.split(".")[0] == "keras"


def add_leaves(*layer_classes: type) -> None:
    """Makes layers of some classes single calls of a program, whatever their `call` does."""
    _CLASSES.update(layer_classes)


def leaf_class(operation: Any) -> type | None:
    """The registered class whose `call` and `build` a layer or operation has, or None.

    A subclass counts as its registered base class only while it keeps `call` and `build`.
    """
    layer_class = type(operation)
    for base in layer_class.__mro__:
        if base in _CLASSES:
            same = all(
                getattr(layer_class, name, None) is getattr(base, name, None)
                for name in ("call", "build")
            )
            return base if same else None
    return None
