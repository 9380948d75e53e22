"""Moments of what the outputs of slim consumers lack; knows nothing of Keras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.statistics.ridge import ROUNDING

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Residuals:
    """Moments of a slim consumer's input rows x and of what its outputs lack, r = y − ỹ.

    Each has a leading axis of two: every other sample belongs to one half.

    Attributes:
        count: Rows, `(2,)`.
        mean: Mean of x, `(2, features)`.
        second: Mean of `(x − mean)(x − mean)ᵀ`, `(2, features, features)`.
        lacking: Mean of r, `(2, outputs)`.
        cross: Mean of `(x − mean)(r − lacking)ᵀ`, `(2, features, outputs)`.
    """

    count: Array
    mean: Array
    second: Array
    lacking: Array
    cross: Array

    @property
    def share(self) -> Array:
        """The share of the rows that each half has, `(2,)`."""
        share: Array = self.count / self.count.sum()
        return share


class ResidualAccumulator:
    """Adds up what batches bring, in float64.

    Args:
        shift: The point s about which the batches' sums are taken, `(features,)`.
    """

    def __init__(self, shift: Array) -> None:
        self._shift = shift
        self._sums: dict[str, Array] = {}

    def add(self, half: int, sums: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds one batch's sums of one half of its samples.

        Args:
            half: 0 or 1.
            sums: `count`, and the sums `x` of x − s, `r` of r, `xx` and `xr` of their products.
        """
        for name, value in sums.items():
            if name not in self._sums:
                self._sums[name] = np.zeros((2, *value.shape))
            self._sums[name][half] += value

    def result(self) -> Residuals:
        """The moments of everything added; nothing can be added any more."""
        count, second, cross = (self._sums[name] for name in ("count", "xx", "xr"))
        rows = np.maximum(count, 1.0)
        mean, lacking = (self._sums[name] / rows[:, None] for name in ("x", "r"))
        for half in range(2):  # in place: the matrices are large
            for matrix, other in ((second[half], mean[half]), (cross[half], lacking[half])):
                matrix /= rows[half]
                for row, own in zip(matrix, mean[half], strict=True):
                    row -= own * other
            diagonal = np.einsum("ii->i", second[half])  # less can't be told from 0
            np.maximum(diagonal, ROUNDING * mean[half] ** 2, out=diagonal)
        return Residuals(count, mean + self._shift, second, lacking, cross)
