"""Schemes in which two neighbouring weights of an output share a code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdap._arguments import check_integer, shown
from sgdap.quantization.base import Powered, Scheme, apart
from sgdap.quantization.clusters import best_points
from sgdap.quantization.constellation import Constellation, paired
from sgdap.quantization.lattice import SHARES, Array, even_scale, symmetric_scale


@dataclass(frozen=True)
class QAM(Powered):
    """Pairs of weights on a square grid of points, one scale for both: one code for two weights.

    It is what radio calls quadrature amplitude modulation. Its two axes are rounded apart, so its
    error is that of as many even levels; codes of pairs waste less where these are no power of two:
    25 points are 5 levels of 2½ bits.

    Attributes:
        size: The number of points, a square from 4 to 256. With an odd number of levels 0 is one.
    """

    size: int = 25

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        check_integer("size", self.size, 4)
        if self.size > 256 or self.levels**2 != self.size:
            raise ValueError(
                f"size must be a square, 256 at most: 4, 9, 16, 25, … Received: size={self.size}"
            )
        _check_even("per", self.per)

    @property
    def levels(self) -> int:
        """Those of a weight, the side of the square."""
        return math.isqrt(self.size)

    @property
    def together(self) -> int:
        """Two."""
        return 2

    @property
    def code_bits(self) -> int:
        """Those of a point."""
        return math.ceil(math.log2(self.size))

    @property
    def _base(self) -> Array:
        half = self.levels // 2
        return (
            np.arange(-half, half + 1.0)
            if self.levels % 2
            else np.arange(1.0 - self.levels, self.levels, 2)
        )

    def _scale(self, values: Array, weights: Array) -> Array:
        if self.levels % 2:
            return symmetric_scale(values, weights, self.levels // 2, SHARES)
        return even_scale(values, weights, self._base, SHARES)


@dataclass(frozen=True)
class Pairs(Scheme):
    """Pairs of weights on any points of a plane, found by k-means: a codebook of pairs.

    Two neighbouring inputs of an output take one point. Vector quantization gains what single
    levels can't: points lie where pairs are, and fill the plane better. The codebook takes 64 bits
    for each point, so all of a kernel share one; unlike `Codebook`, it is a local optimum.

    Attributes:
        size: The number of points, from 2 to 256.
    """

    per: str | int = "tensor"
    size: int = 64

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        check_integer("size", self.size, 2)
        if self.size > 256:
            raise ValueError(f"size must be 256 at most. Received: size={self.size}")
        _check_even("per", self.per)

    @property
    def levels(self) -> int:
        """The number of points."""
        return self.size

    @property
    def together(self) -> int:
        """Two."""
        return 2

    @property
    def unit_bits(self) -> int:
        """Those of its points."""
        return 64 * self.size

    def lattice(self, weights: Array, importance: Array | None = None) -> Constellation:
        """The points that suit a matrix, and the unit of each pair."""
        pairs = paired(weights)
        counts = paired(np.ones_like(weights) if importance is None else importance)
        units = self.units(weights.shape)[::2]
        count = int(units.max(initial=-1)) + 1
        own, each = (
            np.stack([apart(x[..., i], units, count) for i in (0, 1)], axis=-1)
            for x in (pairs, counts)
        )
        there = apart(np.ones(units.shape), units, count) > 0
        half = np.zeros(units.shape)
        half[-1:] = len(weights) % 2
        halves = apart(half, units, count) > 0
        points = []
        for unit in range(count):
            weight = each[unit][there[unit]]
            if not weight.any():
                weight = np.ones_like(weight)
            weight[halves[unit][there[unit]], 1] = 0
            points.append(best_points(own[unit][there[unit]], weight, self.size))
        made = np.stack(points) if points else np.zeros((0, self.size, 2))
        return Constellation(made, units, len(weights))


def _check_even(name: str, value: Any) -> None:
    if not isinstance(value, str) and value % 2:
        raise ValueError(f"{name} must be even for pairs. Received: {name}={shown(value)}")
