"""The schemes that there are, by objects and by names."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdap._arguments import check_choice, check_integer, choices_for, is_number, shown
from sgdap.quantization.base import Powered, Scalar, Scheme
from sgdap.quantization.codebooks import best_levels
from sgdap.quantization.lattice import (
    SHARES,
    Array,
    affine_range,
    binary_scale,
    stored,
    symmetric_scale,
    ternary_scale,
)
from sgdap.quantization.pairs import QAM, Pairs


@dataclass(frozen=True)
class Affine(Powered):
    """Integers times a scale, around a zero point.

    Attributes:
        bits: From 2 to 8.
        symmetric: Integers from −(2ᵇ⁻¹ − 1) to 2ᵇ⁻¹ − 1; else from 0 to 2ᵇ − 1 around an integer
            zero point, and 0 is one of the levels.
        range: How far they reach: `"minmax"`, over all weights; `"loss"`, as far as the error is
            least, each weight's by its importance; `"mse"`, each weight's alike.
    """

    bits: int = 8
    symmetric: bool = True
    range: str = "loss"

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        _check_bits(self.bits, 2)
        check_choice("symmetric", self.symmetric, (True, False))
        check_choice("range", self.range, ("loss", "mse", "minmax"))
        if self.power_of_two and not self.symmetric:
            raise ValueError(
                "power_of_two=True needs symmetric=True: a zero point is no power of two."
            )

    @property
    def levels(self) -> int:
        """2ᵇ, or one fewer."""
        return int(2**self.bits - self.symmetric)

    @property
    def unit_bits(self) -> int:
        """Those of the scale and of the zero point, a byte."""
        return super().unit_bits + (0 if self.symmetric else 8)

    @property
    def _base(self) -> Array:
        start = -(self.levels // 2) if self.symmetric else 0
        return np.arange(start, start + self.levels, dtype=np.float64)

    def _scale(self, values: Array, weights: Array) -> Array:
        weights, shares = self._read(weights)
        return symmetric_scale(values, weights, self.levels // 2, shares)

    def _read(self, weights: Array) -> tuple[Array, Array]:
        alike = np.where(weights > 0, 1.0, 0.0)
        return (
            weights if self.range == "loss" else alike,
            SHARES[:1] if self.range == "minmax" else SHARES,
        )

    def fitted(self, values: Array, weights: Array) -> tuple[Array, Array, Array]:
        """The integers, scales and zero points."""
        if self.symmetric:
            return super().fitted(values, weights)
        weights, shares = self._read(weights)
        return self._base, *affine_range(values, weights, self.levels - 1, shares)


@dataclass(frozen=True)
class Binary(Powered):
    """−1 and 1 times a scale, the mean of |w| (Rastegari et al. 2016, arXiv 1603.05279)."""

    @property
    def levels(self) -> int:
        """Two."""
        return 2

    @property
    def _base(self) -> Array:
        return np.array([-1.0, 1.0])

    def _scale(self, values: Array, weights: Array) -> Array:
        return binary_scale(values, weights)


@dataclass(frozen=True)
class Ternary(Powered):
    """−1, 0 and 1 times a scale, with the exact threshold (Li et al. 2016, arXiv 1605.04711)."""

    @property
    def levels(self) -> int:
        """Three."""
        return 3

    @property
    def _base(self) -> Array:
        return np.array([-1.0, 0.0, 1.0])

    def _scale(self, values: Array, weights: Array) -> Array:
        return ternary_scale(values, weights)


@dataclass(frozen=True)
class Codebook(Scalar):
    """Any levels, those of least squared error (Lloyd 1982; Max 1960), found exactly.

    Attributes:
        size: Their number, from 2 to 256; each takes 32 bits for each unit.
    """

    size: int = 16

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        check_integer("size", self.size, 2)
        if self.size > 256:
            raise ValueError(f"size must be 256 at most. Received: size={self.size}")

    @property
    def levels(self) -> int:
        """The size."""
        return self.size

    @property
    def unit_bits(self) -> int:
        """Those of its levels."""
        return 32 * self.size

    def fitted(self, values: Array, weights: Array) -> tuple[Array, Array, Array]:
        """The levels of each unit as base."""
        made = best_levels(values, weights, self.size).astype(np.float32).astype(np.float64)
        return made, np.ones(len(values)), np.zeros(len(values))


@dataclass(frozen=True)
class PCM(Powered):
    """Uniform pulse code modulation: 2ᵇ levels between the largest |w| and its negative.

    Attributes:
        bits: From 1 to 8.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        _check_bits(self.bits, 1)

    @property
    def levels(self) -> int:
        """2ᵇ."""
        return int(2**self.bits)

    @property
    def _base(self) -> Array:
        return np.arange(1.0 - self.levels, self.levels, 2)

    def _scale(self, values: Array, weights: Array) -> Array:
        return stored(np.abs(values).max(axis=1, initial=0.0) / self._base[-1])


@dataclass(frozen=True)
class _Companded(PCM):
    """Levels that are even after a curve, and so finer near 0."""

    @property
    def _base(self) -> Array:
        even = np.arange(1.0 - self.levels, self.levels, 2) / (self.levels - 1)
        return np.sign(even) * self._expanded(np.abs(even))

    @abstractmethod
    def _expanded(self, even: Array) -> Array:
        """The inverse of the curve on [0, 1]."""


@dataclass(frozen=True)
class MuLaw(_Companded):
    """Pulse code modulation by the μ-law, `ln(1 + μ x) / ln(1 + μ)` (ITU-T G.711).

    Attributes:
        mu: How much finer the levels are near 0.
    """

    mu: float = 255.0

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        _check_above("mu", self.mu, 0.0)

    def _expanded(self, even: Array) -> Array:
        return ((1 + self.mu) ** even - 1) / self.mu


@dataclass(frozen=True)
class ALaw(_Companded):
    """Pulse code modulation by the A-law (ITU-T G.711).

    `A x / (1 + ln A)` up to 1 / A, then `(1 + ln(A x)) / (1 + ln A)`.

    Attributes:
        a: How much finer the levels are near 0.
    """

    a: float = 87.6

    def __post_init__(self) -> None:
        """Checks the arguments."""
        super().__post_init__()
        _check_above("a", self.a, 1.0)

    def _expanded(self, even: Array) -> Array:
        stretched = even * (1 + math.log(self.a))
        return np.where(stretched < 1, stretched, np.exp(stretched - 1)) / self.a


def _check_bits(bits: Any, least: int) -> None:
    check_integer("bits", bits, least)
    if bits > 8:
        raise ValueError(f"bits must be 8 at most. Received: bits={bits}")


def _check_above(name: str, value: Any, least: float) -> None:
    if not is_number(value):
        raise TypeError(f"{name} must be a number. Received: {name}={shown(value)}")
    if not least < value < math.inf:
        raise ValueError(f"{name} must be above {least:g}. Received: {name}={shown(value)}")


CLASSES = (Affine, Binary, Ternary, Codebook, PCM, MuLaw, ALaw, QAM, Pairs)

NAMED: dict[str, Scheme] = {
    **{f"int{bits}": Affine(bits=bits) for bits in range(8, 1, -1)},
    "ternary": Ternary(),
    "binary": Binary(),
    "quaternary": Codebook(size=4),
    "lloyd_max": Codebook(size=16),
    "pcm": PCM(),
    "mu_law": MuLaw(),
    "a_law": ALaw(),
    "qam": QAM(),
    "pairs": Pairs(),
}
"""The schemes that have a name."""


def get_scheme(scheme: str | Scheme | Mapping[str, Any]) -> Scheme:
    """The scheme of a name, or of what `Scheme.get_config` gave.

    Args:
        scheme: A name, such as `"int8"` or `"ternary"`, a config, or a scheme.

    Raises:
        TypeError: It is none of these.
        ValueError: The name or the config is not known.

    Example:
        >>> sgdap.quantization.get_scheme("int4").quantize(np.linspace(-1, 1, 30)[:, None]).bits
        152
    """
    if isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, str):
        if scheme in NAMED:
            return NAMED[scheme]
        raise ValueError(
            f"No scheme is called {scheme!r}. {choices_for(scheme, NAMED)} Or pass an object, such "
            "as sgdap.quantization.Affine(bits=4, per=32)."
        )
    if isinstance(scheme, Mapping):
        known = {own.__name__: own for own in CLASSES}
        name, config = scheme.get("class_name"), scheme.get("config")
        if name in known and isinstance(config, Mapping):
            try:
                return known[name](**config)
            except TypeError as error:
                raise ValueError(f"No arguments of {name}: {shown(config)}") from error
        raise ValueError(f"No config of a scheme: {shown(scheme)}")
    raise TypeError(
        "scheme must be a name, such as 'int8', or an object of sgdap.quantization, such as "
        f"Affine(bits=4). Received: {shown(scheme)}"
    )
