"""Weights are rounded to a lattice and the others make up for it; pure mathematics.

The change Δ of an output's weights counts `Δᵀ H Δ`, with the second moment H of what the kernel
reads. To round a weight is to remove it and leave a known rest, so the others move as the optimal
brain surgeon has it. What greedy rounding leaves is improved from there: single codes by coordinate
descent, scales and levels by least squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import linalg

from sgdap.quantization.constellation import Constellation
from sgdap.quantization.lattice import Array, Codes, Lattice
from sgdap.statistics.ridge import inverse_with

Mask = npt.NDArray[np.bool_]

AnyLattice = TypeVar("AnyLattice", Lattice, Constellation)

BLOCK = 64
"""Rows that are rounded before the others make up for them in one matrix product."""

PASSES = 20
"""Times that all weights are looked at again, at most."""

ENOUGH = 1e-4
"""A smaller relative gain of a pass ends the search."""

LEVELS = 4e10
"""FLOPs that moving the levels of codebooks once may take; else they stay."""


def error(second: Array, apart: Array) -> Array:
    """What a change of the weights counts for each output, `Δᵀ H Δ`.

    Args:
        second: Second moment H, `(features, features)`.
        apart: The change Δ, `(features, outputs)`.
    """
    found: Array = np.einsum("io,io->o", apart, second @ apart)
    return found


def compensated(
    second: Array,
    weights: Array,
    lattice: Lattice,
    adapts: bool = True,
    fixed: Mask | None = None,
) -> tuple[Codes, Lattice]:
    """Rounds weights one after another, and the ones not yet rounded make up for it.

    Then codes move to a neighbour where that alone is better, and the scales, or the levels of
    codebooks, to the least-squares solution for these codes, in turn.

    Args:
        second: Second moment H with its ridge, `(features, features)`.
        weights: `(features, outputs)`.
        lattice: The lattice to begin with.
        adapts: Whether its scales or levels may move.
        fixed: Which weights stay 0, `(features, outputs)`, if the lattice has that; None: none.

    Returns:
        The codes, `(features, outputs)`, and the lattice.

    Reference:
        Frantar et al. 2022, "GPTQ", arXiv 2210.17323, algorithm 1, the features of largest moment
        first; Behdin et al. 2023, "QuantEase", arXiv 2309.01885, for coordinate descent.
    """
    held = _held(lattice, fixed)
    codes = greedy(second, weights, lattice, fixed)

    def descend(present: Lattice, rest: Array) -> None:
        _descend(second, present, codes, rest, held)

    move = partial(adapted, second, codes) if adapts else None
    return codes, in_turn(second, weights, lattice, codes, descend, move)


def in_turn(
    second: Array,
    weights: Array,
    lattice: AnyLattice,
    codes: Codes,
    descend: Callable[[AnyLattice, Array], None],
    move: Callable[[Array, AnyLattice], AnyLattice] | None,
) -> AnyLattice:
    """Moves codes and levels in turn, until that brings no more.

    Args:
        second: Second moment H with its ridge, `(features, features)`.
        weights: `(features, outputs)`.
        lattice: The levels or points to begin with.
        codes: The codes, changed in place.
        descend: One pass over all codes; takes the levels and `H Δ`, and changes both codes and
            `H Δ` in place.
        move: Takes `H Δ` and the levels, and returns better ones; None: they stay.

    Returns:
        The levels or points.
    """
    rest, least = second @ (weights - lattice.values(codes)), np.inf
    for _ in range(PASSES):
        descend(lattice, rest)
        if move is not None:
            lattice = move(rest, lattice)
        apart = weights - lattice.values(codes)
        rest = second @ apart
        found = float(np.einsum("io,io->", apart, rest))
        if found > least * (1 - ENOUGH):
            break
        least = found
    return lattice


def _held(lattice: Lattice, fixed: Mask | None) -> Codes | None:
    """The codes of weights that stay 0, and −1 for the others; None: there are none."""
    if fixed is None or not fixed.any():
        return None
    zeros = lattice.zeros()
    return None if zeros is None else np.where(fixed, zeros, -1)


def greedy(second: Array, weights: Array, lattice: Lattice, fixed: Mask | None = None) -> Codes:
    """Rounds weights one after another; the ones not yet rounded make up for it.

    Args:
        second: Second moment H with its ridge, `(features, features)`.
        weights: `(features, outputs)`.
        lattice: The lattice.
        fixed: As for `compensated`.
    """
    held = _held(lattice, fixed)
    order = np.argsort(-np.diag(second), kind="stable")
    own = second[np.ix_(order, order)]
    inverse = inverse_with(own, np.full(len(own), 1e-300))
    factor = linalg.cholesky(inverse, lower=False, overwrite_a=True)
    w = weights[order]
    codes = np.zeros(weights.shape, np.int64)
    for start in range(0, len(w), BLOCK):
        stop = min(start + BLOCK, len(w))
        errors = np.zeros((stop - start, w.shape[1]))
        for j in range(start, stop):
            row = slice(int(order[j]), int(order[j]) + 1)
            near = lattice.nearest(w[j : j + 1], row)
            codes[row] = near if held is None else np.where(held[row] < 0, near, held[row])
            apart = (w[j] - lattice.values(codes[row], row)[0]) / factor[j, j]
            w[j + 1 : stop] -= np.outer(factor[j, j + 1 : stop], apart)
            errors[j - start] = apart
        w[stop:] -= factor[start:stop, stop:].T @ errors
    return codes


def _descend(
    second: Array, lattice: Lattice, codes: Codes, rest: Array, held: Codes | None
) -> None:
    """One pass of coordinate descent over all weights; changes codes and `rest = H Δ` in place."""
    power = np.diag(second)
    values = lattice.values(codes)
    for start in range(0, len(codes), BLOCK):
        stop = min(start + BLOCK, len(codes))
        moved = np.zeros((stop - start, codes.shape[1]))
        for j in range(start, stop):
            row = slice(j, j + 1)
            wanted = values[row] + rest[row] / power[j]
            new = lattice.nearest(wanted, row)
            own = lattice.values(new, row)
            better = np.abs(own - wanted) < np.abs(values[row] - wanted) * (1 - 1e-9)
            if held is not None:
                better &= held[row] < 0
            step = np.where(better, own - values[row], 0.0)
            codes[row] = np.where(better, new, codes[row])
            moved[j - start] = step[0]
            rest[start:stop] -= np.outer(second[start:stop, j], step[0])
        if moved.any():
            rest[:start] -= second[:start, start:stop] @ moved
            rest[stop:] -= second[stop:, start:stop] @ moved


def adapted(second: Array, codes: Codes, rest: Array, lattice: Lattice) -> Lattice:
    """The lattice whose scales, or levels, are best for codes.

    Args:
        second: Second moment H, `(features, features)`.
        codes: `(features, outputs)`.
        rest: `H Δ` with the present lattice.
        lattice: The lattice.
    """
    if lattice.base.ndim == 2:
        return _with_levels(second, codes, rest, lattice)
    count = len(lattice.scale)
    change = _steps(second, lattice.directions(codes), rest, lattice.units, count)
    return lattice.scaled(np.maximum(lattice.scale + change, 0.0))


def _steps(
    second: Array, along: Array, rest: Array, units: npt.NDArray[np.int64], count: int
) -> Array:
    """How far to go along a direction in each unit for the least error, all units at once.

    Units of one output read each other's; they go one part of the inputs after another.
    """
    change = np.zeros(count)
    first = units[:, :1] if units.shape[1] else units
    parts = np.split(np.arange(len(units)), np.flatnonzero(np.diff(first[:, 0])) + 1)
    rest = rest.copy() if len(parts) > 1 else rest
    for part in parts:
        own = along[part]
        within = own * (second[np.ix_(part, part)] @ own)
        gain = np.bincount(units[part].ravel(), (own * rest[part]).ravel(), count)
        power = np.bincount(units[part].ravel(), within.ravel(), count)
        step = np.where(power > 0, gain / np.where(power > 0, power, 1.0), 0.0)
        change += step
        if len(parts) > 1:
            rest -= second[:, part] @ (own * step[units[part]])
    return change


def _with_levels(second: Array, codes: Codes, rest: Array, lattice: Lattice) -> Lattice:
    """Levels of codebooks by least squares, one after another; codes follow their order."""
    count, levels = lattice.base.shape
    if 2.0 * len(second) * codes.size * levels > LEVELS:
        return lattice
    base, rest = lattice.base.copy(), rest.copy()
    for level in range(levels):
        own = (codes == level).astype(np.float64)
        if own.any():
            step = _steps(second, own, rest, lattice.units, count)
            base[:, level] += step
            rest -= second @ (own * step[lattice.units])
    order = np.argsort(base, axis=1, kind="stable")
    codes[...] = np.argsort(order, axis=1)[lattice.units, codes]
    base = np.take_along_axis(base, order, 1).astype(np.float32).astype(np.float64)
    return replace(lattice, base=base)
