"""As `rounding`, where two weights of an output take one point of a plane; pure mathematics."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from scipy import linalg, sparse

from sgdap.quantization.constellation import Constellation
from sgdap.quantization.lattice import Array, Codes
from sgdap.quantization.rounding import BLOCK, LEVELS, in_turn
from sgdap.statistics.ridge import inverse_with


def compensated_pairs(
    second: Array, weights: Array, lattice: Constellation, adapts: bool = True
) -> tuple[Codes, Constellation]:
    """Rounds pairs one after another, and the weights not yet rounded make up for it.

    Then single pairs move to another point where that alone is better, and points to the
    least-squares solution for these codes, in turn.

    Args:
        second: Second moment H with its ridge, `(features, features)`.
        weights: `(features, outputs)`.
        lattice: The points to begin with.
        adapts: Whether they may move.

    Returns:
        The codes, `(pairs, outputs)`, and the points.

    Reference:
        As for `rounding.compensated`; van Baalen et al. 2024, "GPTVQ", arXiv 2402.15319, for pairs
        in the sweep.
    """
    codes = greedy_pairs(second, weights, lattice)

    def descend(present: Constellation, rest: Array) -> None:
        _descend(second, present, codes, rest)

    move = partial(adapted_points, second, codes) if adapts else None
    return codes, in_turn(second, weights, lattice, codes, descend, move)


def greedy_pairs(second: Array, weights: Array, lattice: Constellation) -> Codes:
    """Rounds pairs one after another, those of the largest moments first.

    A pair takes the point at which the error is least once the weights not yet rounded have made
    up for it. With `H⁻¹ = Uᵀ U` of these and the pair, U upper triangular, and U₂ its first two
    rows and columns, a rest e of the pair counts `|U₂⁻ᵀ e|²`.

    Args:
        second: Second moment H with its ridge, `(features, features)`.
        weights: `(features, outputs)`.
        lattice: The points.
    """
    pairs = len(weights) // 2
    power = np.diag(second)[: 2 * pairs].reshape(pairs, 2).sum(axis=1)
    order = np.arange(len(weights))
    order[: 2 * pairs] = (
        order[: 2 * pairs].reshape(pairs, 2)[np.argsort(-power, kind="stable")].ravel()
    )
    own = second[np.ix_(order, order)]
    factor = linalg.cholesky(inverse_with(own, np.full(len(own), 1e-300)), overwrite_a=True)
    w = weights[order]
    codes = np.zeros(lattice.units.shape, np.int64)
    for start in range(0, len(w), BLOCK):
        stop = min(start + BLOCK, len(w))
        errors = np.zeros((stop - start, w.shape[1]))
        for j in range(start, stop, 2):
            pair = int(order[j]) // 2
            points = lattice.points[lattice.units[pair]]
            rests = (w[j][:, None] - points[..., 0]) / factor[j, j]
            costs = rests**2
            others = None
            if j + 1 < stop:
                left = w[j + 1][:, None] - factor[j, j + 1] * rests
                others = (left - points[..., 1]) / factor[j + 1, j + 1]
                costs = costs + others**2
            found = costs.argmin(axis=1)
            codes[pair] = found
            for row, each in enumerate((rests, others)):
                if each is None:
                    continue
                apart = each[np.arange(len(found)), found]
                w[j + row + 1 : stop] -= np.outer(factor[j + row, j + row + 1 : stop], apart)
                errors[j + row - start] = apart
        w[stop:] -= factor[start:stop, stop:].T @ errors
    return codes


def _descend(second: Array, lattice: Constellation, codes: Codes, rest: Array) -> None:
    """One pass of coordinate descent over all pairs; changes codes and `rest = H Δ` in place."""
    each = np.arange(codes.shape[1])
    for start in range(0, len(rest), BLOCK):
        stop = min(start + BLOCK, len(rest))
        moved = np.zeros((stop - start, codes.shape[1]))
        for j in range(start, stop, 2):
            rows, pair = slice(j, min(j + 2, stop)), j // 2
            power = second[rows, rows]
            points = lattice.points[lattice.units[pair]][..., : len(power)]
            steps = points - points[each, codes[pair]][:, None]
            gains = 2 * np.einsum("oki,io->ok", steps, rest[rows])
            changes = np.einsum("oki,ij,okj->ok", steps, power, steps, optimize=True) - gains
            found = changes.argmin(axis=1)
            scale = np.einsum("io,io->o", rest[rows], np.linalg.solve(power, rest[rows]))
            better = changes[each, found] < -1e-9 * scale
            codes[pair] = np.where(better, found, codes[pair])
            step = np.where(better[:, None], steps[each, found], 0.0).T
            moved[j - start : j - start + len(step)] = step
            rest[start:stop] -= second[start:stop, rows] @ step
        if moved.any():
            rest[:start] -= second[:start, start:stop] @ moved
            rest[stop:] -= second[stop:, start:stop] @ moved


def adapted_points(
    second: Array, codes: Codes, rest: Array, lattice: Constellation
) -> Constellation:
    """Points by least squares, one coordinate of one after another.

    Where an output has several units, or it would take too long, they stay.

    Args:
        second: Second moment H, `(features, features)`.
        codes: `(pairs, outputs)`.
        rest: `H Δ` with the present points.
        lattice: The points.
    """
    count, size, _ = lattice.points.shape
    units = lattice.units[0]
    if (lattice.units != units).any() or 2.0 * len(second) * len(second) * codes.shape[1] > LEVELS:
        return lattice
    points, rest = lattice.points.copy(), rest.copy()
    for code in range(size):
        pair, output = np.nonzero(codes == code)
        for axis in range(2):
            row = 2 * pair + axis
            there = row < len(rest)
            row, own = row[there], output[there]
            if not len(row):
                continue
            along = sparse.csc_matrix((np.ones(len(row)), (row, own)), rest.shape)
            reached = np.asarray((along.T @ second).T)
            gain = np.bincount(units[own], rest[row, own], count)
            power = np.bincount(units[own], reached[row, own], count)
            step = np.where(power > 0, gain / np.where(power > 0, power, 1.0), 0.0)
            points[:, code, axis] += step
            rest -= reached * step[units]
    return replace(lattice, points=points.astype(np.float32).astype(np.float64))
