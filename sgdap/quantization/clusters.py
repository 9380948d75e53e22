"""A few points that many pairs of numbers are near to: weighted k-means in the plane."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

RESTARTS, MOST_RESTARTS, TRIED = 4, 32, 1 << 16
"""Beginnings that are tried, of which the best goes on: so many that pairs times points times these
are about the last number."""

SAMPLE = 1 << 14
"""Pairs that these are tried on, at most."""

ROUNDS, LAST = 50, 15
"""Times that points move on the sample, and then on all pairs, at most."""

AT_ONCE = 1 << 13
"""Pairs that are worked on side by side: their numbers stay in the processor's cache."""

ENOUGH = 1e-4
"""A smaller relative gain ends the search."""


def best_points(pairs: Array, weights: Array, size: int, seed: int = 0) -> Array:
    """Points of small `Σ w (x − coordinate of the nearest point)²`, over both numbers of pairs.

    Lloyd's algorithm from several beginnings of k-means++. In the plane nobody knows how to find
    the least error in reasonable time, so this is a local one; the seed is fixed.

    Args:
        pairs: `(pairs, 2)`.
        weights: What the error of each number counts, not negative; 0 for a second number that is
            filled up, `(pairs, 2)`.
        size: The number of points.
        seed: Seed of the beginnings.

    Returns:
        The points in order, float32 numbers, `(size, 2)`. Where there are no more different pairs
        than points, these are the pairs, and the last one is there several times.

    Reference:
        Lloyd 1982, "Least squares quantization in PCM"; Arthur & Vassilvitskii 2007,
        "k-means++: the advantages of careful seeding".
    """
    few = _different(pairs, weights, size)
    if few is not None:
        return np.concatenate([few, np.repeat(few[-1:], size - len(few), axis=0)])
    random = np.random.default_rng(seed)
    weights = weights + 1e-12 * weights.max() * (weights.max(axis=1, keepdims=True) > 0)
    some = np.arange(len(pairs))
    if len(pairs) > SAMPLE:
        some = random.choice(len(pairs), SAMPLE, replace=False)
    own, counts = pairs[some], weights[some]
    restarts = int(np.clip(TRIED // (len(own) * size), RESTARTS, MOST_RESTARTS))
    starts = [_spread(own, counts, size, random) for _ in range(restarts)]
    found = [_moved(own, counts, points, ROUNDS) for points in starts]
    best, _ = min(found, key=lambda own: own[1])
    if len(pairs) > SAMPLE:
        best, _ = _moved(pairs, weights, best, LAST)
    best = best.astype(np.float32).astype(np.float64)
    return best[np.lexsort(best.T[::-1])]


def _different(pairs: Array, weights: Array, size: int) -> Array | None:
    """The different pairs, if there are few; a half pair goes with a whole one of its number."""
    half = weights[:, 1] == 0 if (weights[:, 0] > 0).any() else np.zeros(len(pairs), bool)
    half &= pairs[:, 1] == 0
    whole = np.unique(pairs[~half], axis=0)
    if len(whole) > size:
        return None
    alone = np.setdiff1d(pairs[half, 0], whole[:, 0])
    found = np.concatenate([whole, np.stack([alone, np.zeros(len(alone))], axis=1)])
    return found[np.lexsort(found.T[::-1])] if len(found) <= size else None


def _spread(pairs: Array, weights: Array, size: int, random: np.random.Generator) -> Array:
    """Pairs that are far from each other, drawn by the error that those before leave."""
    total = weights.sum(axis=1)
    first = random.choice(len(pairs), p=total / total.sum())
    points = [pairs[first]]
    least = (weights * (pairs - points[0]) ** 2).sum(axis=1)
    for _ in range(size - 1):
        whole = least.sum()
        share = least / whole if whole > 0 else np.full(len(pairs), 1 / len(pairs))
        points.append(pairs[random.choice(len(pairs), p=share)])
        least = np.minimum(least, (weights * (pairs - points[-1]) ** 2).sum(axis=1))
    return np.stack(points)


def _moved(pairs: Array, weights: Array, points: Array, rounds: int) -> tuple[Array, float]:
    """Points at the means of the pairs that are nearest to them, in turn; and their error."""
    last = np.inf
    for _ in range(rounds):
        nearest = _nearest(pairs, weights, points)
        apart = (weights * (pairs - points[nearest]) ** 2).sum(axis=1)
        error = float(apart.sum())
        if error >= last * (1 - ENOUGH):
            break
        last = error
        points = _means(pairs, weights, nearest, points)
        unused = np.flatnonzero(np.bincount(nearest, minlength=len(points)) == 0)
        if len(unused):
            points[unused] = pairs[np.argsort(-apart, kind="stable")[: len(unused)]]
    return points, last


def _nearest(pairs: Array, weights: Array, points: Array) -> Numbers:
    """The number of the nearest point of each pair; what is common to all points is left out."""
    left = np.concatenate([weights, weights * pairs], axis=1)
    right = np.concatenate([points**2, -2 * points], axis=1).T
    parts = range(0, len(pairs), AT_ONCE)
    return np.concatenate([(left[i : i + AT_ONCE] @ right).argmin(axis=1) for i in parts])


def _means(pairs: Array, weights: Array, nearest: Numbers, points: Array) -> Array:
    made = points.copy()
    for axis in range(2):
        total = np.bincount(nearest, weights[:, axis], len(points))
        sums = np.bincount(nearest, weights[:, axis] * pairs[:, axis], len(points))
        made[:, axis] = np.where(total > 0, sums / np.where(total > 0, total, 1), made[:, axis])
    return made
