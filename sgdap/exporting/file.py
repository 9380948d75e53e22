"""`sgdap.export`: a file for another runtime, compared with the model before it is kept."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np

from sgdap._arguments import check_choice, check_integer, checked_path, shown
from sgdap._extras import check_installed
from sgdap.execution.backend import check_backend
from sgdap.execution.data import batches
from sgdap.execution.inputs import checked_inputs
from sgdap.execution.precision import computing_in_float32
from sgdap.execution.runtimes import (
    Array,
    Run,
    closed_model,
    in_keras,
    in_litert,
    in_onnx,
    in_openvino,
    in_saved_model,
)
from sgdap.exporting.converting import converted, first_line, plain, refusal
from sgdap.exporting.litert import KINDS, quantized_file, stored_numbers
from sgdap.exporting.place import TEMPORARY, check_place, move, nearest, size_of
from sgdap.exporting.ranges import Ranges, check_ranges, ranges_in_file
from sgdap.exporting.report import ExportReport
from sgdap.model.program import Program
from sgdap.model.tracing import trace

SUFFIXES = {
    "": "saved_model",
    ".keras": "keras",
    ".tflite": "litert",
    ".onnx": "onnx",
    ".xml": "openvino",
}
"""The formats by the end of a path."""

NEEDED = {
    "litert": ["ai_edge_litert", "ai_edge_quantizer"],
    "onnx": ["onnxruntime", "tf2onnx"],
    "openvino": ["openvino"],
}
"""The packages that formats need."""

FAR = 1e-3
"""How far an output of a file of the same numbers may be from the model's, as a share of the
largest."""

HALVES, FAR_IN_HALVES = {"float16", "bfloat16"}, 0.05
"""The same for a model that computes in these; a file may compute in float32."""

_RANDOM = 16
"""Random inputs that a file is compared on where no data are given."""

_SECONDS = 1.0
"""How long answers are timed."""


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    quantize: str | Sequence[Any] | None = None,
    data: Any = None,
    ranges: Ranges | None = None,
    batch_size: int | str | None = "auto",
    check: bool = True,
    samples: int | None = 256,
    verbose: int = 1,
) -> ExportReport:
    """Writes a model as a file for another runtime, and compares the two there.

    The file is made beside its place, loaded by its own runtime and compared with the Keras model.
    It takes the place of what was there only if it answers as it should. Dynamic range activations
    are folded first.

    Kernels that lie on a lattice of at most 8 bits, as `sgdap.quantize` makes them, are stored in
    a LiteRT file as integers of 4 or 8 bits with their scales, and cast when they are read. The
    lattice is found from the values, so it does not matter how the model came here.

    Args:
        model: A built `keras.Model`; it is not changed.
        path: The file, or the folder of a SavedModel.
        format: `"keras"`, `"saved_model"`, `"litert"`, `"onnx"` or `"openvino"`; None: by the end
            of the path: `.keras`, none, `.tflite`, `.onnx`, `.xml`.
        quantize: For LiteRT files. None: weights as they are, integers where they lie on a
            lattice. `"float32"`: no integers. `"float16"`: weights of 16 bits. `"dynamic"`:
            weights of 8 bits (4 where they lie on such a lattice), activations too while it runs.
            `"int8"`: all integers, inputs and outputs too; `ranges` or `data` give the ranges of
            activations.
            `"int4"`: weights of 4 bits where LiteRT has them, rounded to the nearest;
            `sgdap.quantize` loses less. Or a recipe of AI Edge Quantizer.
        data: Inputs, or `(x, y)`, in any form that `sgdap.plan` takes. None: the file is compared
            on random inputs.
        ranges: The least and the largest number of the tensors that a full-integer file stores, as
            `QuantizationCallback` has them after a `fit` with `activations="int8"`. Those of the
            others are measured on `data`, which may be left out where there are none.
        batch_size: The number of samples in a call of the file; None leaves it open. `"auto"`: 1 in
            a LiteRT file, open in all others. A model built for batches of one size keeps it.
        check: Whether the file is loaded, compared and timed.
        samples: How many samples of `data` to use; None: all.
        verbose: 1 prints the report.

    Returns:
        What was measured.

    Raises:
        ImportError: A package is missing that makes or runs the file.
        RuntimeError: Keras uses another backend than TensorFlow, or the file answers otherwise than
            the model. Nothing is left of it then.
        TypeError: `model` is no Keras model, or an argument is of the wrong type.
        ValueError: An argument has no meaning, the data don't fit the model, or the format can't
            hold it: the layer is named.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "softmax")])
        >>> report = sgdap.export(model, "model.tflite", data=np.random.rand(10, 8), verbose=0)
        >>> report.difference < 1e-5
        True
    """
    check_backend("sgdap.export")
    path = checked_path("path", path)
    kind = check_format(path, format, quantize)
    check_choice("check", check, (True, False))
    check_choice("verbose", verbose, (0, 1, False, True))
    _check_ranged(quantize, data, ranges)
    if batch_size not in ("auto", None):
        check_integer("batch_size", batch_size, 1)
    if samples is not None:
        check_integer("samples", samples, 1)
    check_place(path, kind)
    program = trace(model)
    if ranges is not None:
        check_ranges(program, ranges)
    size = _batch_size(program, kind, batch_size)
    inputs = _inputs(program, data, samples, size or 1)
    whole = plain(model, program, kind)
    with tempfile.TemporaryDirectory(dir=nearest(path.parent), prefix=TEMPORARY) as folder:
        made = Path(folder, path.name)
        report = _made(whole, made, kind, quantize, inputs, size, data is not None, ranges)
        load = report.pop("load")
        measured = _compared(program, load, quantize, inputs, size or 1) if check else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        total = size_of(made)
        move(made, path, kind)
    done = ExportReport(
        path, kind, total, random=check and data is None, batch_size=size or 1, **report, **measured
    )
    if verbose:
        print(done)
    return done


def check_format(path: Path, format: str | None, quantize: Any) -> str:
    """The format of a file.

    Args:
        path: The file.
        format: The format that is asked for; None: by the end of the path.
        quantize: The numbers that are asked for.

    Raises:
        ImportError: A package is missing that makes or runs the file.
        TypeError: `quantize` is of the wrong type.
        ValueError: No format has such files, or it does not have such numbers.
    """
    kind = _kind_of(path, format)
    _check_quantize(kind, quantize)
    check_installed(NEEDED.get(kind, ()), kind, f"Export to {path.name}")
    return kind


def _kind_of(path: Path, format: str | None) -> str:
    if format is not None:
        check_choice("format", format, tuple(SUFFIXES.values()))
        needed = {"keras": ".keras", "openvino": ".xml"}.get(format, path.suffix)
        if path.suffix != needed:
            raise ValueError(
                f"Files of the format '{format}' end in '{needed}'. Received: path={path}"
            )
        return format
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"No format has files that end in '{path.suffix}'. There are .keras, .tflite, .onnx, "
            f".xml (OpenVINO), and folders (SavedModel); or pass format=…. Received: path={path}"
        )
    return SUFFIXES[path.suffix]


def _batch_size(program: Program, kind: str, asked: int | str | None) -> int | None:
    """The number of samples in a call of the file; None: it stays open."""
    built = program.shapes[program.inputs[0].index][0]
    if built is None:
        return (1 if kind == "litert" else None) if asked == "auto" else cast("int | None", asked)
    if asked not in ("auto", None, built):
        raise ValueError(
            f"The model was built for batches of {built}. Received: batch_size={asked}. Leave it "
            "out, or build the model with another batch."
        )
    return built


def _check_quantize(kind: str, quantize: Any) -> None:
    if quantize is not None and not isinstance(quantize, (str, list, tuple)):
        raise TypeError(
            f"quantize must be one of {', '.join(map(repr, KINDS))} or a recipe of AI Edge "
            f"Quantizer, a list. Received: quantize={shown(quantize)}"
        )
    if isinstance(quantize, str) or quantize is None:
        check_choice("quantize", quantize, KINDS)
    if quantize is not None and kind != "litert":
        raise ValueError(
            f"quantize is for LiteRT files (.tflite). Received: quantize={shown(quantize)} with "
            f"format '{kind}'. Put the weights on their lattice with sgdap.quantize instead."
        )


def _check_ranged(quantize: Any, data: Any, ranges: Any) -> None:
    if quantize == "int8" and data is None and ranges is None:
        raise ValueError(
            "quantize='int8' needs data=…: some hundred inputs give the ranges of activations. "
            "Received: data=None. A QuantizationCallback with activations='int8' has them after "
            "its fit: pass ranges=callback.ranges."
        )
    if ranges is not None and (
        quantize is None or (isinstance(quantize, str) and quantize != "int8")
    ):
        raise ValueError(
            "ranges are those of activations in full-integer files, quantize='int8'. Received: "
            f"quantize={shown(quantize)}"
        )


def _inputs(program: Program, data: Any, samples: int | None, step: int) -> list[Array]:
    """Whole batches of samples as the flat list of arrays that a model takes."""
    if data is not None:
        parts = [checked_inputs(program, x) for x, _, _ in batches(data, 256, samples)]
        read = [np.concatenate([np.asarray(p) for p in own]) for own in zip(*parts, strict=True)]
        count = len(read[0]) // step * step
        if not count:
            raise ValueError(
                f"A batch has {step} samples, and data have {len(read[0])}. Pass more, or a "
                "smaller batch_size."
            )
        return [array[:count] for array in read]
    shapes = [program.shapes[ref.index] for ref in program.inputs]
    if any(None in shape[1:] for shape in shapes):
        raise ValueError(
            f"Inputs leave sizes open: {', '.join(map(str, shapes))}. So that the file can be "
            "tried, pass data=…, some inputs as they will come."
        )
    random, made = np.random.default_rng(0), []
    for ref, whole_shape in zip(program.inputs, shapes, strict=True):
        shape = (-(-_RANDOM // step) * step, *(int(size or 1) for size in whole_shape[1:]))
        dtype = keras.backend.standardize_dtype(program.dtypes[ref.index])
        whole = dtype.startswith(("int", "uint", "bool"))
        made.append((np.zeros(shape) if whole else random.random(shape)).astype(dtype))
    return made


def _made(
    model: Any,
    path: Path,
    kind: str,
    quantize: Any,
    inputs: list[Array],
    size: int | None,
    given: bool,
    ranges: Ranges | None,
) -> dict[str, Any]:
    """Writes the file; returns how it is loaded, and what it holds.

    `given` tells whether the inputs are the user's, of which activations may take their ranges.
    """
    program = trace(model)
    if kind == "keras":
        model.save(path)
        return {"load": lambda: in_keras(trace(keras.models.load_model(path, compile=False)))}
    if kind == "saved_model":
        model.export(path, format="tf_saved_model", verbose=False)
        return {"load": lambda: in_saved_model(path, program)}
    shapes = [(size, *program.shapes[ref.index][1:]) for ref in program.inputs]
    closed = closed_model(program, shapes)
    start = [array[: size or 1] for array in inputs]
    if kind == "openvino":
        try:
            closed.export(str(path), format="openvino", verbose=False)
        except Exception as error:  # a converter raises anything
            raise refusal(closed, kind, _not_run, start, error) from error
        return {"load": lambda: in_openvino(path, closed)}
    if kind == "onnx":
        closed(keras.tree.pack_sequence_as(closed.input, start))  # Keras asks for a call before
    runtime: Callable[[bytes, Any], Run] = {"litert": in_litert, "onnx": in_onnx}[kind]
    with computing_in_float32(closed):  # LiteRT computes in no float16
        content = converted(closed, kind, runtime, start)
    numbers: Mapping[str, int] = {}
    if kind == "litert":
        names, step = [tensor.name for tensor in closed.inputs], size or 1
        calls = [
            {n: x[i : i + step] for n, x in zip(names, inputs, strict=True)}
            for i in range(0, len(inputs[0]), step)
        ]
        if quantize != "float32":
            known = {} if ranges is None else ranges_in_file(content, program, ranges, calls)
            try:
                content = quantized_file(content, quantize, calls if given else [], known)
            except RuntimeError as error:
                raise RuntimeError(
                    f"AI Edge Quantizer can't make the file: {first_line(error)}. Nothing was "
                    f"written.{_open_sizes(program)}"
                ) from error
            numbers = stored_numbers(content)
    path.write_bytes(content)
    return {"load": lambda: runtime(content, closed), "numbers": numbers}


def _not_run(content: bytes, model: Any) -> Run:
    """In the place of a runtime, for files that are only made."""
    return lambda inputs: []


def _compared(
    program: Program,
    load: Callable[[], Run],
    quantize: Any,
    inputs: list[Array],
    step: int,
) -> dict[str, Any]:
    """What the runtime answers beside the model, and how fast.

    Raises:
        RuntimeError: The file can't be loaded, or one of the same numbers answers otherwise.
    """
    began = time.perf_counter()
    try:
        run = load()
        loaded, count = time.perf_counter(), len(inputs[0])
        first = run([array[:step] for array in inputs])
    except Exception as error:  # a runtime raises anything
        raise RuntimeError(
            f"The file's runtime can't run it: {first_line(error)}. Nothing was written. "
            f"check=False writes it as it is.{_open_sizes(program)}"
        ) from error
    answered = time.perf_counter()
    found, times = [first], []
    for start in range(step, count, step):
        one = [array[start : start + step] for array in inputs]
        since = time.perf_counter()
        found.append(run(one))
        times.append(time.perf_counter() - since)
    one = [array[:step] for array in inputs]
    while sum(times) < _SECONDS and len(times) < 200:
        since = time.perf_counter()
        run(one)
        times.append(time.perf_counter() - since)
    wanted = _answers(program, inputs)
    made = [np.concatenate(own) for own in zip(*found, strict=True)]
    halves = {getattr(x, "compute_dtype", "") for x in program.layers().values()} & HALVES
    far = (FAR_IN_HALVES if halves else FAR) if quantize in (None, "float32") else math.inf
    difference, agreement = _differences(wanted, made, far)
    return {
        "samples": count,
        "difference": difference,
        "agreement": agreement,
        "load_seconds": loaded - began,
        "first_seconds": answered - loaded,
        "seconds": float(np.median(times)),
    }


def _open_sizes(program: Program) -> str:
    """What to do where inputs leave sizes open."""
    wide = any(None in program.shapes[ref.index][1:] for ref in program.inputs)
    fixed = " Give the inputs of the model fixed sizes: not all runtimes take open ones."
    return fixed if wide else ""


def _answers(program: Program, inputs: list[Array]) -> list[Array]:
    run = in_keras(program)
    step = program.shapes[program.inputs[0].index][0] or 32
    parts = [run([x[i : i + step] for x in inputs]) for i in range(0, len(inputs[0]), step)]
    return [np.concatenate(own) for own in zip(*parts, strict=True)]


def _differences(
    wanted: Sequence[Array], made: Sequence[Array], far: float
) -> tuple[float, float | None]:
    if len(made) != len(wanted):
        raise RuntimeError(
            f"The file has {len(made)} outputs, and the model {len(wanted)}: this format does not "
            "hold it. Nothing was written. Export it to another format."
        )
    worst, same, decisions = 0.0, 0, 0
    for number, (right, own) in enumerate(zip(wanted, made, strict=True)):
        right, own = right.astype(np.float64), own.astype(np.float64).reshape(right.shape)
        apart = float(np.abs(own - right).max(initial=0.0))
        worst = max(worst, apart) if math.isfinite(apart) else math.inf
        if far < math.inf and not apart <= far * max(float(np.abs(right).max(initial=0.0)), 1e-6):
            raise RuntimeError(
                f"The file answers otherwise than the model: output {number} differs by "
                f"{apart:.3g}, of values up to {np.abs(right).max():.3g}. Nothing was written. "
                "check=False writes it as it is."
            )
        if right.ndim > 1 and right.shape[-1] > 1:
            equal = right.argmax(axis=-1) == own.argmax(axis=-1)
        elif right.min(initial=0.0) >= 0 and right.max(initial=0.0) <= 1:
            equal = (right > 0.5) == (own > 0.5)
        else:
            continue
        same, decisions = same + int(equal.sum()), decisions + equal.size
    return worst, same / decisions if decisions else None
