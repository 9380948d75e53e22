"""The cost of a model for any widths: parameters, FLOPs and bytes; never chooses the widths."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from scipy import sparse

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.labels import Channels
from sgdap.model.program import Program
from sgdap.planning.work import untold_work

MEASURES = ("params", "flops", "bytes")
"""The measures that a `CostModel` counts, in the order of its results."""


@dataclass(frozen=True, eq=False)
class CostModel:
    """The cost as a sum of products of widths: `cost = Σ_t factor_t · Π_j width(axis_tj)`.

    Attributes:
        widths: How many entries of each distinct axis belong to each channel,
            `(axes, channels)`, sparse.
        terms: The terms of each measure. A term is its factor and the numbers of its axes.
    """

    widths: sparse.csc_matrix
    terms: tuple[tuple[tuple[float, tuple[int, ...]], ...], ...]

    def lengths(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """The width of every axis if the `kept` channels stay, `(axes,)`."""
        return np.asarray(self.widths @ kept.astype(float))

    def cost(self, lengths: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Parameters, FLOPs and bytes for the given widths of all axes, `(measures,)`."""
        return np.array(
            [
                sum(f * math.prod(lengths[a] for a in axes) for f, axes in terms)
                for terms in self.terms
            ]
        )

    @property
    def whole(self) -> npt.NDArray[np.float64]:
        """What the whole model costs, `(measures,)`."""
        return self.cost(self.lengths(np.ones(self.widths.shape[1], bool)))


def cost_model(graph: ChannelGraph, gone: Collection[str] = ()) -> CostModel:
    """Makes the cost model of a model from its channels.

    Args:
        graph: The model's channels.
        gone: Paths of layers and operations that cost nothing, as they leave.

    Returns:
        The `CostModel`. Parameters are all weights, as `model.count_params()` counts them,
        moving statistics included. FLOPs are for one sample, one multiply-add = 2: those that
        channel rules state, and a constant for those that `untold_work` finds without a rule.
        Bytes are those of all weights in the types that they are saved in.
    """
    numbers: dict[bytes, int] = {}
    axes: list[Channels] = []

    def number(channels: Channels) -> int:
        key = channels.tobytes()
        if key not in numbers:
            numbers[key] = len(axes)
            axes.append(channels)
        return numbers[key]

    labelled: dict[tuple[str, int], dict[int, int]] = {}
    for axis in graph.axes:
        if axis.path in gone:
            continue
        labelled.setdefault((axis.path, axis.variable), {})[axis.axis] = number(axis.channels)
    parameters: list[tuple[float, tuple[int, ...]]] = []
    sizes: list[tuple[float, tuple[int, ...]]] = []
    for path, layer in graph.program.layers().items():
        for index, variable in enumerate(_weights(layer) if path not in gone else ()):
            known = labelled.get((path, index), {})
            rest = [size for axis, size in enumerate(variable.shape) if axis not in known]
            parameters.append((float(math.prod(rest)), tuple(known.values())))
            sizes.append((parameters[-1][0] * _item_size(variable), parameters[-1][1]))
    layers = {id(v) for layer in graph.program.layers().values() for v in _weights(layer)}
    for variable in graph.program.model.weights:
        if id(variable) not in layers:  # a weight of the model itself, not of a layer
            count = float(math.prod(variable.shape))
            parameters.append((count, ()))
            sizes.append((count * _item_size(variable), ()))
    work = [(w.factor, tuple(number(c) for c in w.axes)) for w in graph.work if w.path not in gone]
    work += [
        (found.flops, ())
        for path, found in untold_work(graph).items()
        if found.flops and path not in gone
    ]
    rows = np.concatenate([np.full(len(c), i) for i, c in enumerate(axes)] or [np.zeros(0, int)])
    columns = np.concatenate([*axes, np.zeros(0, np.int64)])
    widths = sparse.csc_matrix(
        (np.ones(len(rows)), (rows.astype(int), columns.astype(int))), (len(axes), graph.count)
    )
    return CostModel(widths, (tuple(parameters), tuple(work), tuple(sizes)))


def parameters_by_layer(program: Program) -> dict[str, int]:
    """The number of parameters of each layer of a model, by path."""
    return {
        path: sum(math.prod(v.shape) for v in _weights(layer))
        for path, layer in program.layers().items()
    }


def _weights(layer: Any) -> list[Any]:
    """The weights of a layer; empty for an operation that is not a layer."""
    return layer.weights if isinstance(layer, keras.Layer) else []


def _item_size(variable: Any) -> int:
    """Bytes of one entry of a variable."""
    return int(np.dtype(variable.dtype).itemsize)
