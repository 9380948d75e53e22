"""Code of the user's own: which layers hold some, and what to say where it can't be traced."""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, FunctionType, TracebackType
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.leaves import is_of_keras, leaf_class


def has_code(layer: Any) -> bool:
    """Whether a layer or model is put together from layers and operations in the user's own `call`.

    One that has weights beside those of its layers is not: they would be lost on the way.
    """
    if not isinstance(layer, keras.Layer) or is_of_keras(layer):
        return False
    inside = [part for part in _keras.flatten_layers(layer) if part is not layer]
    theirs = {id(v) for part in inside for v in part.weights}
    own = [v for v in layer.weights if id(v) not in theirs]
    return not own and leaf_class(layer) is None


ONLY_IN_TRAINING = (
    "its `call` does something else in training, so it is not looked into; put what is for "
    "training alone into a layer of its own"
)
"""Why a layer without weights is one call."""


def takes_training(layer: Any) -> bool:
    """Whether the `call` of a layer or model is told whether it trains."""
    return "training" in inspect.signature(layer.call).parameters


def user_line(stopped: TracebackType | None) -> str:
    """The innermost line of the user's own code: of a traceback, or of the current stack."""
    place = _user_place(stopped)
    return "an unknown line" if place is None else _shown(*place[1:])


def _user_place(stopped: TracebackType | None) -> tuple[FrameType, str, int] | None:
    """The innermost frame of the user's own code, with its file and line."""
    if stopped is None:
        frames = traceback.walk_stack(inspect.currentframe())
    else:
        frames = reversed(list(traceback.walk_tb(stopped)))
    places = ((frame, frame.f_code.co_filename, line) for frame, line in frames)
    return next((place for place in places if not _is_of_a_library(place[1])), None)


def _shown(file: str, line: int) -> str:
    return f"{file}:{line} (`{linecache.getline(file, line).strip()}`)"


def untraced(layer: Any, error: Exception | None) -> str:
    """Why a layer's own code was not followed, and what would be; empty where there is none.

    Args:
        layer: The layer.
        error: What stopped its `call`; None: it was not followed at all.
    """
    place = None if error is None else _user_place(error.__traceback__)
    if place is not None:
        frame, file, line = place
        known = {**frame.f_globals, **frame.f_locals}
    elif isinstance(layer, keras.layers.Lambda) and isinstance(layer.function, FunctionType):
        code, known = layer.function.__code__, layer.function.__globals__
        file, line = code.co_filename, code.co_firstlineno
    else:
        return ""
    twins = _twins(linecache.getline(file, line), known)
    return (
        f"the code at {_shown(file, line)} is not looked into; write it with keras.ops in a layer "
        f"of your own{': ' if twins else ''}{twins}"
    )


def _twins(line: str, known: Mapping[str, Any]) -> str:
    """Keras' own functions for those of other packages that a line calls."""
    found = []
    for called in re.findall(r"[A-Za-z_][\w.]*(?=\()", line):
        root, _, rest = called.partition(".")
        package = getattr(known.get(root), "__name__", "").split(".")[0]
        name = rest.rpartition(".")[2].removeprefix("reduce_")
        if package in ("tensorflow", "numpy", "jax", "torch"):
            twins = [f"keras.{m}.{name}" for m, ops in _OPERATIONS.items() if hasattr(ops, name)]
            found += [f"{twin} for {called}" for twin in twins[:1]]
    return ", ".join(dict.fromkeys(found))


_OPERATIONS = {
    "ops": keras.ops,
    "ops.image": keras.ops.image,
    "ops.linalg": keras.ops.linalg,
    "random": keras.random,
}


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
        f"{first_sentence(error)}. {_remedy(layer, error)}"
    )


def first_sentence(error: Exception) -> str:
    """What an error says, without what Keras and TensorFlow write before it and add."""
    text = re.sub(r"\x1b\[\d*m|\{\{.*?\}\} ?|\[Op:\w+\]( name:)?", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception encountered when calling")]
    return re.split(r"\. (?=[A-Z])", lines[0])[0].rstrip(". ") if lines else "no message"


def _remedy(layer: Any, error: Exception) -> str:
    if hasattr(type(layer).call, "python_function"):
        return "Take `@tf.function` off `call`: Keras compiles what fit and predict run by itself."
    if "NoneType" in str(error):
        return (
            "The size of a batch is None there: make a tensor of that size from another one, "
            "with ops.zeros_like(x[:, :1]) or x * 0, say."
        )
    if "not known before the model runs" in str(error):
        return "Or build the model with that size as a number."
    if "UnknownSize" in str(error):
        return (
            "A size stands there that is known only when the model runs. Draw random numbers of "
            "that size in a keras.layers.Layer of its own, say."
        )
    if "is not built" in str(error):
        return "Make layers in `__init__`, and call the model once on a batch of data."
    return (
        "Use keras.layers and keras.ops there, and no `if` or loop on the values of tensors. What "
        "TensorFlow or NumPy must do belongs into a keras.layers.Layer of its own without weights, "
        "which is then tried as a whole."
    )
