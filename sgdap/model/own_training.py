"""The training code of the user's own, and which layers it calls itself; calls nothing."""

from __future__ import annotations

import inspect
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import keras

_STEPS = (
    *("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics"),
    *("make_train_function", "make_test_function", "make_predict_function"),
)
"""The methods with which Keras trains and judges a model."""

_ANY = frozenset(("layers", "get_layer", "getattr", "vars", "__dict__"))
"""Names by which code may reach every layer."""

_INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


def called_in_training(model: Any) -> list[Any]:
    """Returns layers and models that a model holds and that its own training code may call.

    They are those whose attribute's name stands in the code of `train_step`, `compute_loss` and
    the like, or of what these call. It may do something else with them, but can reach no others.

    Args:
        model: A Keras model.
    """
    kind, names, seen = type(model), set[str](), set[CodeType]()
    waiting = [function for name in _STEPS for function in _methods(kind, name)]
    while waiting:
        function = waiting.pop()
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        mentioned = set(_names(function.__code__))
        names |= mentioned
        for name in mentioned - {"call", "build", "__init__"}:
            waiting += _methods(kind, name)
            other = function.__globals__.get(name)
            if isinstance(other, FunctionType) and not _is_installed(other):
                waiting.append(other)
    found: dict[int, Any] = {id(model): model}
    _reach(model, names, found)
    return list(found.values())[1:]


def warn_of_own_training(model: Any) -> None:
    """Warns that a copy of a compiled model of Keras' class does not train as its class does."""
    own = [name for name in _STEPS if any(_methods(type(model), name))]
    if model.compiled and own:
        warnings.warn(
            f"The functional copy of '{model.name}' is trained and judged as Keras does it, "
            f"without `{own[0]}` of its class ({type(model).__name__}). To go on with that, make "
            "the model itself small: with a callback of sgdap in its fit, or sgdap.apply(model, "
            "plan, in_place=True).",
            stacklevel=4,
        )


def _methods(kind: type, name: str) -> Iterator[FunctionType]:
    """The functions behind a method or property of some name, in classes of the user's own."""
    for base in kind.__mro__:
        if base.__module__.split(".")[0] in ("keras", "tensorflow", "builtins"):
            continue
        made: Any = vars(base).get(name)
        for wrapped in ("fget", "func", "__func__", "python_function"):  # the last of tf.function
            made = getattr(made, wrapped, made)
        made = inspect.unwrap(made) if callable(made) else made
        if isinstance(made, FunctionType):
            yield made


def _is_installed(function: FunctionType) -> bool:
    parents = Path(function.__code__.co_filename).parents
    return any(folder in parents for folder in _INSTALLED)


def _names(code: CodeType) -> Iterator[str]:
    """All names of attributes and globals in a piece of code, and in the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _reach(layer: Any, names: set[str], found: dict[int, Any]) -> None:
    """Finds the layers that attributes of some names lead to, by their identity."""
    for name, value in vars(layer).items():
        if name in names or names & _ANY:
            for leaf in _leaves(value):
                if isinstance(leaf, keras.Layer) and id(leaf) not in found:
                    found[id(leaf)] = leaf
                    _reach(leaf, names, found)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _leaves(part)
    else:
        yield value
