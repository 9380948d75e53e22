"""Moments of the output errors of slim consumers; knows no Keras objects."""

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
    """Moments of a slim consumer's input rows x and of its output errors, r = y − ỹ.

    The first axis of each has length 2: samples to fit, and samples held back.

    Attributes:
        count: Number of rows, `(2,)`.
        mean: Mean of x, `(2, features)`.
        second: Mean of `(x − mean)(x − mean)ᵀ`, `(2, features, features)`.
        lacking: Mean of r, `(2, outputs)`.
        power: Mean of `(r − lacking)²`, `(2, outputs)`.
        cross: Mean of `(x − mean)(r − lacking)ᵀ`, `(2, features, outputs)`.
    """

    count: Array
    mean: Array
    second: Array
    lacking: Array
    power: Array
    cross: Array


class ResidualAccumulator:
    """Adds up the sums of batches in float64.

    Args:
        shift: The point s that was subtracted from x in the sums, `(features,)`.
    """

    def __init__(self, shift: Array) -> None:
        self._shift = shift
        self._sums: dict[str, Array] = {}

    def add(self, share: int, sums: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds the sums of one batch over some of the samples.

        Args:
            share: 0 for samples to fit, 1 for samples held back.
            sums: `count`; the sums `x` of x − s, `r` of r and `rr` of its squares; `xx` and `xr` of
                products. What else there is, is left out.
        """
        for name in ("count", "x", "r", "rr", "xx", "xr"):
            value = sums[name]
            if name not in self._sums:
                self._sums[name] = np.zeros((2, *value.shape))
            self._sums[name][share] += value

    def result(self) -> Residuals:
        """The moments of everything added. Call it once: it overwrites the sums."""
        count, second, cross = (self._sums[name] for name in ("count", "xx", "xr"))
        rows = np.maximum(count, 1.0)
        mean, lacking = (self._sums[name] / rows[:, None] for name in ("x", "r"))
        power = np.maximum(self._sums["rr"] / rows[:, None] - lacking**2, 0)
        for share in range(2):  # in place: the matrices are large
            for matrix, other in ((second[share], mean[share]), (cross[share], lacking[share])):
                matrix /= rows[share]
                for row, own in zip(matrix, mean[share], strict=True):
                    row -= own * other
            diagonal = np.einsum("ii->i", second[share])  # a smaller value is rounding error
            np.maximum(diagonal, ROUNDING * mean[share] ** 2, out=diagonal)
        return Residuals(count, mean + self._shift, second, lacking, power, cross)
