"""What every scheme has: a lattice for a matrix, codes for an array, the bits that it takes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap._arguments import check_choice, check_integer, shown
from sgdap.quantization.constellation import Constellation
from sgdap.quantization.lattice import Array, Codes, Lattice, powers_of_two


@dataclass(frozen=True, eq=False)
class Quantized:
    """An array in few bits.

    Attributes:
        codes: The number of each entry's level, from 0, in the shape of the array; of each pair's
            point, `(pairs, outputs)`, for pairs.
        lattice: The levels, of the array as a matrix `(rows, outputs)`.
        bits: All bits that it takes: codes of a fixed length, scales, zero points and codebooks.
        shape: The shape of the array.
    """

    codes: npt.NDArray[np.uint8]
    lattice: Lattice | Constellation
    bits: int
    shape: tuple[int, ...]

    @property
    def bits_per_weight(self) -> float:
        """Bits for each entry, with the share of what several entries have in common."""
        return self.bits / max(math.prod(self.shape), 1)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The values, float32."""
        codes = self.codes.reshape(-1, self.codes.shape[-1] if self.codes.ndim else 1)
        made = self.lattice.values(codes.astype(np.int64)).astype(np.float32)
        return made.reshape(self.shape)


@dataclass(frozen=True)
class Scheme(ABC):
    """A way to store weights in few bits.

    Attributes:
        per: What has levels of its own: `"channel"`, each output; `"tensor"`, the whole kernel; or
            a number of inputs, as many of each output together.
    """

    per: str | int = "channel"

    def __post_init__(self) -> None:
        """Checks the arguments.

        Raises:
            TypeError: One is of the wrong type.
            ValueError: One has an invalid value.
        """
        if isinstance(self.per, str):
            check_choice("per", self.per, ("channel", "tensor"))
        else:
            check_integer("per", self.per, 1)

    @property
    @abstractmethod
    def levels(self) -> int:
        """The number of levels."""

    @property
    def together(self) -> int:
        """How many weights of an output, one after another, share a code."""
        return 1

    @property
    def adapts(self) -> bool:
        """Whether scales and levels may be any number."""
        return True

    @property
    def has_zero(self) -> bool:
        """Whether 0 is a level, whatever the weights are."""
        made = self.lattice(np.zeros((1, 1))) if self.together == 1 else None
        return isinstance(made, Lattice) and made.zeros() is not None

    @property
    def code_bits(self) -> int:
        """The bits of a code."""
        return math.ceil(math.log2(self.levels))

    @property
    @abstractmethod
    def unit_bits(self) -> int:
        """The bits that are stored for each unit."""

    @abstractmethod
    def lattice(self, weights: Array, importance: Array | None = None) -> Lattice | Constellation:
        """The lattice that suits a matrix.

        Args:
            weights: `(rows, outputs)`.
            importance: What the squared error of each weight counts, in the same shape; None: the
                same for all.
        """

    def quantize(self, w: Any, importance: Any = None) -> Quantized:
        """Rounds an array to the nearest levels.

        Args:
            w: Numbers; the last axis are the outputs.
            importance: What the squared error of each counts, in the same shape; None: the same.

        Raises:
            ValueError: There is no number, one is not finite, or the shapes differ.
        """
        w = np.asarray(w, np.float64)
        if not w.size or not np.isfinite(w).all():
            raise ValueError(
                "Weights to quantize must be finite numbers, one at least. "
                f"Received: {'NaN or infinity' if w.size else shown(w)}"
            )
        matrix = w.reshape(-1, w.shape[-1] if w.ndim else 1)
        if importance is not None:
            importance = np.asarray(importance, np.float64)
            if importance.shape != w.shape or not (importance >= 0).all():
                raise ValueError(
                    f"importance must have the shape {w.shape} of the weights and no negative "
                    f"numbers. Received: {shown(importance)}"
                )
            importance = importance.reshape(matrix.shape)
        made = self.lattice(matrix, importance)
        codes = made.nearest(matrix).astype(np.uint8)
        codes = codes.reshape(w.shape) if codes.size == w.size else codes
        return Quantized(codes, made, self.bits_of(matrix.shape), w.shape)

    def dequantize(self, quantized: Quantized) -> npt.NDArray[np.float32]:
        """The values that a quantized array has, float32."""
        return quantized.dequantize()

    def bits_of(self, shape: tuple[int, ...]) -> int:
        """All bits that a matrix takes.

        Args:
            shape: `(rows, outputs)`.
        """
        size = -(-shape[0] // self.together) * shape[1]
        units = {"tensor": 1, "channel": shape[1]}
        own = units[self.per] if isinstance(self.per, str) else -(-shape[0] // self.per) * shape[1]
        return size * self.code_bits + own * self.unit_bits

    def get_config(self) -> dict[str, Any]:
        """The class and its arguments, as plain data; `get_scheme` reads them back."""
        return {"class_name": type(self).__name__, "config": asdict(self)}

    def units(self, shape: tuple[int, ...]) -> Codes:
        """The number of the unit that each entry of a matrix of a shape belongs to."""
        rows, outputs = shape
        if self.per == "tensor":
            return np.zeros(shape, np.int64)
        size = max(rows, 1) if self.per == "channel" else int(self.per)
        return np.arange(rows)[:, None] // size * outputs + np.arange(outputs)


@dataclass(frozen=True)
class Scalar(Scheme):
    """A scheme in which each weight takes a level by itself."""

    @abstractmethod
    def fitted(self, values: Array, weights: Array) -> tuple[Array, Array, Array]:
        """Base, scale and zero point, as a `Lattice` has them.

        Args:
            values: The weights of each unit, `(units, n)`, filled up with zeros.
            weights: What the squared error of each counts, 0 for the filling, `(units, n)`.
        """

    def lattice(self, weights: Array, importance: Array | None = None) -> Lattice:
        """The lattice that suits a matrix.

        Args:
            weights: `(rows, outputs)`.
            importance: What the squared error of each weight counts, in the same shape; None: the
                same for all.
        """
        units = self.units(weights.shape)
        count = int(units.max(initial=-1)) + 1
        values, counts = apart(weights, units, count), apart(np.ones(weights.shape), units, count)
        if importance is not None:
            counts = counts * apart(importance, units, count)
            without = counts.sum(axis=1, keepdims=True) == 0
            counts = np.where(without, 1.0, counts)
        return Lattice(*self.fitted(values, counts), units)


@dataclass(frozen=True)
class Powered(Scalar):
    """A scheme of one scale for each unit.

    Attributes:
        power_of_two: Whether scales are powers of two, so that hardware shifts in place of
            multiplying.
    """

    power_of_two: bool = False

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        check_choice("power_of_two", self.power_of_two, (True, False))

    @property
    def adapts(self) -> bool:
        """Whether scales may be any number, and not powers of two only."""
        return not self.power_of_two

    @property
    def unit_bits(self) -> int:
        """Those of the scale: a float32, or the exponent of two."""
        return 8 if self.power_of_two else 32

    @property
    @abstractmethod
    def _base(self) -> Array:
        """The levels for the scale 1, ascending."""

    @abstractmethod
    def _scale(self, values: Array, weights: Array) -> Array:
        """The scales of units."""

    def fitted(self, values: Array, weights: Array) -> tuple[Array, Array, Array]:
        """The base, the scales, and zero points of 0."""
        base, none = self._base, np.zeros(len(values))
        scale = self._scale(values, weights)
        if self.power_of_two:
            units = np.broadcast_to(np.arange(len(values))[:, None], values.shape)

            def error(scale: Array) -> Array:
                own = Lattice(base, scale, none, units)
                apart = own.values(own.nearest(values)) - values
                found: Array = np.einsum("un,un,un->u", weights, apart, apart)
                return found

            scale = powers_of_two(scale, error)
        return base, scale, none


def apart(matrix: Array, units: Codes, count: int) -> Array:
    """The entries of each unit in a row, filled up with zeros."""
    order = np.argsort(units, axis=None, kind="stable")
    own = units.ravel()[order]
    begins = np.searchsorted(own, np.arange(count))
    place = np.arange(len(own)) - begins[own] if count else own
    made = np.zeros((count, int(place.max(initial=-1)) + 1))
    made[own, place] = matrix.ravel()[order]
    return made
