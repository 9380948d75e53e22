"""What the loss is expected to rise by when units leave, and the maps that stand in for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from sgdap.channels.groups import ChannelGraph
from sgdap.depth.shallower import Bypass
from sgdap.depth.units import RemovableUnit, reading_place
from sgdap.execution.inputs import affordable_batch
from sgdap.execution.losses import model_loss
from sgdap.execution.output_scales import settled_losses
from sgdap.execution.pair_sums import Pair, PairMoments, pair_moments
from sgdap.execution.precision import computing_in_float32, full_precision
from sgdap.statistics.ridge import cholesky_with, ridges

Array = npt.NDArray[np.float64]

FEWEST = 512
"""Samples that units are measured on where their rows are enough for the maps."""

ROWS = 4
"""Rows for each channel of the source that a map is fitted to, if there are as many."""


@dataclass(frozen=True, eq=False)
class UnitCost:
    """What a unit's removal is expected to cost.

    Attributes:
        bypass: The unit, and the map that stands in for it.
        error: The expected rise of the loss, `½ tr(Γ E[δ δᵀ])`: δ is what the target lacks after
            the map, Γ the sensitivity at the target.
    """

    bypass: Bypass
    error: float

    @property
    def unit(self) -> RemovableUnit:
        """The unit."""
        return self.bypass.unit


def unit_costs(
    graph: ChannelGraph,
    units: Sequence[RemovableUnit],
    data: Any,
    *,
    samples: int | None = None,
    positions: int = 32,
    seed: int = 0,
    memory: int = 1 << 30,
    progress: Callable[[int], None] | None = None,
) -> tuple[UnitCost, ...]:
    """Measures what units' removal costs, and fits the maps that stand in for them.

    Args:
        graph: The model's channels.
        units: The units.
        data: Calibration inputs that can be read repeatedly, of targets as `collect_statistics`.
        samples: The most samples; None: all. No more are used than maps need.
        positions: Positions of a tensor that are read of each sample at most.
        seed: Seed for sampled positions and targets.
        memory: Bytes for the tensors of one batch.
        progress: Called with the number of samples seen after each batch.

    Returns:
        The cost of each unit, in their order.

    References:
        Γ is the Fisher factor of K-FAC (Martens & Grosse 2015, arXiv 1503.05671 section 2), as for
        channels. Least-squares maps in the place of blocks: ReplaceMe (2025, arXiv 2505.02819).
    """
    if not units:
        return ()
    shapes = graph.program.shapes
    pairs = [Pair(unit.source, unit.target, bool(unit.readers)) for unit in units]
    needed = [FEWEST]
    for pair in pairs:
        if pair.joint:
            there = min(_places(shapes[pair.source]), positions)
            needed.append(ROWS * (shapes[pair.source][-1] or 1) // there)
    enough = max(needed) if samples is None else min(max(needed), samples)
    with computing_in_float32(graph.program.model), full_precision():
        most = affordable_batch(graph, memory)
        losses, _ = settled_losses(
            graph,
            model_loss(graph),
            data,
            batch_size=256,
            samples=enough,
            most=most,
            seed=seed,
        )
        found = pair_moments(
            graph,
            pairs,
            losses,
            data,
            samples=enough,
            positions=positions,
            most=most,
            seed=seed,
            progress=progress,
        )
    return tuple(_cost(graph, unit, own) for unit, own in zip(units, found, strict=True))


def _places(shape: Sequence[int | None]) -> int:
    return int(np.prod([size or 1 for size in shape[1:-1]])) if len(shape) > 2 else 1


def _cost(graph: ChannelGraph, unit: RemovableUnit, own: PairMoments) -> UnitCost:
    about_zero = own.centred / own.rows + np.outer(own.mean, own.mean)
    if not unit.readers:
        return UnitCost(Bypass(unit), _rise(own.sensitivity, about_zero))
    width = graph.program.shapes[unit.source][-1] or 0
    with_offset = all(_takes_offset(graph, number) for number in unit.readers)
    second = own.centred / own.rows if with_offset else about_zero
    source, cross, target = second[:width, :width], second[:width, width:], second[width:, width:]
    matrix = linalg.cho_solve(cholesky_with(source, ridges(source)), cross)
    lacking = target - cross.T @ matrix
    offset = own.mean[width:] - own.mean[:width] @ matrix if with_offset else None
    bypass = Bypass(unit, _rounded(matrix), None if offset is None else _rounded(offset))
    return UnitCost(bypass, _rise(own.sensitivity, lacking))


def _rounded(array: Array) -> Array:
    """The numbers that a plan stores, so that the same ones are used before and after."""
    return array.astype(np.float32).astype(np.float64)


def _takes_offset(graph: ChannelGraph, number: int) -> bool:
    """Whether a call adds the same for an offset of what it reads wherever its kernel is."""
    place = reading_place(graph, number)
    assert place is not None
    everywhere = place.patches.padding == "valid" or set(place.patches.kernel_size) <= {1}
    return place.bias is not None and everywhere


def _rise(sensitivity: Array, second: Array) -> float:
    return max(float((sensitivity * second).sum()) / 2, 0.0)
