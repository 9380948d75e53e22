"""Converts a model to another format; what the format does not have is named with its layer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from sgdap.execution.runtimes import Array, Run, exported
from sgdap.layers import DynamicRangeActivation, fold
from sgdap.model.functional import functional, functional_with, saves_by_its_graph
from sgdap.model.program import Call, Program, fill
from sgdap.model.tracing import trace


def plain(model: Any, program: Program, kind: str) -> Any:
    """A model of layers that a format has: none that grows, for Keras no code of the user's.

    Args:
        model: The model.
        program: Its calls.
        kind: The format.

    Returns:
        The model itself, or a copy.
    """
    if any(isinstance(x, DynamicRangeActivation) for x in program.layers().values()):
        model = fold(model)
        program = trace(model)
    if kind == "keras":
        by_graph = program.functional is not None and saves_by_its_graph(model)
        return model if by_graph else functional(model)
    fixed = {
        path: [keras.layers.Rescaling(*_scale_and_offset(layer), name=layer.name)]
        for path, layer in program.layers().items()
        if isinstance(layer, keras.layers.Normalization) and _is_per_channel(layer)
    }
    # Converters take what a Normalization holds, which are no variables, for inputs or outputs.
    converts = kind in ("onnx", "openvino")
    return functional_with(program, fixed) if converts and fixed else model


def _is_per_channel(layer: Any) -> bool:
    shape = np.shape(layer.mean)
    return not layer.invert and bool(shape) and np.size(layer.mean) == shape[-1]


def _scale_and_offset(layer: Any) -> tuple[list[float], list[float]]:
    """What a normalisation by known numbers multiplies each channel with, and adds."""
    mean, variance = (np.asarray(x, np.float64).reshape(-1) for x in (layer.mean, layer.variance))
    scale = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
    return scale.tolist(), (-mean * scale).tolist()


def converted(model: Any, kind: str, runtime: Callable[..., Run], start: list[Array]) -> bytes:
    """The file of a model, which runs.

    Args:
        model: A functional model of our own; its recurrent layers may be unrolled.
        kind: `"litert"` or `"onnx"`.
        runtime: Makes a runtime that holds the file.
        start: Inputs that it is tried on.

    Raises:
        ValueError: It can't be made, or its runtime can't run it. The layer is named.
    """
    made = _tried(model, kind, runtime, start)
    if isinstance(made, Exception) and kind == "litert" and _unroll(model):
        made = _tried(model, kind, runtime, start)
    if isinstance(made, bytes):
        return made
    raise refusal(model, kind, runtime, start, made) from made


def refusal(
    model: Any, kind: str, runtime: Callable[..., Run], start: list[Array], error: Exception
) -> ValueError:
    """Says why the file of a model can't be made, with the layer; the arguments of `converted`."""
    name = {"litert": "LiteRT", "onnx": "ONNX", "openvino": "OpenVINO"}[kind]
    open_sizes = [list(x.shape) for x in model.inputs if None in x.shape[1:]]
    advice = [
        f"Close the sizes that inputs leave open: {open_sizes}" * bool(open_sizes),
        "Put another layer in the place of one that the runtime does not have, or export it to "
        "another format",
    ]
    return ValueError(
        f"{name} can't hold the model '{model.name}': {_culprit(model, kind, runtime, start)}"
        f"{first_line(error)}. {'. '.join(filter(None, advice))}."
    )


def _tried(
    model: Any, kind: str, runtime: Callable[..., Run], start: list[Array]
) -> bytes | Exception:
    """The file of a model, or why it can't be made or run."""
    log = logging.getLogger("tf2onnx")  # it logs what it raises
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        content = exported(model, kind)
        runtime(content, model)(start)
    except Exception as error:  # a converter raises anything
        return error
    finally:
        log.setLevel(level)
    return content


def _unroll(model: Any) -> bool:
    """Unrolls the recurrent layers of a model, which is ours; whether there was one."""
    found = [x for x in trace(model).layers().values() if getattr(x, "unroll", None) is False]
    for layer in found:
        layer.unroll = True
    return bool(found)


def _culprit(model: Any, kind: str, runtime: Callable[..., Run], start: list[Array]) -> str:
    """The first layer that can't be converted alone; one of each class is tried first."""
    program = trace(model)
    values = {ref.index: x for ref, x in zip(program.inputs, start, strict=True)}
    with keras.StatelessScope():
        program.advance(values, None, 0)
    seen: set[type] = set()
    calls: list[Call] = []
    for call in program.calls:
        calls.insert(len(calls) if type(call.operation) in seen else len(seen), call)
        seen.add(type(call.operation))
    for call in calls:
        taken = {
            ref.index: keras.Input(
                batch_shape=program.shapes[ref.index], dtype=program.dtypes[ref.index]
            )
            for ref in call.inputs
        }
        args, kwargs = fill(call, taken)
        outputs = keras.tree.flatten(call.operation(*args, **kwargs))
        alone = keras.Model(list(taken.values()), outputs)
        given = [np.asarray(values[index]) for index in taken]
        alone(given)
        if isinstance(_tried(alone, kind, runtime, given), Exception):
            return f"layer '{call.path}' ({type(call.operation).__name__}) can't be converted. "
    return ""


def first_line(error: Exception) -> str:
    """The class of an error and the first line of its words, or of its list of what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    listed = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    return f"{type(error).__name__}: {(listed or lines or ['no words'])[0][:200]}".rstrip(".")
