"""What every scheme has: a lattice for a matrix, codes for an array, the bits that it takes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap._arguments import check_choice, check_integer, shown
from sgdap.quantization.lattice import Array, Codes, Lattice


@dataclass(frozen=True, eq=False)
class Quantized:
    """An array in few bits.

    Attributes:
        codes: The number of each entry's level, from 0, in the shape of the array.
        lattice: The levels; its units have the shape `(rows, outputs)`.
        bits: All bits that it takes: codes of a fixed length, scales, zero points and codebooks.
    """

    codes: npt.NDArray[np.uint8]
    lattice: Lattice
    bits: int

    @property
    def bits_per_weight(self) -> float:
        """Bits for each entry, with the share of what several entries have in common."""
        return self.bits / max(self.codes.size, 1)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The values, float32."""
        codes = self.codes.reshape(-1, self.codes.shape[-1] if self.codes.ndim else 1)
        made = self.lattice.values(codes.astype(np.int64)).astype(np.float32)
        return made.reshape(self.codes.shape)


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
    def adapts(self) -> bool:
        """Whether scales and levels may be any number."""
        return True

    @property
    def code_bits(self) -> int:
        """The bits of a code."""
        return math.ceil(math.log2(self.levels))

    @property
    @abstractmethod
    def unit_bits(self) -> int:
        """The bits that are stored for each unit."""

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
        units = self._units(weights.shape)
        count = int(units.max(initial=-1)) + 1
        values, counts = _apart(weights, units, count), _apart(np.ones(weights.shape), units, count)
        if importance is not None:
            counts = counts * _apart(importance, units, count)
            without = counts.sum(axis=1, keepdims=True) == 0
            counts = np.where(without, 1.0, counts)
        return Lattice(*self.fitted(values, counts), units)

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
        codes = made.nearest(matrix).astype(np.uint8).reshape(w.shape)
        return Quantized(codes, made, self.bits_of(matrix.shape))

    def dequantize(self, quantized: Quantized) -> npt.NDArray[np.float32]:
        """The values that a quantized array has, float32."""
        return quantized.dequantize()

    def bits_of(self, shape: tuple[int, ...]) -> int:
        """All bits that a matrix takes.

        Args:
            shape: `(rows, outputs)`.
        """
        size = math.prod(shape)
        units = {"tensor": 1, "channel": shape[1]}
        own = units[self.per] if isinstance(self.per, str) else -(-shape[0] // self.per) * shape[1]
        return size * self.code_bits + own * self.unit_bits

    def get_config(self) -> dict[str, Any]:
        """The class and its arguments, as plain data; `get_scheme` reads them back."""
        return {"class_name": type(self).__name__, "config": asdict(self)}

    def _units(self, shape: tuple[int, ...]) -> Codes:
        rows, outputs = shape
        if self.per == "tensor":
            return np.zeros(shape, np.int64)
        size = max(rows, 1) if self.per == "channel" else int(self.per)
        return np.arange(rows)[:, None] // size * outputs + np.arange(outputs)


def _apart(matrix: Array, units: Codes, count: int) -> Array:
    """The entries of each unit in a row, filled up with zeros."""
    order = np.argsort(units, axis=None, kind="stable")
    own = units.ravel()[order]
    begins = np.searchsorted(own, np.arange(count))
    place = np.arange(len(own)) - begins[own] if count else own
    made = np.zeros((count, int(place.max(initial=-1)) + 1))
    made[own, place] = matrix.ravel()[order]
    return made
