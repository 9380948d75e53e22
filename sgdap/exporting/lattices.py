"""Finds the integers behind weights, from their values alone; changes nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TOLERANCE = 2.0**-22
"""How far from a multiple a weight may be, as a share of the largest of its row: what is left of
float32 after a product, as with the scale of a normalisation that a converter folds."""

_FEW = 8
"""Rows, and entries of a row, that are looked at first: most steps fail at these."""


def common_steps(rows: Array, top: int) -> Array | None:
    """The largest step of each row of which all its entries are whole multiples.

    Args:
        rows: The weights of one unit in each row, `(units, n)`.
        top: The largest multiple, in size.

    Returns:
        A step for each row, `(units,)`, 1 where a row is zero; None if a row has none.
    """
    if np.isnan(_steps(rows[:_FEW], top)).any():
        return None
    steps = _steps(rows, top)
    return None if np.isnan(steps).any() else steps


def _steps(rows: Array, top: int) -> Array:
    """The same; NaN for a row that has none."""
    sizes = np.abs(rows)
    largest = sizes.max(axis=1, initial=0.0)
    found = np.where(largest > 0, np.nan, 1.0)
    few = np.argsort(sizes, axis=1)[:, :: max(rows.shape[1] // _FEW, 1)]
    first = np.take_along_axis(rows, few, 1)
    for multiple in range(1, top + 1):
        left = np.flatnonzero(np.isnan(found))
        step = largest[left] / multiple
        left = left[_near(first[left], step[:, None], multiple)]
        if not len(left):
            continue
        step = largest[left] / multiple
        whole = np.rint(rows[left] / step[:, None])
        step = (whole * rows[left]).sum(axis=1) / (whole**2).sum(axis=1)
        apart = np.abs(whole * step[:, None] - rows[left]).max(axis=1)
        fits = apart <= TOLERANCE * largest[left]
        found[left[fits]] = step[fits]
    return found


def _near(entries: Array, step: Array, multiple: int) -> npt.NDArray[np.bool_]:
    counts = entries / step
    near: npt.NDArray[np.bool_] = (
        np.abs(counts - np.rint(counts)).max(axis=1) <= 4 * TOLERANCE * multiple
    )
    return near
