"""What may be made of the configs in a file: Keras' own and what the user registered, no code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras

_TRUSTED = ("keras", "keras_hub")
"""Packages whose layers and functions may be made from a file without registration."""

_HOMES_OF_FUNCTIONS = ("activations", "initializers", "losses", "metrics", "regularizers")
"""The modules in which Keras looks up functions that are given by name alone."""

NO_LAMBDA = (
    "A lambda can't be kept: reading it would run code of the file. Give the function a name and "
    "register it with @keras.saving.register_keras_serializable()."
)


def is_lambda(value: object) -> bool:
    """Whether something is a function without a name."""
    return getattr(value, "__name__", None) == "<lambda>"


def own_classes(layers: Iterable[object]) -> dict[str, type]:
    """The classes of layers that Keras does not find by itself, by their names.

    Keras' own are left out: a layer and an operation of one name (`Add`) would be taken for each
    other.
    """
    classes = (type(layer) for layer in layers)
    return {c.__name__: c for c in classes if c.__module__.split(".")[0] not in _TRUSTED}


def check_names(entry: Mapping[Any, Any], own: Mapping[str, Any] | None = None) -> None:
    """Raises if a serialised Keras object must not be made again from a file.

    Args:
        entry: A dict of a file, perhaps the config of an object.
        own: Classes and functions that the user passes for it, by their names.

    Raises:
        TypeError: The object is a lambda, or neither Keras' own nor registered.
    """
    kind, module = entry.get("class_name"), entry.get("module")
    if kind == "__lambda__":
        raise TypeError(NO_LAMBDA)
    if not isinstance(kind, str) or "config" not in entry or not isinstance(module, str):
        return
    if module.split(".")[0] in _TRUSTED:
        return
    name = entry.get("registered_name", kind)
    if kind == "function":
        kind = name = entry["config"]
        if any(hasattr(getattr(keras, home), str(name)) for home in _HOMES_OF_FUNCTIONS):
            return
    if keras.saving.get_registered_object(name, dict(own or {})) is None:
        raise TypeError(
            f"'{kind}' is not registered, so it can't be made again from a file. Decorate it with "
            "@keras.saving.register_keras_serializable()."
        )
