"""Points of a plane that pairs of a kernel's weights may take; pure mathematics on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgdap.quantization.lattice import Array, Codes


@dataclass(frozen=True, eq=False)
class Constellation:
    """The points of each unit of a kernel, for two neighbouring inputs of an output.

    Rows 2j and 2j + 1 of the kernel are pair j. The last one of an odd number of rows has its first
    number only.

    Attributes:
        points: Float32 numbers, `(units, size, 2)`.
        units: The unit of each pair, `(pairs, outputs)`.
        rows: The rows of the kernel.
    """

    points: Array
    units: Codes
    rows: int

    def values(self, codes: Codes) -> Array:
        """The weights that codes stand for, `(rows, outputs)`.

        Args:
            codes: The numbers of points, from 0, `(pairs, outputs)`.
        """
        return single(self.points[self.units, codes], self.rows)

    def nearest(self, weights: Array) -> Codes:
        """The codes of the nearest points; of several the first one.

        Args:
            weights: `(rows, outputs)`.
        """
        pairs, there = paired(weights), paired(np.ones_like(weights))
        found = np.zeros(self.units.shape, np.int64)
        least = np.full(self.units.shape, np.inf)
        for code in range(self.points.shape[1]):
            apart = ((pairs - self.points[self.units, code]) ** 2 * there).sum(axis=-1)
            found = np.where(apart < least, code, found)
            least = np.minimum(apart, least)
        return found


def paired(matrix: npt.NDArray[np.float64]) -> Array:
    """Two rows of a matrix together, `(pairs, outputs, 2)`; an odd one is filled up with zeros."""
    rows, outputs = matrix.shape
    whole = np.pad(matrix, ((0, rows % 2), (0, 0)))
    return whole.reshape(-1, 2, outputs).transpose(0, 2, 1)


def single(pairs: Array, rows: int) -> Array:
    """The matrix of so many rows that `paired` made pairs of."""
    return pairs.transpose(0, 2, 1).reshape(-1, pairs.shape[1])[:rows]
