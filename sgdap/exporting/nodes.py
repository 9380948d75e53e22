"""Numbers of a LiteRT file's operators for Google's Model Explorer, read from the file alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sgdap._arguments import check_choice

_BITS = {"FLOAT32": 32, "FLOAT16": 16, "INT16": 16, "INT8": 8, "UINT8": 8, "INT4": 4, "INT2": 2}
VALUES = ("bits", "sparsity", "width", "weights")


def node_data(path: str | Path, value: str) -> str:
    """Custom node data for Model Explorer: a number for each operator that reads a kernel.

    Args:
        path: The LiteRT file, which Model Explorer shows.
        value: `"bits"` of a weight, `"sparsity"`, the share of weights that are 0, `"width"`, the
            number of outputs, or `"weights"`, their number.

    Returns:
        JSON; its keys are the names of the tensors that the operators make.

    Raises:
        ValueError: `value` is unknown.
    """
    check_choice("value", value, VALUES)
    results = {name: {"value": own[value]} for name, own in _kernels(Path(path).read_bytes())}
    colours = [{"stop": 0, "bgColor": "#e8f1fa"}, {"stop": 1, "bgColor": "#2171b5"}]
    return json.dumps({"main": {"name": value, "results": results, "gradient": colours}}, indent=1)


def _kernels(content: bytes) -> Iterator[tuple[str, dict[str, float]]]:
    """The tensors that operators with a kernel make, and what is told of the kernel."""
    from ai_edge_quantizer.qtyping import TensorType
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as reading

    file = reading.read_model(content)
    names = {number: name for name, number in vars(TensorType).items() if not name.startswith("_")}
    graph = file.subgraphs[0]
    makers = {int(n): own for own in graph.operators for n in own.outputs}
    for operator in graph.operators:
        code = file.operatorCodes[operator.opcodeIndex].builtinCode
        axis = reading.TFL_OP_TO_WEIGHT_QUANTIZED_DIM.get(reading.TFL_OP_CODE_TO_NAME.get(code))
        if axis is None:
            continue
        for number in map(int, operator.inputs):
            while number in makers and len(makers[number].inputs) == 1:  # what is cast before
                number = int(makers[number].inputs[0])
            if number < 0 or number in makers:
                continue
            tensor = graph.tensors[number]
            data, kind = file.buffers[tensor.buffer].data, names[tensor.type]
            if data is None or len(tensor.shape) < 2 or kind not in _BITS:
                continue
            size = int(np.prod(tensor.shape))
            told = {
                "bits": _BITS[kind],
                "sparsity": float((_numbers(bytes(data), kind)[:size] == 0).mean()),
                "width": int(tensor.shape[axis]),
                "weights": size,
            }
            for made in operator.outputs:
                yield reading.get_tensor_name(graph.tensors[int(made)]), told


def _numbers(data: bytes, kind: str) -> Any:
    """The numbers of a buffer; those of fewer than 8 bits lie in bytes, the first lowest."""
    bits = _BITS[kind]
    if bits < 8:
        whole = np.frombuffer(data, np.uint8)
        parts = [(whole >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        return np.stack(parts, axis=-1).ravel()
    return np.frombuffer(data, kind.lower())
