"""Watches a `call` of the user's own while it runs on symbolic tensors; leaves nothing behind."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.leaves import leaf_class

LayerHandler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
OperationHandler = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Any]


@contextlib.contextmanager
def calls_intercepted(on_layer: LayerHandler, on_operation: OperationHandler) -> Iterator[None]:
    """Within, layers that are called on symbolic tensors are handed over instead of called.

    So Keras records no node on them, and each can answer with the shapes that it would have with
    other widths. Other threads are not affected.

    Args:
        on_layer: Called as `(layer, args, kwargs)`; what it returns is what the call returns.
        on_operation: Called as `(operation, args, kwargs, outputs)` after an operation of
            `keras.ops`, likewise.
    """
    thread = threading.get_ident()
    call_layer, call_operation = keras.Layer.__call__, keras.Operation.symbolic_call

    def layer_called(self: Any, *args: Any, **kwargs: Any) -> Any:
        symbolic = any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs)))
        if threading.get_ident() != thread or not symbolic:
            return call_layer(self, *args, **kwargs)
        return on_layer(self, args, kwargs)

    def operation_called(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = call_operation(self, *args, **kwargs)
        if threading.get_ident() != thread:
            return made
        return on_operation(self, args, kwargs, made)

    keras.Layer.__call__, keras.Operation.symbolic_call = layer_called, operation_called
    try:
        yield
    finally:
        keras.Layer.__call__, keras.Operation.symbolic_call = call_layer, call_operation


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


def user_line(traceback: TracebackType | None) -> str:
    """The innermost line of the user's own code: of a traceback, or of the current stack."""
    if traceback is not None:
        frames = [(f.filename, f.lineno) for f in inspect.getinnerframes(traceback)][::-1]
    else:
        frames = []
        frame = inspect.currentframe()
        while frame is not None:
            frames.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
    for name, line in frames:
        if not any(part in (Path(name), *Path(name).parents) for part in _LIBRARIES):
            return f"{name}:{line} (`{linecache.getline(name, line).strip()}`)"
    return "an unknown line"


_LIBRARIES = (
    Path(__file__).parents[1],
    Path(inspect.getfile(keras)).parent,
    Path(inspect.getfile(keras)).parents[1] / "tensorflow",
    Path(inspect.getfile(keras)).parents[1] / "optree",
    Path(inspect.getfile(contextlib)),
)
