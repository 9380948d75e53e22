"""Symmetric matrices of which little more than the upper triangle is kept, in block rows.

A block row holds `BLOCK` rows of the matrix from their own diagonal on. All block rows lie one
after another in one flat array, so that such matrices add up as arrays do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BLOCK = 512
"""Rows of a block row. Up to so many rows a matrix is kept whole."""


def starts(n: int) -> range:
    """The first rows of the block rows of a matrix of n rows."""
    return range(0, n, BLOCK)


def numbers_kept(n: int) -> int:
    """How many numbers are kept of a matrix of n rows."""
    return sum(min(BLOCK, n - start) * (n - start) for start in starts(n))


def block_rows(packed: npt.NDArray[Any], n: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yields the first row of each block row, and a view of it, `(rows, n - first)`.

    Args:
        packed: `(numbers,)`.
        n: Rows of the matrix.
    """
    end = 0
    for start in starts(n):
        begin, end = end, end + min(BLOCK, n - start) * (n - start)
        yield start, packed[begin:end].reshape(-1, n - start)


def is_made_anew(n: int) -> bool:
    """Whether the whole matrix of n rows takes memory of its own when it is unpacked."""
    return n > BLOCK


def packed_from(whole: Array) -> Array:
    """What is kept of a symmetric matrix, `(numbers,)`.

    Args:
        whole: `(n, n)`.
    """
    packed = np.empty(numbers_kept(len(whole)))
    for start, rows in block_rows(packed, len(whole)):
        rows[:] = whole[start : start + len(rows), start:]
    return packed


def unpacked(packed: Array, n: int) -> Array:
    """The whole matrix, `(n, n)`: of up to `BLOCK` rows a view, else made anew.

    Args:
        packed: `(numbers,)`.
        n: Rows of the matrix.
    """
    if not is_made_anew(n):
        return packed.reshape(n, n)
    whole = np.empty((n, n))
    for start, rows in block_rows(packed, n):
        stop = start + len(rows)
        whole[start:stop, start:] = rows
        whole[stop:, start:stop] = rows[:, len(rows) :].T
    return whole


def diagonal_of(packed: Array, n: int) -> Array:
    """The diagonal of the matrix, `(n,)`.

    Args:
        packed: `(numbers,)`.
        n: Rows of the matrix.
    """
    return np.concatenate([np.diag(rows) for _, rows in block_rows(packed, n)] or [np.empty(0)])


def add_products(packed: Array, vectors: Array, factor: float) -> None:
    """Adds a factor times the inner products of vectors, in place.

    Args:
        packed: `(numbers,)`.
        vectors: `(n, entries)`.
        factor: The factor.
    """
    for start, rows in block_rows(packed, len(vectors)):
        rows += factor * vectors[start : start + len(rows)] @ vectors[start:].T
