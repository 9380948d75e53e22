"""The best few levels for many numbers: exact weighted k-means in one dimension."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

AT_ONCE = 1 << 21
"""Numbers that are worked on side by side, about."""


def best_levels(values: Array, weights: Array, levels: int) -> Array:
    """The levels of least `Σ w (x − level of x)²`, for each unit.

    Dynamic programming over the sorted numbers; the best split rises with the number of numbers, so
    it is found by divide and conquer.

    Args:
        values: `(units, n)`.
        weights: What the error of each counts, not negative, `(units, n)`.
        levels: The number of levels.

    Returns:
        The levels of each unit, ascending, `(units, levels)`. Where there are fewer different
        numbers than levels, these are the numbers and the last one is there several times.

    Reference:
        Wang & Song 2011, "Ckmeans.1d.dp"; Grønlund et al. 2017, arXiv 1701.07204.
    """
    several = max(AT_ONCE // max(values.shape[1], 1), 1)
    parts = [
        _best(values[start : start + several], weights[start : start + several], levels)
        for start in range(0, len(values), several)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, levels))


def _best(values: Array, weights: Array, levels: int) -> Array:
    order = np.argsort(values, axis=1)
    x, w = np.take_along_axis(values, order, 1), np.take_along_axis(weights, order, 1)
    made = np.empty((len(x), levels))
    few = (np.diff(x, axis=1) != 0).sum(axis=1) < levels
    for unit in np.flatnonzero(few):
        own = np.unique(x[unit])
        made[unit] = np.concatenate([own, np.repeat(own[-1:], levels - len(own))])
    if not few.all():
        made[~few] = _divided(x[~few], w[~few], levels)
    return made


def _divided(x: Array, w: Array, levels: int) -> Array:
    """As `best_levels`, of sorted numbers of which there are more than levels."""
    count = x.shape[1]
    w = w + 1e-12 * w.max(axis=1, keepdims=True) + 1e-300  # so that each has a level of its own
    centre = (w * x).sum(axis=1, keepdims=True) / w.sum(axis=1, keepdims=True)
    sums = _Sums(x - centre, w)
    ends = np.arange(1, count + 1)
    least = sums.error(np.zeros((len(x), 1), np.int64), np.broadcast_to(ends, x.shape))
    splits = []
    for _ in range(levels - 1):
        least, split = _with_one_more(least, sums)
        splits.append(split)
    made = np.empty((len(x), levels))
    end = np.full((len(x), 1), count)
    for level in range(levels - 1, -1, -1):
        begin = np.take_along_axis(splits[level - 1], end - 1, 1) if level else np.zeros_like(end)
        made[:, level] = (sums.mean(begin, end) + centre)[:, 0]
        end = begin
    return made


class _Sums:
    """Sums of the weights, the numbers and their squares over any part of each unit."""

    def __init__(self, x: Array, w: Array) -> None:
        parts = np.stack([w, w * x, w * x**2])
        self._sums = np.pad(np.cumsum(parts, axis=2), ((0, 0), (0, 0), (1, 0)))
        self._units = np.arange(len(x))[:, None]

    def _part(self, begin: Numbers, end: Numbers, units: Numbers | None) -> Array:
        own = self._units if units is None else units
        found: Array = self._sums[:, own, end] - self._sums[:, own, begin]
        return found

    def error(self, begin: Numbers, end: Numbers, units: Numbers | None = None) -> Array:
        """The least error of one level for the numbers from `begin` up to before `end`."""
        weight, first, second = self._part(begin, end, units)
        made: Array = np.maximum(second - first**2 / np.maximum(weight, 1e-300), 0.0)
        return made

    def mean(self, begin: Numbers, end: Numbers) -> Array:
        weight, first, _ = self._part(begin, end, None)
        made: Array = first / np.maximum(weight, 1e-300)
        return made


def _with_one_more(least: Array, sums: _Sums) -> tuple[Array, Numbers]:
    """The least errors of the first 1 to n numbers with a level more, and where that begins.

    Ends are looked at from the middle one on: where the last level of an end begins lies between
    the beginnings for the ends beside it.
    """
    units, count = least.shape
    before = np.concatenate([np.zeros((units, 1)), least], axis=1)  # of the first 0 to n
    made = np.zeros((units, count))
    split = np.zeros((units, count), np.int64)
    known = np.zeros((units, count + 2), np.int64)  # by end; of the ends 0 and n + 1 the limits
    known[:, -1] = count
    step = 1 << count.bit_length()
    while step > 1:
        half = step // 2
        ends = np.arange(half, count + 1, step)
        if len(ends):
            low = known[:, ends - half]
            high = np.minimum(known[:, np.minimum(ends + half, count + 1)], ends - 1)
            low = np.minimum(low, high)
            found, where = _least_between(before, sums, low, high, ends)
            made[:, ends - 1], split[:, ends - 1], known[:, ends] = found, where, where
        step = half
    return made, split


def _least_between(
    before: Array, sums: _Sums, low: Numbers, high: Numbers, ends: Numbers
) -> tuple[Array, Numbers]:
    """For each unit and end the least error over the beginnings from `low` to `high`."""
    lengths = (high - low + 1).ravel()
    starts = np.cumsum(lengths) - lengths
    begin = np.arange(lengths.sum()) + np.repeat(low.ravel() - starts, lengths)
    unit = np.repeat(np.repeat(np.arange(len(low)), len(ends)), lengths)
    end = np.repeat(np.broadcast_to(ends, low.shape).ravel(), lengths)
    errors = before[unit, begin] + sums.error(begin, end, unit)
    found = np.minimum.reduceat(errors, starts)
    where = np.where(errors == np.repeat(found, lengths), begin, len(before[0]))
    return found.reshape(low.shape), np.minimum.reduceat(where, starts).reshape(low.shape)
