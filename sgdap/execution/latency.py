"""Times models in the runtimes that they are shipped in; changes no model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap._arguments import is_number, shown
from sgdap._extras import check_installed
from sgdap.execution.runtimes import exported
from sgdap.model.program import Program
from sgdap.model.tracing import trace

Runtime = str | Callable[[Any], float]
"""The name of a runtime, or a function of a Keras model that returns seconds."""

_RUNTIMES: dict[str, list[str]] = {
    "keras": [],
    "litert": ["ai_edge_litert"],
    "onnx": ["onnxruntime", "tf2onnx"],
}
"""The runtimes by name, and the packages that they need."""

_TOLERANCE = 0.03
"""How well a median is to be known: half of its 95 % interval, as a share of the median."""

_MOST_SECONDS = 10.0
"""How long models are timed for that, at most."""

_BLOCKS, _BLOCK_SECONDS = 8, 0.03
"""The least number of blocks of runs and the least length of a block. Medians of blocks tell how
much the machine's pace changes, which single runs one after another don't."""


class NoisyClockError(ValueError):
    """Times differ too much from run to run to tell which model is fast enough."""


def check_runtime(runtime: object) -> None:
    """Checks that models can be timed in a runtime.

    Raises:
        ValueError: There is no runtime of that name.
        TypeError: It is neither a name nor a function.
        ImportError: The runtime's package is not installed.
    """
    if callable(runtime):
        return
    if not isinstance(runtime, str):
        raise TypeError(
            f"runtime must be one of {', '.join(map(repr, _RUNTIMES))} or a function that takes a "
            f"model and returns seconds. Received: runtime={shown(runtime)}"
        )
    if runtime not in _RUNTIMES:
        raise ValueError(
            f"No runtime is called {runtime!r}. There are: {', '.join(_RUNTIMES)}; or pass a "
            "function that takes a model and returns seconds."
        )
    check_installed(_RUNTIMES[runtime], runtime, f"runtime={runtime!r}")


Shapes = Sequence[Sequence[int | None]]
"""The shapes of a model's inputs, on which it is timed."""


def measure_latency(
    model: Any, batch_size: int = 1, repeats: int = 50, shapes: Shapes | None = None
) -> float:
    """Median seconds of a model for a batch, in a compiled function, after a warm-up."""
    return compare_latency([model], batch_size, repeats, shapes)[0]


def compare_latency(
    models: Sequence[Any],
    batch_size: int = 1,
    repeats: int = 50,
    shapes: Shapes | None = None,
) -> list[float]:
    """Median seconds of each of several models for a batch, measured in turns.

    Other work on the machine slows models that take turns alike. So the ratio of their times is
    reliable even where the times are not.

    Args:
        models: Built models.
        batch_size: The number of samples in the batch.
        repeats: How often each model is timed, after a warm-up.
        shapes: The shapes of the inputs that they are timed on, apart from the batch axis; None:
            those that they were built with. Sizes left open count as 1.

    Returns:
        The seconds of each model.
    """
    runs = [_in_keras(model, batch_size, shapes) for model in models]
    times = np.array([[_seconds(run) for run in runs] for _ in range(repeats + 5)])
    return [float(median) for median in np.median(times[5:], axis=0)]


class Stopwatch:
    """Times models against one of them.

    They take turns until the ratio of their medians is known to 3 %. So it makes no difference
    whether the machine is slower now than it was before.

    Args:
        model: The model that others are timed against.
        batch_size: The number of samples in a batch.
        runtime: `"keras"` (a compiled function), `"litert"`, `"onnx"`, or a function of a model
            that returns seconds.
        shapes: The shapes of the inputs that they are timed on, apart from the batch axis; None:
            those that they were built with. Sizes left open count as 1.

    Attributes:
        seconds: The median seconds of that model for a batch.

    Raises:
        NoisyClockError: The times differ too much from run to run. `seconds_of` raises it too.
        ValueError: A function of the user's returned no time.
    """

    def __init__(
        self,
        model: Any,
        batch_size: int = 1,
        runtime: Runtime = "keras",
        shapes: Shapes | None = None,
    ) -> None:
        self._batch_size, self._runtime, self._shapes = batch_size, runtime, shapes
        self._run: Callable[[], object] = lambda: None
        if callable(runtime):
            self.seconds = _told(runtime, model)
        else:
            self._run = _prepared(model, batch_size, runtime, shapes)
            (self.seconds,) = _medians([self._run])

    def seconds_of(self, model: Any, limit: float | None = None) -> float:
        """Seconds that a model takes for a batch, while the first one takes `seconds`.

        Args:
            model: The model to time.
            limit: Seconds to compare with; times far from it need not be known well.
        """
        if callable(self._runtime):
            return _told(self._runtime, model)
        run = _prepared(model, self._batch_size, self._runtime, self._shapes)
        first, other = _medians([self._run, run], limit and limit / self.seconds)
        return self.seconds * other / first


def _told(runtime: Callable[[Any], float], model: Any) -> float:
    seconds = runtime(model)
    if not is_number(seconds) or not seconds > 0:
        raise ValueError(
            "A function given as runtime must return the seconds that a model takes for a batch, "
            f"a number above 0. Received: {shown(seconds)}"
        )
    return float(seconds)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _medians(runs: Sequence[Callable[[], object]], limit: float | None = None) -> list[float]:
    """Median seconds of each run. They take turns until the ratios to the first are known.

    Where time is up, it is enough that the last ratio is clearly below or above `limit`.
    """
    for run in runs:
        for _ in range(5):
            run()
    blocks: list[npt.NDArray[np.float64]] = []
    began = time.perf_counter()
    while True:
        turns: list[list[float]] = []
        while not turns or sum(map(sum, turns)) < _BLOCK_SECONDS * len(runs):
            turns.append([_seconds(run) for run in runs])
        blocks.append(np.median(turns, axis=0))
        if len(blocks) < _BLOCKS:
            continue
        known = np.array(blocks)
        medians = np.median(known, axis=0)
        ratios = known / (known[:, :1] if len(runs) > 1 else medians)
        # The standard error of a median is 1.25 times that of a mean of normal numbers.
        spread = 2 * 1.25 * ratios.std(axis=0, ddof=1) / np.median(ratios, axis=0)
        error = float(spread.max()) / math.sqrt(len(blocks))
        middle = np.median(ratios, axis=0)
        late = time.perf_counter() - began > _MOST_SECONDS
        clear = limit is not None and abs(middle[-1] - limit) > error * middle[-1]
        if error <= _TOLERANCE or (late and clear):
            return [float(medians[0] * ratio) for ratio in middle]
        if late:
            raise NoisyClockError(
                f"The time of a batch can't be told: after {time.perf_counter() - began:.0f} s "
                f"its median is known to ±{error:.0%} only. Close what else runs on this machine, "
                "raise batch_size, or limit the FLOPs."
            )


def _prepared(
    model: Any, batch_size: int, runtime: str, shapes: Shapes | None
) -> Callable[[], object]:
    """A function that runs a model once on a batch of zeros."""
    make = {"keras": _in_keras, "litert": _in_litert, "onnx": _in_onnx}[runtime]
    return make(model, batch_size, shapes)


def _in_keras(model: Any, batch_size: int, shapes: Shapes | None) -> Callable[[], object]:
    program = trace(model)
    inputs = _zeros(program, batch_size, shapes)
    compiled = tf.function(lambda *x: program.run_flat(list(x)))
    if tf.config.functions_run_eagerly():  # a model that is shipped never runs so
        compiled = compiled.get_concrete_function(*inputs)
    return lambda: [output.numpy() for output in compiled(*inputs)]


def _in_litert(model: Any, batch_size: int, shapes: Shapes | None) -> Callable[[], object]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=exported(model, "litert", closed=False))
    wanted = [_closed(shape, batch_size) for shape in shapes or ()]
    for given in interpreter.get_input_details():
        open_shape = given["shape_signature"]  # the runtime has an order of its own
        shape = next((s for s in wanted if _fits(s, open_shape)), None)
        if shape is not None:
            wanted.remove(shape)
        shape = shape or _closed(given["shape"], batch_size)
        interpreter.resize_tensor_input(given["index"], shape)
    interpreter.allocate_tensors()
    for given in interpreter.get_input_details():
        interpreter.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))
    run: Callable[[], object] = interpreter.invoke
    return run


def _in_onnx(model: Any, batch_size: int, shapes: Shapes | None) -> Callable[[], object]:
    import onnxruntime

    program = trace(model)
    zeros = dict(zip(program.inputs, _zeros(program, batch_size, shapes), strict=True))
    model(*keras.tree.map_structure(zeros.get, program.unrolled[-1].args))  # before an export
    session = onnxruntime.InferenceSession(exported(model, "onnx", closed=False))
    inputs = {
        given.name: zeros[ref].numpy()
        for given, ref in zip(session.get_inputs(), program.inputs, strict=True)
    }
    return lambda: session.run(None, inputs)


def _zeros(program: Program, batch_size: int, shapes: Shapes | None) -> list[Any]:
    """A batch of zeros of given shapes, or of those that a model was built with."""
    shapes = shapes or [program.shapes[ref.index] for ref in program.inputs]
    return [
        tf.zeros(_closed(shape, batch_size), program.dtypes[ref.index])
        for ref, shape in zip(program.inputs, shapes, strict=True)
    ]


def _closed(shape: Sequence[int | None], batch_size: int) -> list[int]:
    """A tensor's shape with the batch axis closed."""
    return [batch_size, *(int(size or 1) for size in shape[1:])]


def _fits(shape: Sequence[int], open_shape: Sequence[int]) -> bool:
    """Whether a shape is one of those that an open shape, with -1 for each open size, allows."""
    return len(shape) == len(open_shape) and all(
        wanted in (-1, size) for size, wanted in zip(shape[1:], open_shape[1:], strict=True)
    )
