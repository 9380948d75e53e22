"""Finds the tensors of a LiteRT file whose ranges are known of the model, by what both compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np

from sgdap._arguments import shown
from sgdap.distillation.instead import Instead
from sgdap.execution.precision import computing_in_float32
from sgdap.execution.runtimes import Array
from sgdap.model.program import Call, Program
from sgdap.quantization.activations import FIXED, stored_tensors

Ranges = Mapping[str, tuple[float, float]]
"""The least and the largest number of tensors, by name."""

_CALLS = 4
"""Calls whose tensors are compared."""

_NEAR = 1e-4
"""How far equal tensors may be apart, as a share of the largest number."""

_KEEPS = {
    *("RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "SPLIT", "UNPACK", "GATHER", "GATHER_ND"),
    *("PAD", "MIRROR_PAD", "SPACE_TO_DEPTH", "BROADCAST_TO", "AVERAGE_POOL_2D", "MAX_POOL_2D"),
    *("REDUCE_MIN", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
}
"""Operators of which what they make has the scale of what they take."""

_FIXED = {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid", "TANH": "tanh"}
"""Operators of which what they make has a scale that the runtime fixes."""


def check_ranges(program: Program, ranges: Any) -> None:
    """Raises if ranges are not those of tensors of a model.

    Args:
        program: The calls of the model.
        ranges: As `sgdap.export` takes them.

    Raises:
        TypeError: They are no dict of pairs of numbers.
        ValueError: There are none, a tensor is not of the model, or a range is none.
    """
    pairs = isinstance(ranges, Mapping) and all(
        isinstance(name, str) and np.shape(ends) == (2,) for name, ends in ranges.items()
    )
    if not pairs:
        raise TypeError(
            "ranges must be a dict from names of tensors to pairs of numbers, as "
            f"QuantizationCallback has them after a fit. Received: {shown(ranges)}"
        )
    names = [own.name for own in stored_tensors(program).own if own.fixed is None]
    unknown = [name for name in ranges if name not in names]
    if unknown or not ranges:
        raise ValueError(
            f"ranges must name tensors of the model: {', '.join(names)}. Received: "
            f"{', '.join(unknown) or 'none'}. They are of a model with other layers, or of a fit "
            "that was over before its first step."
        )
    for name, (low, high) in ranges.items():
        if not (np.isfinite([low, high]).all() and low <= high):
            raise ValueError(
                "A range is a least and a largest number. "
                f"Received: ranges={{'{name}': ({low}, {high})}}"
            )


def ranges_in_file(
    content: bytes,
    program: Program,
    ranges: Ranges,
    inputs: Sequence[Mapping[str, Array]],
) -> dict[str, tuple[float, float]]:
    """The ranges of the tensors of a float file, as far as they follow from those of its model.

    The model and the file run on the same inputs. A tensor of the file is the one of the model that
    has the same numbers; of several such the range is that of all together. What reshapes make has
    the range of what they take.

    Args:
        content: The file.
        program: The calls of the model.
        ranges: The ranges by the names of the model's tensors.
        inputs: Inputs in calls of the file, by their names there, in the order of the model's.

    Returns:
        The ranges by the names of the file's tensors.
    """
    compute, alike, alive = _computing(content), dict[str, set[tuple[str, int]]](), set[str]()
    for call in inputs[:_CALLS]:
        known = [(own, made) for own, made in _values(program, call) if own[0] in ranges]
        for name, value in compute(call):
            same = {own for own, made in known if _same(made, value)}
            alike[name] = alike.get(name, same) & same
            if value.any():  # all units that are dead look alike
                alive.add(name)
    found: dict[str, tuple[float, float]] = {}
    for name in alive:
        ends = [ranges[own] for own, _ in alike[name]]
        if ends:
            found[name] = min(low for low, _ in ends), max(high for _, high in ends)
    _follow(content, found)
    return found


def _same(made: Array, value: Array) -> bool:
    """Whether two tensors have the same numbers."""
    if made.size != value.size:
        return False
    apart = np.abs(made.ravel() - value.ravel()).max(initial=0.0)
    return bool(apart <= _NEAR * np.abs(value).max(initial=0.0))


def _values(
    program: Program, inputs: Mapping[str, Array]
) -> Iterator[tuple[tuple[str, int], Array]]:
    """What the model computes of each tensor that has a range, with its name and number."""
    found, before = stored_tensors(program), dict[str, Any]()

    def apart(name: str, call: Call, compute: Callable[[], Any], _: Any) -> Any:
        with Instead([(call.operation, "activation", partial(_kept, before, name))]).running():
            return compute()

    taps = {
        own.call: partial(apart, own.name)
        for own in found.own
        if own.before and own.call is not None
    }
    tensors = map(keras.ops.convert_to_tensor, inputs.values())
    values = {ref.index: x for ref, x in zip(program.inputs, tensors, strict=True)}
    with computing_in_float32(program.model), keras.StatelessScope():
        program.advance(values, taps, 0)
    for name, value in before.items():
        yield (name, -1), np.asarray(keras.ops.convert_to_numpy(value))
    for tensor, name in found.names.items():
        yield (name, tensor), np.asarray(keras.ops.convert_to_numpy(values[tensor]))


def _kept(before: dict[str, Any], name: str, activation: Callable[..., Any], x: Any, /) -> Any:
    before[name] = x
    return activation(x)


def _computing(content: bytes) -> Callable[[Mapping[str, Array]], Iterator[tuple[str, Array]]]:
    """Runs a float file, and yields the name of each tensor and what it holds."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as reading

    graph = reading.read_model(content).subgraphs[0]
    interpreter = Interpreter(
        model_content=content,
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    runner = interpreter.get_signature_runner()
    outputs = [int(number) for operator in graph.operators for number in operator.outputs]
    numbers = [n for n in (*map(int, graph.inputs), *outputs) if _is_float(graph.tensors[n])]

    def compute(inputs: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        runner(**inputs)
        for number in numbers:
            yield reading.get_tensor_name(graph.tensors[number]), interpreter.get_tensor(number)

    return compute


def _is_float(tensor: Any) -> bool:
    from ai_edge_quantizer.qtyping import TensorType

    return bool(tensor.type == TensorType.FLOAT32)


def _follow(content: bytes, found: dict[str, tuple[float, float]]) -> None:
    """Adds the ranges that follow from operators that keep or fix them."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as reading

    file = reading.read_model(content)
    graph = file.subgraphs[0]
    more = True
    while more:
        before = len(found)
        for operator in graph.operators:
            code = file.operatorCodes[operator.opcodeIndex].builtinCode
            kind = getattr(reading.TFL_OP_CODE_TO_NAME.get(code), "value", "")
            made = [reading.get_tensor_name(graph.tensors[n]) for n in operator.outputs]
            if kind in _FIXED:
                found.update(dict.fromkeys(made, FIXED[_FIXED[kind]]))
            if kind in _KEEPS:
                tensors = [graph.tensors[n] for n in operator.inputs if n >= 0]
                taken = [reading.get_tensor_name(x) for x in tensors if _is_float(x)][:1]
                known = next((found[name] for name in (*taken, *made) if name in found), None)
                if known is not None:
                    found.update(dict.fromkeys((*taken, *made), known) | found)
        more = len(found) > before
