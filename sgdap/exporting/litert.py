"""LiteRT files of few bits, by AI Edge Quantizer, with the scales that the weights lie on."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.execution.runtimes import Array
from sgdap.exporting.converting import first_line
from sgdap.exporting.lattices import common_steps
from sgdap.quantization.schemes import Affine

_SIGNATURE, _LARGEST = "serving_default", 127

KINDS = (None, "float32", "float16", "dynamic", "int8", "int4")
"""What `quantize` may be, but for a recipe."""


@dataclass(frozen=True)
class Constant:
    """A weight tensor of a file, and the operator that reads it.

    Attributes:
        name: The tensor's name.
        scope: The operator's, by which recipes know it.
        operator: The kind of operator.
        shape: The tensor's shape, with 1 along all axes but that of the outputs.
        rows: The weights of each output, `(outputs, n)`.
        steps: The step of the lattice on which each output's weights lie; None if they do not.
    """

    name: str
    scope: str
    operator: Any
    shape: tuple[int, ...]
    rows: npt.NDArray[np.float64]
    steps: npt.NDArray[np.float64] | None

    @property
    def bits(self) -> int:
        """The fewest bits that LiteRT has for its lattice; 8 where it lies on none."""
        few = self.steps is not None and self._within(7, self.steps)
        return 4 if few and self.takes_few else 8

    @property
    def takes_few(self) -> bool:
        """Whether LiteRT's operator takes weights of 4 bits."""
        from ai_edge_quantizer.qtyping import TFLOperationName as Name

        return self.operator in (Name.CONV_2D, Name.FULLY_CONNECTED, Name.EMBEDDING_LOOKUP)

    def range_of(self, bits: int) -> dict[str, Array]:
        """The range that gives each output its scale, as the quantizer reads it.

        Args:
            bits: The bits of its integers, which are symmetric.
        """
        top, steps = 2 ** (bits - 1) - 1, self.steps
        if steps is None or not self._within(top, steps):
            steps = Affine(bits=bits, range="mse").lattice(self.rows.T).scale
        edge = (top * steps).astype(np.float32).reshape(self.shape)
        return {"min": -edge, "max": edge}

    def _within(self, top: int, steps: npt.NDArray[np.float64]) -> bool:
        return bool((np.abs(self.rows) <= (top + 0.5) * steps[:, None]).all())


def quantized_file(
    content: bytes,
    quantize: str | Sequence[Any] | None,
    samples: Sequence[Mapping[str, Array]],
    known: Mapping[str, tuple[float, float]],
) -> bytes:
    """Makes a file of few bits of a float file.

    Args:
        content: The float file.
        quantize: As `sgdap.export` takes it.
        samples: Inputs by their names in the file, for the ranges of activations; empty: there are
            none.
        known: The ranges of activations that are not measured, by the names of tensors in the file.

    Raises:
        RuntimeError: The ranges of activations can't be measured.
        ValueError: Ranges are needed, and there are no inputs.
    """
    from ai_edge_quantizer import quantizer

    ranges: dict[str, Any] = {}
    if quantize is None or isinstance(quantize, str):
        constants = list(_constants(content))
        recipe, ranges = _recipe(quantize, constants)
    else:
        recipe = list(quantize)
    if not recipe:
        return content
    work = quantizer.Quantizer(content, recipe)
    if work.need_calibration and not samples and not known:
        raise ValueError(
            "To give activations their ranges, this recipe needs data=…, some hundred inputs. "
            "Received: data=None"
        )
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        warnings.simplefilter("ignore", UserWarning)  # of an interpreter that keeps all tensors
        if work.need_calibration:
            measured = _measured(work, samples) if samples else {}
            ranges = {**measured, **_as_the_quantizer_reads(known), **ranges}
        try:
            made = work.quantize(ranges or None, enable_progress_report=False).quantized_model
        except ValueError as error:
            missing = [name for name in _activations(content) if name not in ranges]
            if samples or not known or not missing:
                raise
            raise ValueError(
                "ranges= does not tell the ranges of all tensors that the file stores. Missing: "
                f"{', '.join(missing)} (as LiteRT calls them). Pass data=… too, some hundred "
                "inputs, by which the others are measured."
            ) from error
    return bytes(made)


def _measured(work: Any, samples: Sequence[Mapping[str, Array]]) -> Mapping[str, Any]:
    """The ranges of activations on samples, as the quantizer has them."""
    try:
        measured: Mapping[str, Any] = work.calibrate({_SIGNATURE: samples}, num_threads=1)
    except ValueError as error:  # an LSTM is one operator, which keeps no tensors of its inside
        raise RuntimeError(
            f"it can't measure the ranges of this model's activations ({first_line(error)}), as of "
            "an LSTM. quantize='dynamic' needs none"
        ) from error
    return measured


def _as_the_quantizer_reads(known: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    return {
        name: {"min": np.full((1,), low, np.float32), "max": np.full((1,), high, np.float32)}
        for name, (low, high) in known.items()
    }


def _activations(content: bytes) -> list[str]:
    """The tensors of floats that operators of a file make."""
    from ai_edge_quantizer.qtyping import TensorType
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as reading

    graph = reading.read_model(content).subgraphs[0]
    numbers = [*graph.inputs, *(n for operator in graph.operators for n in operator.outputs)]
    tensors = [graph.tensors[number] for number in numbers]
    return [reading.get_tensor_name(x) for x in tensors if x.type == TensorType.FLOAT32]


def stored_numbers(content: bytes) -> dict[str, int]:
    """How many constants a file holds of each type, the most first.

    Args:
        content: The file.
    """
    from ai_edge_quantizer.qtyping import TensorType
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as reading

    names = {number: name.lower() for name, number in vars(TensorType).items()}
    file = reading.read_model(content)
    found: Counter[str] = Counter()
    for graph in file.subgraphs:
        for tensor in graph.tensors:
            if file.buffers[tensor.buffer].data is not None:
                found[names[tensor.type]] += math.prod(map(int, tensor.shape))
    return dict(found.most_common())


def _recipe(
    quantize: str | None, constants: Sequence[Constant]
) -> tuple[list[Any], dict[str, Any]]:
    """What is done with each operator, and the ranges of the weights that are integers then."""
    from ai_edge_quantizer.qtyping import TFLOperationName as Name
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    every = Name.ALL_SUPPORTED
    if quantize == "float16":
        recipe.load_quantization_recipe(_casting())
        return recipe.get_quantization_recipe(), {}
    if quantize == "int8":
        recipe.add_static_config(".*", every, 8, 8)
    elif quantize == "dynamic":
        recipe.add_dynamic_config(".*", every, 8)
    elif quantize == "int4":
        recipe.add_weight_only_config(".*", every, 8)
    ranges = {}
    for constant in constants:
        if quantize == "float32" or (quantize is None and constant.steps is None):
            continue
        bits = 4 if quantize == "int4" and constant.takes_few else constant.bits
        ranges[constant.name] = constant.range_of(bits)
        scope = f"^{re.escape(constant.scope)}$"
        if quantize == "int8":
            recipe.add_static_config(scope, constant.operator, 8, bits)
        elif quantize == "dynamic":
            recipe.add_dynamic_config(scope, constant.operator, bits)
        else:
            recipe.add_weight_only_config(scope, constant.operator, bits)
    return recipe.get_quantization_recipe(), ranges


def _casting() -> list[Any]:
    """The recipe of weights of 16 bits that are cast when they are read."""
    from ai_edge_quantizer.qtyping import TFLOperationName as Name

    wanted = {
        "weight_tensor_config": {"num_bits": 16, "dtype": "FLOAT"},
        "compute_precision": "FLOAT",
        "explicit_dequantize": True,
    }
    return [
        {"regex": ".*", "operation": name, "algorithm_key": "float_casting", "op_config": wanted}
        for name in (
            Name.FULLY_CONNECTED,
            Name.CONV_2D,
            Name.DEPTHWISE_CONV_2D,
            Name.CONV_2D_TRANSPOSE,
            Name.EMBEDDING_LOOKUP,
        )
    ]


def _constants(content: bytes) -> Iterator[Constant]:
    """The weights that operators read whose scales can be handed over."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as reading

    file = reading.read_model(content)
    for graph in file.subgraphs:
        for operator in graph.operators:
            code = file.operatorCodes[operator.opcodeIndex].builtinCode
            kind = reading.TFL_OP_CODE_TO_NAME.get(code)
            axis = reading.TFL_OP_TO_WEIGHT_QUANTIZED_DIM.get(kind)
            if axis is None:
                continue
            for number in operator.inputs:
                tensor = graph.tensors[number]
                weights = reading.get_tensor_data(tensor, file.buffers) if number >= 0 else None
                if weights is None or weights.ndim < 2 or weights.dtype != np.float32:
                    continue
                rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
                shape = tuple(n if i == axis else 1 for i, n in enumerate(weights.shape))
                rows = rows.astype(np.float64)
                yield Constant(
                    reading.get_tensor_name(tensor),
                    reading.get_op_scope(operator, graph.tensors),
                    kind,
                    shape,
                    rows,
                    common_steps(rows, _LARGEST),
                )
