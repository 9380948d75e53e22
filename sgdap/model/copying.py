"""Makes layers and operations like others: from their configs, else from their attributes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import partial
from types import FunctionType
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.generators import global_state_kept
from sgdap.model.learnt import is_learner, learnt, teach


def made_like(operation: Any, entries: Mapping[str, Any]) -> Any:
    """Makes a layer or operation like another one, not built but for activations with weights.

    Where `get_config` fails or forgets what the class needs, the arguments are read from the
    attributes of the same names.

    Args:
        operation: The layer or operation.
        entries: Entries of the config that change.

    Raises:
        Exception: Whatever its class raises, where neither works.
    """
    new = _made_like(operation, entries)
    if isinstance(operation, keras.Layer) and not isinstance(operation, keras.Model):
        _build_activations(new, operation)
    return new


def _build_activations(new: Any, layer: Any) -> None:
    """Builds activations with weights, which Keras builds when they are called and not before."""
    pairs = zip(_keras.flatten_layers(new), _keras.flatten_layers(layer), strict=False)
    for mine, theirs in list(pairs):
        activation = getattr(theirs, "activation", None)
        if isinstance(activation, keras.Layer) and activation.weights:
            mine.activation.build_from_config(activation.get_build_config())


def _made_like(operation: Any, entries: Mapping[str, Any]) -> Any:
    try:
        new = _from_config(operation, entries)
        told = _from_config(operation, {}) if entries else new
    except Exception:
        other = _from_attributes(operation, entries)
        if other is None:
            raise
        return other
    is_layer = isinstance(operation, keras.Layer) and not isinstance(operation, keras.Model)
    forgotten = _forgotten(operation, told) if is_layer else {}
    other = _from_attributes(operation, entries) if forgotten else None
    if other is not None:
        return other
    if "get_config" in vars(operation):
        _tell_all(new)
    for name, value in forgotten.items():
        setattr(new, name, value)
    return new


def copied_operation(operation: Any, path: str, entries: Mapping[str, Any]) -> Any:
    """Makes a layer or operation like another one, without its weights, for a copy of its model.

    Args:
        operation: The layer or operation.
        path: Its path, for people.
        entries: Entries of the config that change.

    Raises:
        ValueError: It can't be made.
    """
    try:
        new = made_like(operation, entries)
    except Exception as error:
        raise ValueError(
            f"'{path}' (of class {type(operation).__name__}) can't be copied: {error} "
            "Implement `get_config` in its class, or use sgdap.apply(model, plan, in_place=True)."
        ) from error
    if isinstance(operation, keras.Layer) and new.trainable != operation.trainable:
        new.trainable = operation.trainable  # set later, or not told by the config
    return new


def _from_config(operation: Any, entries: Mapping[str, Any]) -> Any:
    config = operation.get_config()
    named = "name" in config
    new = {key: value for key, value in entries.items() if named or key != "name"}
    made = type(operation).from_config(without_build_config({**config, **new}))
    if not named:
        made.name = entries.get("name", operation.name)
    return made


def _forgotten(layer: Any, told: Any) -> dict[str, Any]:
    """What the config of a layer does not tell, or what was set later: attributes by name."""
    plain = (bool, int, float, str)
    before = vars(told)
    return {
        name: value
        for name, value in vars(layer).items()
        if not (name.startswith("_") or name in _OF_BUILDING)
        and isinstance(value, plain)
        and isinstance(before.get(name), plain)  # what is None before is for `build` to set
        and value != before[name]
    }


def _from_attributes(operation: Any, entries: Mapping[str, Any]) -> Any | None:
    """A layer made with the attributes that are named like its arguments, or None."""
    if not isinstance(operation, keras.Layer) or isinstance(operation, keras.Model):
        return None
    arguments = {**_arguments(operation), **entries}
    if not all(isinstance(x, _SHARED) for x in keras.tree.flatten(arguments)):
        return None  # two layers may not share it
    try:
        new = type(operation)(**arguments)
    except Exception:  # an argument has an attribute of another name, or of another kind
        return None
    if set(_forgotten(operation, new)) - set(entries):
        return None
    if not _is_read_back(new):
        _tell_all(new)
        if not _is_read_back(new):  # then it is saved as the one that it is like
            object.__delattr__(new, "get_config")
    return new


def _is_read_back(layer: Any) -> bool:
    """Whether Keras makes a layer like this one from what it would write to a file."""
    try:
        with global_state_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a lambda is in the file, as before
            written = without_build_config(keras.saving.serialize_keras_object(layer))
            classes = {written[key]: type(layer) for key in ("class_name", "registered_name")}
            read = keras.saving.deserialize_keras_object(written, classes, safe_mode=False)
    except Exception:
        return False
    wanted, found = _arguments(layer), _arguments(read)
    of_same_kinds = all(type(value) is type(found.get(name)) for name, value in wanted.items())
    return of_same_kinds and not _forgotten(layer, read)


def _arguments(layer: Any) -> dict[str, Any]:
    """What a layer's class takes, as far as the layer has attributes of the same names."""
    base = {"name": layer.name, "trainable": layer.trainable, "dtype": layer.dtype_policy.name}
    arguments: dict[str, Any] = {}
    for argument in inspect.signature(type(layer).__init__).parameters.values():
        if argument.kind is argument.VAR_KEYWORD:
            arguments |= base
        elif argument.name in base:
            arguments[argument.name] = base[argument.name]
        elif hasattr(layer, argument.name):
            arguments[argument.name] = getattr(layer, argument.name)
    return arguments


def _tell_all(layer: Any) -> None:
    """Gives a layer a config that tells all that its class takes, so that it can be loaded."""
    object.__setattr__(layer, "get_config", partial(_config_of, layer))


def _config_of(layer: Any) -> dict[str, Any]:
    return {
        name: value if isinstance(value, _PLAIN) else keras.saving.serialize_keras_object(value)
        for name, value in _arguments(layer).items()
    }


_PLAIN = (bool, int, float, str, type(None), list, tuple, dict)

_SHARED = (
    *(bool, int, float, str, type(None), FunctionType),
    *(keras.Initializer, keras.Regularizer, keras.constraints.Constraint),
)
"""What two layers may hold in common."""

_OF_BUILDING = ("built", "lora_enabled", "name")


def copy_state(layer: Any, copy: Any) -> None:
    """Gives a copy of a layer or model its variables, and what it knows besides them.

    What a layer learnt from data moves too: the numbers that Normalization computed from its
    variables, and the vocabulary of StringLookup, by the methods that Keras saves it with; and what
    a layer of the user's computes where it loads its weights.

    Args:
        layer: The layer or model.
        copy: One with the same variables and the same layers inside.
    """
    pairs = zip(_keras.layer_variables(copy), _keras.layer_variables(layer), strict=True)
    for mine, theirs in pairs:
        mine.assign(theirs)
    parts = zip(_keras.flatten_layers(copy), _keras.flatten_layers(layer), strict=False)
    for inner, other in list(parts):
        if type(inner) is not type(other) or isinstance(inner, keras.Model):
            continue
        if isinstance(inner, keras.layers.Normalization):
            inner.mean, inner.variance = other.mean, other.variance
        elif is_learner(inner):
            teach(inner, *learnt(other))


def compile_alike(copy: Any, model: Any) -> None:
    """Compiles a copy like its model, with a new optimizer; warns if that can't be done."""
    try:
        with _keras.scope_of(model):
            copy.compile_from_config(model.get_compile_config())
    except Exception as error:  # a loss or metric that Keras can't make from its config
        warnings.warn(
            f"The new model is not compiled: the loss, metrics or optimizer of "
            f"'{model.name}' can't be copied ({error}). Call its `compile` before "
            "training or evaluating it.",
            stacklevel=4,
        )


def without_build_config(config: Any) -> Any:
    """Returns a config without the shapes that layers were once built with."""
    if isinstance(config, dict):
        return {k: without_build_config(v) for k, v in config.items() if k != "build_config"}
    if isinstance(config, list):
        return [without_build_config(entry) for entry in config]
    return config
