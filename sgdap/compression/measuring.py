"""What a model costs: weights, bits and bytes of its kernels, FLOPs and time; changes nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.compression.report import LayerMeasures, Measures
from sgdap.exporting.lattices import common_steps
from sgdap.model.tracing import trace
from sgdap.report.profile import profile
from sgdap.weights.kernels import kernels_of

_LARGEST, _MOST_LEVELS = 127, 256
_SCALE = 32
"""Bits of a scale, and of a level of a codebook."""


def measures(
    model: Any, data: Any, score: float | None
) -> tuple[Measures, tuple[LayerMeasures, ...]]:
    """What a model costs, and each of its kernels.

    Args:
        model: The model.
        data: Inputs, which tell the sizes that the model leaves open.
        score: Its score.
    """
    layers, total = _stored(model)
    cost = profile(model, data)
    assert cost.latency is not None
    each = 8 * total / max(cost.params, 1)
    whole = Measures(cost.params, cost.nonzero, cost.flops, each, total, score, cost.latency)
    return whole, layers


def weight_bytes(model: Any) -> int:
    """Bytes of all weights, as `Measures.bytes` counts them."""
    return _stored(model)[1]


def _stored(model: Any) -> tuple[tuple[LayerMeasures, ...], int]:
    layers, bits, counted = [], 0.0, set()
    for kernel in kernels_of(trace(model).layers()):
        value = np.asarray(kernel.variable.numpy())
        own = stored_bits(kernel.layout.matrices(value), 8 * value.dtype.itemsize)
        bits += own
        counted.add(id(kernel.variable))
        nonzero, each = int(np.count_nonzero(value)), own / max(value.size, 1)
        layers.append(LayerMeasures(kernel.path, tuple(value.shape), nonzero, each))
    others = [np.asarray(v.numpy()) for v in model.weights if id(v) not in counted]
    bits += sum(8 * value.nbytes for value in others)
    return tuple(layers), math.ceil(bits / 8)


def stored_bits(matrices: npt.NDArray[Any], plain: int) -> float:
    """The fewest bits in which a kernel can be stored, as `Measures.bytes` tells.

    Args:
        matrices: The kernel, `(groups, rows, outputs)`.
        plain: Bits of a plain number.
    """
    columns = matrices.transpose(0, 2, 1).reshape(-1, matrices.shape[1]).astype(np.float64)
    size, nonzero = columns.size, int(np.count_nonzero(columns))
    if not size:
        return 0.0
    ways = [(plain, 0)]
    steps = common_steps(columns, _LARGEST)
    if steps is not None:
        largest = np.abs(np.rint(columns / steps[:, None])).max()
        ways.append((math.ceil(math.log2(2 * largest + 1)), _SCALE * len(columns)))
    levels = max(len(np.unique(column)) for column in columns)
    if levels <= _MOST_LEVELS:
        ways.append((math.ceil(math.log2(max(levels, 1))), _SCALE * levels * len(columns)))
    masked = [size + nonzero * each + shared for each, shared in ways]
    return float(min(*(size * each + shared for each, shared in ways), *masked))
