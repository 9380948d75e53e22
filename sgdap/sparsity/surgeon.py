"""The optimal brain surgeon on a model's kernels: what weights cost, and what the others become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.execution import triangle
from sgdap.guidance.elimination import Consumer, eliminate
from sgdap.sparsity.elimination import GONE, costs_alone, costs_in_turn, refitted, swept
from sgdap.sparsity.kernels import SparseKernel
from sgdap.sparsity.patterns import Block, NofM
from sgdap.statistics.moments import Moments
from sgdap.weights.curvature import Curvature, bias_of

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Masks = Mapping[str, Mask]

SCORED = 1e11
"""FLOPs that the elimination of one kernel may take; a larger one is judged weight by weight."""

REFITTED = 3e11
"""FLOPs that least squares of all outputs of a kernel may take; a larger one is swept."""


def weight_costs(
    graph: ChannelGraph,
    kernels: Sequence[SparseKernel],
    known: Mapping[str, Sequence[Curvature]],
    masks: Masks,
) -> dict[str, Array]:
    """The expected rise of the loss as each weight leaves.

    Where it can be afforded, weights leave in turn, always the cheapest one of an output next.
    Large kernels are judged by what each weight costs alone, and kernels of which only the
    curvature by each weight is known by half of it times the weight's square.

    Args:
        graph: The model's channels.
        kernels: The kernels.
        known: Their curvatures by path.
        masks: Which weights are still there, by path.

    Returns:
        The costs of each kernel, in its shape; `GONE` where a weight left before.
    """
    found = {}
    for kernel in kernels:
        weights, stays = _matrices(graph, kernel, masks[kernel.path])
        parts = [
            _costs(kernel, *own) for own in zip(known[kernel.path], weights, stays, strict=True)
        ]
        costs = np.where(stays, np.stack(parts), GONE)
        found[kernel.path] = kernel.layout.kernel(costs, kernel.shape)
    return found


def _matrices(graph: ChannelGraph, kernel: SparseKernel, mask: Mask) -> tuple[Array, Mask]:
    value = np.asarray(variable_of(graph.program, kernel.key).numpy(), np.float64)
    stays = kernel.layout.matrices(mask)
    return np.where(stays, kernel.layout.matrices(value), 0.0), stays


def _costs(kernel: SparseKernel, known: Curvature, weights: Array, stays: Mask) -> Array:
    if known.second is None:
        return known.each * weights**2 / 2
    assert known.powers is not None
    pattern = kernel.pattern
    lengths = stays.sum(axis=0).astype(float)
    if 4 * (lengths**3).sum() > SCORED:
        return costs_alone(known.second, weights) * known.powers
    if isinstance(pattern, Block) and pattern != Block(1, 1):
        return _block_costs(pattern, known.second, weights * np.sqrt(known.powers), stays)
    part = (pattern.n, pattern.m) if isinstance(pattern, NofM) else (1, 1)
    return costs_in_turn(known.second, weights, stays, part) * known.powers


def _block_costs(pattern: Block, second: Array, weights: Array, stays: Mask) -> Array:
    """What each block costs as the cheapest of its columns, shared out among its weights."""
    costs = np.full(weights.shape, GONE)
    blocks = np.arange(len(weights)) // pattern.rows
    for start in range(0, weights.shape[1], pattern.columns):
        columns = slice(start, start + pattern.columns)
        own = np.flatnonzero(stays[:, columns].any(axis=1))
        numbers, channels = np.unique(blocks[own], return_inverse=True)
        if not len(own):
            continue
        packed = triangle.packed_from(np.ascontiguousarray(second[np.ix_(own, own)]))
        moments = Moments(np.ones(1), np.zeros((1, len(own))), packed[None])
        consumer = Consumer(moments, weights[own, columns], channels.astype(np.int64), True)
        curve = eliminate([consumer], np.arange(len(numbers)))
        rises = np.maximum.accumulate(np.diff(curve.errors))
        each = np.empty(len(numbers))
        each[curve.order] = rises * (1 + 1e-9 * np.arange(len(rises)))
        alive = np.bincount(channels, stays[own, columns].sum(axis=1))
        costs[own, columns] = (each / alive)[channels, None]
    return costs


def zeroed(graph: ChannelGraph, kernels: Sequence[SparseKernel], masks: Masks) -> None:
    """Makes weights 0 that are not to stay, in place, and leaves the others as they are.

    Args:
        graph: The channels of the model that is changed.
        kernels: The kernels.
        masks: Which weights stay, by path.
    """
    for kernel in kernels:
        variable = variable_of(graph.program, kernel.key)
        variable.assign(np.where(masks[kernel.path], variable.numpy(), 0))


def refit(
    graph: ChannelGraph,
    kernels: Sequence[SparseKernel],
    known: Mapping[str, Sequence[Curvature]],
    masks: Masks,
) -> None:
    """Makes weights 0 that are not to stay, in place; the others and the bias make up for them.

    Args:
        graph: The channels of the model that is changed.
        kernels: The kernels.
        known: Their curvatures by path.
        masks: Which weights stay, by path.
    """
    for kernel in kernels:
        everything = np.ones(kernel.shape, bool)
        weights, _ = _matrices(graph, kernel, everything)
        stays = kernel.layout.matrices(masks[kernel.path])
        made = np.where(stays, weights, 0.0)
        for group, own in enumerate(known[kernel.path]):
            if own.second is None or stays[group].all():
                continue
            cheap = (stays[group].sum(axis=0).astype(float) ** 3).sum() / 3 <= REFITTED
            fit = refitted if cheap else swept
            made[group] = fit(own.second, weights[group], stays[group])
            if own.mean is not None and own.place is not None:
                bias = bias_of(graph, own.place)
                offset = own.mean @ (weights[group] - made[group])
                bias.assign(own.place.patches.with_offset(bias.numpy(), offset))
        variable = variable_of(graph.program, kernel.key)
        variable.assign(kernel.layout.kernel(made, kernel.shape))
