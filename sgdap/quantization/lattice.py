"""Values that a kernel's weights may take; pure mathematics on arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

DIGITS = 16
"""Significant bits of a scale: so its products with integers of eight bits are exact in float32."""


SHARES = np.concatenate([np.arange(1.0, 0.8, -0.02), np.arange(0.8, 0.28, -0.04)])
"""The shares of the range of a unit's weights that are tried for that of its lattice."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """The levels of each unit of a kernel: `scale · (base − zero)`, rounded to float32.

    A unit has levels of its own: an output, a part of its inputs, or all of the kernel.

    Attributes:
        base: Ascending numbers, those of all units `(levels,)` or of each `(units, levels)`.
        scale: `(units,)`.
        zero: `(units,)`.
        units: The unit of each weight, `(rows, outputs)`.
    """

    base: Array
    scale: Array
    zero: Array
    units: Codes

    def values(self, codes: Codes, row: slice = slice(None)) -> Array:
        """The levels of some rows of codes.

        Args:
            codes: The numbers of levels, from 0, `(rows, outputs)`.
            row: The rows of the kernel that these are.
        """
        own = self.units[row]
        base = self.base[codes] if self.base.ndim == 1 else self.base[own, codes]
        made = self.scale[own] * (base - self.zero[own])
        return made.astype(np.float32).astype(np.float64)

    def directions(self, codes: Codes) -> Array:
        """What the values of codes are multiples of, by the scale: `base − zero`."""
        base = self.base[codes] if self.base.ndim == 1 else self.base[self.units, codes]
        return base - self.zero[self.units]

    def zeros(self) -> Codes | None:
        """The code of 0 for each weight, `(rows, outputs)`; None where 0 is no level."""
        if self.base.ndim == 2:
            return None
        codes = np.searchsorted(self.base, self.zero)
        if (codes == len(self.base)).any() or (self.base[codes] != self.zero).any():
            return None
        return codes[self.units]

    def nearest(self, weights: Array, row: slice = slice(None)) -> Codes:
        """The codes of the nearest levels; halfway between two the upper one.

        Args:
            weights: Some rows of a kernel, `(rows, outputs)`.
            row: The rows that these are.
        """
        own = self.units[row]
        scale = np.where(self.scale > 0, self.scale, 1.0)[own]
        apart = weights / scale + self.zero[own]
        if self.base.ndim == 1:
            middles = (self.base[1:] + self.base[:-1]) / 2
            return np.searchsorted(middles, apart, side="right")
        middles = (self.base[:, 1:] + self.base[:, :-1]) / 2
        found = np.zeros(apart.shape, np.int64)
        for level in range(middles.shape[1]):
            found += apart >= middles[own, level]
        return found

    def scaled(self, scale: Array) -> Lattice:
        """The same with other scales, rounded as they are stored."""
        return replace(self, scale=stored(scale))


def stored(scale: Array, digits: int = DIGITS) -> Array:
    """Scales with so many significant bits, rounded."""
    mantissa, exponent = np.frexp(scale)
    made: Array = np.ldexp(np.round(np.ldexp(mantissa, digits)), exponent - digits)
    return made


def powers_of_two(scale: Array, error: Callable[[Array], Array]) -> Array:
    """The nearest power of two below or above each scale, whichever has the less error.

    Args:
        scale: `(units,)`.
        error: The error of each unit with such scales.
    """
    low = np.exp2(np.floor(np.log2(np.where(scale > 0, scale, 1.0))))
    made: Array = np.where(error(low) <= error(2 * low), low, 2 * low)
    return np.where(scale > 0, made, 0.0)


def affine_error(values: Array, weights: Array, scale: Array, zero: Array, top: int) -> Array:
    """`Σ w (x − s (k − z))²` of each unit, k the nearest integer from 0 to `top`."""
    made = affine_codes(values, scale, zero, top)
    apart = scale[:, None] * (made - zero[:, None]) - values
    error: Array = np.einsum("un,un,un->u", weights, apart, apart)
    return error


def affine_codes(values: Array, scale: Array, zero: Array, top: int) -> Array:
    """The nearest integers from 0 to `top`."""
    safe = np.where(scale > 0, scale, 1.0)[:, None]
    made: Array = np.clip(np.floor(values / safe + zero[:, None] + 0.5), 0, top)
    return made


def symmetric_scale(values: Array, weights: Array, top: int, shares: Array) -> Array:
    """The scale of least error of integers from −top to top, the outer ones in use.

    Args:
        values: `(units, n)`.
        weights: What the error of each counts, `(units, n)`.
        top: The largest integer.
        shares: What shares of the largest number the largest integer may stand for, the first
            one 1.
    """
    largest = np.abs(values).max(axis=1, initial=0.0)
    zero = np.full(len(values), float(top))

    def error(scale: Array) -> Array:
        return affine_error(values, weights, scale, zero, 2 * top)

    best = stored(largest / top)
    least = error(best)
    for share in shares[1:]:
        scale = stored(share * largest / top)
        best, least = _better(best, least, scale, error(scale))
    integers = affine_codes(values, best, zero, 2 * top) - top
    power = np.einsum("un,un,un->u", weights, integers, integers)
    scale = stored(
        np.einsum("un,un,un->u", weights, integers, values) / np.where(power > 0, power, 1.0)
    )
    used = (scale > 0) & (largest >= (top - 0.5) * scale)
    return _better(best, least, scale, np.where(used, error(scale), np.inf))[0]


def even_scale(values: Array, weights: Array, base: Array, shares: Array) -> Array:
    """The scale of least error of any ascending numbers around 0, the outer ones in use.

    Args:
        values: `(units, n)`.
        weights: What the error of each counts, `(units, n)`.
        base: The numbers, `(levels,)`.
        shares: What shares of the largest number the last of them may stand for, the first one 1.
    """
    largest = np.abs(values).max(axis=1, initial=0.0)
    units = np.broadcast_to(np.arange(len(values))[:, None], values.shape)
    best, least = np.zeros(len(values)), np.full(len(values), np.inf)
    for share in shares:
        scale = stored(share * largest / base[-1])
        own = Lattice(base, scale, np.zeros(len(values)), units)
        apart = own.values(own.nearest(values)) - values
        error = np.einsum("un,un,un->u", weights, apart, apart)
        best, least = _better(best, least, scale, error)
    return best


def affine_range(values: Array, weights: Array, top: int, shares: Array) -> tuple[Array, Array]:
    """Scale and zero point of least error of integers from 0 to `top`; 0 is one of the levels.

    Args:
        values: `(units, n)`.
        weights: What the error of each counts, `(units, n)`.
        top: The largest integer.
        shares: What shares of the range the integers may stand for, the first one 1.
    """
    low = np.minimum(values.min(axis=1, initial=0.0), 0.0)
    high = np.maximum(values.max(axis=1, initial=0.0), 0.0)
    scale, zero = _affine(low, high, top)
    least = affine_error(values, weights, scale, zero, top)
    for share in shares[1:]:
        other, at = _affine(share * low, share * high, top)
        error = affine_error(values, weights, other, at, top)
        zero = np.where(error < least, at, zero)
        scale, least = _better(scale, least, other, error)
    return scale, zero


def _affine(low: Array, high: Array, top: int) -> tuple[Array, Array]:
    """The scale is rounded down and the zero point so that the outer integers are in use."""
    mantissa, exponent = np.frexp((high - low) / top)
    scale = np.ldexp(np.floor(np.ldexp(mantissa, DIGITS)), exponent - DIGITS)
    return scale, np.ceil(-low / np.where(scale > 0, scale, 1.0) - 0.5)


def _better(best: Array, least: Array, other: Array, error: Array) -> tuple[Array, Array]:
    return np.where(error < least, other, best), np.minimum(error, least)


def binary_scale(values: Array, weights: Array) -> Array:
    """The scale of least error of −1 and 1: the mean of |x| (arXiv 1603.05279, section 3.1)."""
    total = weights.sum(axis=1)
    return stored((weights * np.abs(values)).sum(axis=1) / np.where(total > 0, total, 1.0))


def ternary_scale(values: Array, weights: Array) -> Array:
    """The scale of least error of −1, 0 and 1.

    It is the mean of the largest |x|, of so many that `(Σ w |x|)² / Σ w` is greatest (Li et al.
    2016, arXiv 1605.04711, equation 5); all numbers are tried.
    """
    sizes = np.abs(values)
    order = np.argsort(-sizes, axis=1)
    w = np.take_along_axis(weights, order, 1)
    total = np.cumsum(w, axis=1)
    sums = np.cumsum(w * np.take_along_axis(sizes, order, 1), axis=1)
    safe = np.where(total > 0, total, 1.0)
    best = (sums**2 / safe).argmax(axis=1)[:, None]
    return stored((np.take_along_axis(sums, best, 1) / np.take_along_axis(safe, best, 1))[:, 0])
