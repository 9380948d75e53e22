"""Single weights leave a kernel and the others make up for it; pure mathematics.

Each output o of a kernel is a regression of its own: it counts `γ_o/2 · Δwᵀ H Δw`, with the second
moment H of what the kernel reads. The optimal brain surgeon (Hassibi & Stork 1993) removes a weight
at the cost `γ_o w_j² / (2 [H⁻¹]_jj)` and moves the others of its output by
`−w_j / [H⁻¹]_jj · H⁻¹_:,j`; H⁻¹ is that of the weights still there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from sgdap.statistics.ridge import inverse_with

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

PENDING = 32
"""Downdates of an inverse that wait until they are applied in one matrix product."""

STAYING = 0.8
"""What left is dropped from the inverses when less than this share is left."""

MEMORY = 1 << 28
"""Bytes of the inverses of outputs that are eliminated side by side."""

GONE = -1.0
"""The cost of a weight that left before."""


def costs_alone(second: Array, weights: Array) -> Array:
    """What it costs if one weight alone leaves and all others make up for it, for `γ = 1`.

    Args:
        second: Second moment H with its ridge, `(features, features)`.
        weights: `(features, outputs)`.
    """
    inverse = np.diag(inverse_with(second, np.full(len(second), 1e-300)))
    costs: Array = weights**2 / (2 * inverse[:, None])
    return costs


def costs_in_turn(second: Array, weights: Array, stays: Mask, part: tuple[int, int]) -> Array:
    """What each weight costs when it leaves as the cheapest one of its output, for `γ = 1`.

    The optimal brain surgeon, one output beside the other (Frantar & Alistarh 2022, arXiv
    2208.11580, algorithm 1). Costs never fall along the way, so all weights of a cost below a
    threshold leave before the others of their output.

    Args:
        second: Second moment H with its ridge, `(features, features)`.
        weights: `(features, outputs)`; 0 where a weight left before.
        stays: Which weights are still there, `(features, outputs)`.
        part: `(n, m)`: first weights leave parts of m features that have more than n.

    Returns:
        The costs, `(features, outputs)`; `GONE` where a weight left before.
    """
    costs = np.full(weights.shape, GONE)
    outputs = np.flatnonzero(stays.any(axis=0))
    longest = int(stays.sum(axis=0).max(initial=0))
    several = max(MEMORY // (8 * max(longest, 1) ** 2), 1)
    by_length = outputs[np.argsort(stays.sum(axis=0)[outputs], kind="stable")]
    for start in range(0, len(by_length), several):
        _eliminate(second, weights, stays, by_length[start : start + several], part, costs)
    return costs


def _eliminate(
    second: Array,
    weights: Array,
    stays: Mask,
    outputs: Numbers,
    part: tuple[int, int],
    costs: Array,
) -> None:
    """Removes all weights of some outputs and notes what each cost."""
    features, alive = _supports(stays, outputs)
    every, (least, size) = np.arange(len(outputs)), part
    w = np.where(alive, weights[features, outputs[:, None]], 0.0)
    inverse = _inverses(second, features, alive)
    counts = np.zeros((len(outputs), len(second) // size + 1), np.int64)
    np.add.at(counts, (every[:, None], features // size), alive)
    highest, turn = np.zeros(len(outputs)), 0
    while alive.any():
        if alive.sum(axis=1).max() <= STAYING * alive.shape[1]:
            features, alive, w, inverse = _compacted(features, alive, w, inverse)
        diagonal = np.where(alive, np.einsum("bii->bi", inverse), 1.0)
        waiting = np.zeros((len(outputs), PENDING, alive.shape[1]))
        for pending in range(min(PENDING, alive.shape[1])):
            allowed = alive
            if least < size:
                crowded = alive & (np.take_along_axis(counts, features // size, 1) > least)
                allowed = np.where(crowded.any(axis=1, keepdims=True), crowded, alive)
            rises = np.where(allowed, w**2 / diagonal, np.inf)
            chosen = rises.argmin(axis=1)
            going, number = allowed[every, chosen], features[every, chosen]
            before = waiting[:, :pending]
            column = inverse[every, chosen]
            column -= (before[every, :, chosen][:, None] @ before)[:, 0]
            own = np.sqrt(np.where(going, np.maximum(column[every, chosen], 1e-300), 1.0))
            column *= (alive & going[:, None]) / own[:, None]
            w -= column * (w[every, chosen] / own)[:, None]
            highest = np.where(going, np.maximum(highest, rises[every, chosen] / 2), highest)
            costs[number[going], outputs[going]] = highest[going] * (1 + 1e-9 * turn)
            counts[every, number // size] -= going
            alive[every, chosen] &= ~going
            w[~alive] = 0.0
            diagonal = np.where(alive, np.maximum(diagonal - column**2, 1e-300), 1.0)
            waiting[:, pending] = column
            turn += 1
        inverse -= waiting.transpose(0, 2, 1) @ waiting


def _compacted(
    features: Numbers, alive: Mask, w: Array, inverse: Array
) -> tuple[Numbers, Mask, Array, Array]:
    """The same without what left, as far as the outputs have equally many."""
    order = np.argsort(~alive, axis=1, kind="stable")[:, : alive.sum(axis=1).max()]
    parts: Any = (np.take_along_axis(own, order, 1) for own in (features, alive, w))
    every = np.arange(len(order))[:, None, None]
    features, alive, w = parts
    return features, alive, w, inverse[every, order[:, :, None], order[:, None, :]]


def _supports(stays: Mask, outputs: Numbers) -> tuple[Numbers, Mask]:
    """For each output the features still there, filled up with any, and which are no filling."""
    counts = stays[:, outputs].sum(axis=0)
    order = np.argsort(~stays[:, outputs], axis=0, kind="stable")[: counts.max(initial=0)]
    features = np.ascontiguousarray(order.T)
    return features, np.arange(features.shape[1]) < counts[:, None]


def _inverses(second: Array, features: Numbers, alive: Mask) -> Array:
    """The inverse of the moments of each output's own features; the filling is apart from all."""
    _, first, like = np.unique(
        np.where(alive, features, -1), axis=0, return_index=True, return_inverse=True
    )
    features, alive = features[first], alive[first]
    found: Array = second[features[:, :, None], features[:, None, :]]
    found *= alive[:, :, None] & alive[:, None, :]
    np.einsum("bii->bi", found)[~alive] = 1.0
    for own in found:
        upper = np.triu(inverse_with(own, np.full(len(own), 1e-300)))
        own[...] = upper + np.triu(upper, 1).T
    return found[like.reshape(-1)]


def refitted(second: Array, weights: Array, stays: Mask) -> Array:
    """The weights that stay, as least squares has them when the others are 0.

    `w_S + H_SS⁻¹ H_SR w_R` for each output: what the optimal brain surgeon ends with, in whatever
    order the weights R left.

    Args:
        second: Second moment H with its ridge, `(features, features)`.
        weights: `(features, outputs)`.
        stays: `(features, outputs)`.
    """
    made = np.where(stays, weights, 0.0)
    cross = second @ np.where(stays, 0.0, weights)  # of all outputs: much faster than of each
    for output in np.flatnonzero((~stays & (weights != 0)).any(axis=0)):
        stay = np.flatnonzero(stays[:, output])
        if len(stay):
            factor = linalg.cho_factor(second[np.ix_(stay, stay)], lower=True, overwrite_a=True)
            made[stay, output] += linalg.cho_solve(factor, cross[stay, output])
    return made


def swept(second: Array, weights: Array, stays: Mask) -> Array:
    """The weights that stay, where only later ones of an output make up for one that leaves.

    One factor serves all outputs: with `H⁻¹ = Uᵀ U`, row j of U has what feature j passes on.

    Args:
        second: Second moment H with its ridge, `(features, features)`.
        weights: `(features, outputs)`.
        stays: `(features, outputs)`.

    Reference:
        Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1.
    """
    inverse = inverse_with(second, np.full(len(second), 1e-300))
    factor = linalg.cholesky(inverse, lower=False, overwrite_a=True)
    made = np.array(weights)
    block = 128
    for start in range(0, len(made), block):
        stop = min(start + block, len(made))
        errors = np.zeros((stop - start, made.shape[1]))
        for j in range(start, stop):
            errors[j - start] = np.where(stays[j], 0.0, made[j]) / factor[j, j]
            made[j:stop] -= np.outer(factor[j, j:stop], errors[j - start])
        made[stop:] -= factor[start:stop, stop:].T @ errors
    return np.where(stays, made, 0.0)
