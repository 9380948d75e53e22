"""Times a file in its own runtime, without the model that it was made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap._arguments import check_integer, checked_path
from sgdap._extras import check_installed
from sgdap._table import facts_text
from sgdap.execution.runtimes import in_keras, in_litert, in_onnx, in_openvino, signature_of
from sgdap.exporting.file import NEEDED, SUFFIXES
from sgdap.exporting.place import size_of
from sgdap.model.tracing import trace

Array = npt.NDArray[Any]

_SECONDS, _MOST = 2.0, 1000
"""How long, and how often, answers are timed."""


@dataclass(frozen=True)
class Bench:
    """The times of a file; print it for a table.

    Attributes:
        path: Where it is.
        format: Its format.
        bytes: Its size.
        load_seconds: Until the runtime had loaded it.
        first_seconds: Until it gave its first answer.
        seconds: The median of its further answers; one thread, but for TensorFlow's.
        spread: The 10th and the 90th percentile of these.
        batch_size: The number of samples in an answer.
    """

    path: Path
    format: str
    bytes: int
    load_seconds: float
    first_seconds: float
    seconds: float
    spread: tuple[float, float]
    batch_size: int

    def __str__(self) -> str:
        low, high = (1e3 * own for own in self.spread)
        rows = [
            ("bytes", f"{self.bytes:,}"),
            ("ms to load", f"{1e3 * self.load_seconds:.3g}"),
            ("ms first answer", f"{1e3 * self.first_seconds:.3g}"),
            (f"ms each answer ({self.batch_size})", f"{1e3 * self.seconds:.3g}"),
        ]
        spread = f"Four of five answers took {low:.3g} to {high:.3g} ms; random inputs."
        return facts_text(f"{self.path} ({self.format})", rows, [spread])


def bench(path: str | Path, batch_size: int = 1) -> Bench:
    """Times a file on random inputs.

    Args:
        path: A `.tflite`, `.onnx`, `.xml` or `.keras` file, or the folder of a SavedModel.
        batch_size: The number of samples in an answer, where the file leaves that open.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The runtime's package is missing.
        ValueError: Files of this kind are not known.
    """
    path = checked_path("path", path)
    check_integer("batch_size", batch_size, 1)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    kind = SUFFIXES.get(path.suffix)
    if kind is None or (kind == "saved_model" and not path.is_dir()):
        raise ValueError(
            f"{path} is no file that sgdap.export writes. Their names end in: "
            f"{', '.join(filter(None, SUFFIXES))}; a SavedModel is a folder."
        )
    check_installed(NEEDED.get(kind, ())[:1], kind, f"Running {path.name}")
    began = time.perf_counter()
    run, inputs = _OPENED[kind](path, batch_size)
    loaded = time.perf_counter()
    run(inputs)
    answered = time.perf_counter()
    times: list[float] = []
    while sum(times) < _SECONDS and len(times) < _MOST:
        since = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - since)
    low, middle, high = np.quantile(times, [0.1, 0.5, 0.9])
    size = len(inputs[0])
    spread = (float(low), float(high))
    took = (loaded - began, answered - loaded, float(middle))
    return Bench(path, kind, size_of(path), *took, spread, size)


Opened = tuple[Callable[[Sequence[Array]], Any], list[Array]]


def _random(shape: Sequence[Any], dtype: Any, batch_size: int) -> Array:
    sizes = [int(n) if isinstance(n, (int, np.integer)) and n > 0 else 1 for n in shape]
    if not isinstance(shape[0], (int, np.integer)) or shape[0] < 1:
        sizes[0] = batch_size
    made = np.random.default_rng(0).random(sizes)
    return (made if np.issubdtype(dtype, np.floating) else np.zeros(sizes)).astype(dtype)


def _stub(names: Sequence[str]) -> Any:
    return SimpleNamespace(inputs=[SimpleNamespace(name=name) for name in names])


def _litert(path: Path, batch_size: int) -> Opened:
    from ai_edge_litert.interpreter import Interpreter

    content = path.read_bytes()
    taken = Interpreter(model_content=content).get_signature_runner().get_input_details()
    inputs = [
        _random(own["shape_signature"], np.float32 if own["quantization"][0] else own["dtype"], 1)
        for own in taken.values()
    ]
    return in_litert(content, _stub(list(taken))), inputs


def _onnx(path: Path, batch_size: int) -> Opened:
    import onnxruntime

    content = path.read_bytes()
    session = onnxruntime.InferenceSession(content)
    taken = session.get_inputs()
    dtypes = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int32)": np.int32}
    inputs = [_random(own.shape, dtypes.get(own.type, np.int64), batch_size) for own in taken]
    return in_onnx(content, _stub([own.name for own in taken])), inputs


def _openvino(path: Path, batch_size: int) -> Opened:
    import openvino

    model = openvino.Core().read_model(str(path))
    names = [own.get_any_name() for own in model.inputs]
    inputs = []
    for own in model.inputs:
        shape = [n.get_length() if n.is_static else None for n in own.get_partial_shape()]
        inputs.append(_random(shape, own.get_element_type().to_dtype(), batch_size))
    return in_openvino(path, _stub(names)), inputs


def _keras_file(path: Path, batch_size: int) -> Opened:
    program = trace(keras.models.load_model(path, compile=False))
    inputs = [
        _random(
            program.shapes[ref.index],
            np.dtype(keras.backend.standardize_dtype(program.dtypes[ref.index])),
            batch_size,
        )
        for ref in program.inputs
    ]
    return in_keras(program), inputs


def _saved_model(path: Path, batch_size: int) -> Opened:
    run, specs = signature_of(path)
    return run, [_random(shape, dtype, batch_size) for shape, dtype in specs]


_OPENED: dict[str, Callable[[Path, int], Opened]] = {
    "litert": _litert,
    "onnx": _onnx,
    "openvino": _openvino,
    "keras": _keras_file,
    "saved_model": _saved_model,
}
