"""Code of the user's own: which layers hold some, and what to say where it can't be traced."""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.leaves import leaf_class


def has_code(layer: Any) -> bool:
    """Whether a layer or model is put together from layers and operations in the user's own `call`.

    One that has weights beside those of its layers is not: they would be lost on the way.
    """
    if not isinstance(layer, keras.Layer) or type(layer).__module__.split(".")[0] == "keras":
        return False
    inside = [part for part in _keras.flatten_layers(layer) if part is not layer]
    theirs = {id(v) for part in inside for v in part.weights}
    own = [v for v in layer.weights if id(v) not in theirs]
    return not own and leaf_class(layer) is None


def user_line(stopped: TracebackType | None) -> str:
    """The innermost line of the user's own code: of a traceback, or of the current stack."""
    if stopped is None:
        frames = traceback.walk_stack(inspect.currentframe())
    else:
        frames = reversed(list(traceback.walk_tb(stopped)))
    for frame, line in frames:
        name = frame.f_code.co_filename
        if not _is_of_a_library(name):
            return f"{name}:{line} (`{linecache.getline(name, line).strip()}`)"
    return "an unknown line"


@functools.cache
def _is_of_a_library(file: str) -> bool:
    return any(part in (Path(file), *Path(file).parents) for part in _LIBRARIES)


_LIBRARIES = (
    Path(__file__).parents[1],
    Path(inspect.getfile(keras)).parent,
    Path(inspect.getfile(keras)).parents[1] / "tensorflow",
    Path(inspect.getfile(keras)).parents[1] / "optree",
    Path(inspect.getfile(contextlib)),
)


def untraceable(layer: Any, path: str, error: Exception) -> ValueError:
    """The error to raise where a `call` can't be traced.

    Args:
        layer: The layer or model.
        path: Its path; empty for the whole model.
        error: What stopped it.

    Returns:
        The error: where it stopped, why, and what to do.
    """
    what = f"{'layer' if path else 'model'} '{path or layer.name}'"
    return ValueError(
        f"The `call` of {what} (of class {type(layer).__name__}) can't be traced with symbolic "
        f"tensors: it stopped at {user_line(error.__traceback__)} with {type(error).__name__}: "
        f"{_first_sentence(error)}. {_remedy(error)}"
    )


def _first_sentence(error: Exception) -> str:
    """What an error says, without the examples that Keras adds."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].split(". ")[0].rstrip(". ") if lines else "no message"


def _remedy(error: Exception) -> str:
    if "NoneType" in str(error):
        return (
            "The size of a batch is None there: make a tensor of that size from another one, "
            "with ops.zeros_like(x[:, :1]) or x * 0, say."
        )
    if "is not built" in str(error):
        return "Make layers in `__init__`, and call the model once on a batch of data."
    return (
        "Use keras.layers and keras.ops there, and no `if` or loop on the values of tensors. What "
        "TensorFlow or NumPy must do belongs into a keras.layers.Layer of its own, which is then "
        "left as it is."
    )
