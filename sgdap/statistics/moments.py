"""Streamed first and second moments, per fold of the samples; knows nothing of Keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from sgdap.execution import triangle
from sgdap.statistics.contributions import channel_grams, channel_powers, channel_sums

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of n quantities `x_i`, for each fold of the samples.

    The quantities are the features that a consumer reads, or what each channel adds to its
    outputs. The latter are vectors with an entry for each output, and products are inner products.

    Attributes:
        count: Rows in each fold, `(folds,)`.
        mean: Mean row, `(folds, n)`, or `(folds, n, outputs)` of vectors.
        packed: Centred second moments `Σ (x_i − mean_i) · (x_j − mean_j)` about the fold's own
            mean, as `sgdap.execution.triangle` keeps symmetric matrices, `(folds, numbers)`.
        zeros: How often each quantity was exactly 0, `(folds, n)`; None where it was not counted.
        absolute: Sum of |x|, `(folds, n)`; None likewise.
    """

    count: Array
    mean: Array
    packed: Array
    zeros: Array | None = None
    absolute: Array | None = None

    has_products: ClassVar[bool] = True
    """Whether products of different quantities are known."""

    @property
    def folds(self) -> int:
        """The number of folds."""
        return len(self.count)

    @property
    def rows(self) -> float:
        """The number of rows in the first fold, at least 1."""
        return max(float(self.count[0]), 1.0)

    @property
    def second(self) -> Array:
        """The second moments as whole matrices, `(folds, n, n)`; large ones are made anew."""
        n = self.mean.shape[1]
        if not triangle.is_made_anew(n):
            return self.packed.reshape(-1, n, n)
        return np.stack([triangle.unpacked(own, n) for own in self.packed])

    @property
    def powers_of_first(self) -> Array:
        """The diagonal of the first fold's second moments, `(n,)`."""
        return triangle.diagonal_of(self.packed[0], self.mean.shape[1])

    @property
    def variance(self) -> Array:
        """Each quantity's variance in the first fold, `(n,)`."""
        return self.powers_of_first / self.rows

    def arrays(self) -> dict[str, Array]:
        """All that is known, by the name of the attribute."""
        return {name: own for name, own in vars(self).items() if own is not None}

    def select(self, folds: Sequence[int]) -> Self:
        """The moments of some of the folds."""
        return replace(self, **{name: own[list(folds)] for name, own in self.arrays().items()})

    def total(self) -> Self:
        """All folds merged into one.

        Reference:
            Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
            variances", 1979: `M = Σ_f M_f + Σ_f n_f (μ_f − μ)(μ_f − μ)ᵀ`.
        """
        if self.folds == 1:
            return self
        sums = {name: own.sum(axis=0, keepdims=True) for name, own in self.arrays().items()}
        sums["mean"] = np.tensordot(self.count / max(self.count.sum(), 1), self.mean, 1)[None]
        for count, mean in zip(self.count, self.mean, strict=True):
            self._add_products(sums["packed"][0], mean - sums["mean"][0], float(count))
        return replace(self, **sums)

    def merged(self, other: Self) -> Self:
        """The moments of these samples and others (of another worker), fold by fold, exactly."""
        first, *rest = (
            self.select([fold]).joined(other.select([fold])).total() for fold in range(self.folds)
        )
        return first.joined(*rest)

    def powers(self) -> Powers:
        """The moments without products of different quantities."""
        own = np.stack([self.select([fold]).powers_of_first for fold in range(self.folds)])
        return Powers(self.count, self.mean, own, self.zeros, self.absolute)

    def about(self, point: Array) -> Array:
        """The first fold's sums of products about a point, 0 where they are not known, `(n, n)`.

        Args:
            point: `(n,)`, or `(n, outputs)` of vectors.
        """
        moved = self.packed[0].copy()
        self._add_products(moved, self.mean[0] - point, float(self.count[0]))
        return self._whole(moved)

    def contributions(self, weights: Array, channels: npt.NDArray[np.int64], size: int) -> Self:
        """The moments of what each channel adds to the outputs, exactly.

        Args:
            weights: Weights of the quantities, `(n, outputs)`.
            channels: The channel of each quantity; -1 is left out, `(n,)`.
            size: Number of channels. One without a quantity adds 0.
        """
        means = [channel_sums(mean, weights, channels, size) for mean in self.mean]
        seconds = self._channel_products(weights, channels, size)
        return replace(self, mean=np.stack(means), packed=seconds, zeros=None, absolute=None)

    @classmethod
    def centred(
        cls, count: Array, mean: Array, apart: Array, products: Array, **counted: Array
    ) -> Self:
        """The moments from sums of products about a point, which are overwritten.

        Args:
            count: Rows in each fold, `(folds,)`.
            mean: Mean row, `(folds, n)` or `(folds, n, outputs)`.
            apart: The mean less the point, as `mean`.
            products: Sums of products about the point, in the form of `packed`.
            **counted: `zeros` and `absolute`.
        """
        for number, own in zip(count, zip(products, apart, strict=True), strict=True):
            cls._add_products(*own, -float(number))
        return cls(count, mean, products, **counted)

    @classmethod
    def nothing(cls, folds: int, n: int) -> Array:
        """The form of `packed` of n quantities, all 0."""
        return np.zeros((folds, triangle.numbers_kept(n)))

    def joined(self, *others: Self) -> Self:
        """The folds of all, one after another."""
        return replace(
            self,
            **{
                name: np.concatenate([own, *(getattr(other, name) for other in others)])
                for name, own in self.arrays().items()
            },
        )

    @staticmethod
    def add(packed: Array, block_rows: Any) -> None:
        """Adds sums of products, block row by block row, in place.

        Args:
            packed: Those of one fold.
            block_rows: `(rows, columns)` each.
        """
        end = 0
        for own in block_rows:
            begin, end = end, end + own.size
            packed[begin:end] += own.reshape(-1)

    def _whole(self, packed: Array) -> Array:
        return triangle.unpacked(packed, self.mean.shape[1])

    @staticmethod
    def _add_products(packed: Array, vectors: Array, factor: float) -> None:
        triangle.add_products(packed, vectors.reshape(len(vectors), -1), factor)

    def _channel_products(
        self, weights: Array, channels: npt.NDArray[np.int64], size: int
    ) -> Array:
        grams = channel_grams(self.second, weights, channels, size)
        return np.stack([triangle.packed_from(gram) for gram in grams])


@dataclass(frozen=True, eq=False)
class Powers(Moments):
    """Moments without products of different quantities, which count as uncorrelated.

    Attributes:
        packed: Centred second moment of each quantity, `(folds, n)`.
    """

    has_products: ClassVar[bool] = False

    @property
    def second(self) -> Array:
        """Centred second moment of each quantity, `(folds, n)`."""
        return self.packed

    @property
    def powers_of_first(self) -> Array:
        """Those of the first fold, `(n,)`."""
        powers: Array = self.packed[0]
        return powers

    def powers(self) -> Powers:
        """These moments themselves."""
        return self

    @classmethod
    def nothing(cls, folds: int, n: int) -> Array:
        """The form of `packed` of n quantities, all 0."""
        return np.zeros((folds, n))

    @staticmethod
    def add(packed: Array, block_rows: Any) -> None:
        """Adds sums of squares in place.

        Args:
            packed: Those of one fold.
            block_rows: `(n,)`.
        """
        packed += block_rows

    def _whole(self, packed: Array) -> Array:
        return np.diag(packed)

    @staticmethod
    def _add_products(packed: Array, vectors: Array, factor: float) -> None:
        packed += factor * (vectors.reshape(len(vectors), -1) ** 2).sum(axis=1)

    def _channel_products(
        self, weights: Array, channels: npt.NDArray[np.int64], size: int
    ) -> Array:
        return np.stack([channel_powers(own, weights, channels, size) for own in self.packed])


def moments_of(rows: npt.NDArray[np.floating], fold: npt.NDArray[np.int64], folds: int) -> Moments:
    """The moments of rows that lie in memory: the direct way, for small data.

    Args:
        rows: `(n, features)`.
        fold: Fold of each row, `(n,)`.
        folds: Number of folds.
    """
    parts = [np.asarray(rows[fold == f], np.float64) for f in range(folds)]
    features = rows.shape[1]
    means = [p.mean(axis=0) if len(p) else np.zeros(features) for p in parts]
    return Moments(
        np.array([float(len(p)) for p in parts]),
        np.array(means),
        np.array(
            [triangle.packed_from((p - m).T @ (p - m)) for p, m in zip(parts, means, strict=True)]
        ),
        np.array([(p == 0).sum(axis=0).astype(float) for p in parts]),
        np.array([np.abs(p).sum(axis=0) for p in parts]),
    )


class MomentAccumulator:
    """Adds up sums about a fixed point in float64 as batches stream by.

    Batches bring `Σ(x − s)` and `Σ(x − s)(x − s)ᵀ` about a point `s` near the mean (the mean of
    the first batch), so nothing is lost where means are large against deviations. Memory is
    `folds · features²` numbers, however many batches come.

    Args:
        folds: Number of folds.
        shift: The point s, `(features,)`.
        kind: The class of the result; None where the mean alone is added up.
    """

    def __init__(self, folds: int, shift: Array, kind: type[Moments] | None = Moments) -> None:
        features = len(shift)
        self.shift = shift
        self._kind = kind
        self._count = np.zeros(folds)
        self._sum = np.zeros((folds, features))
        self._square = np.zeros(()) if kind is None else kind.nothing(folds, features)
        self._zeros = np.zeros((folds, features))
        self._absolute = np.zeros((folds, features))

    def add(
        self,
        fold: int,
        count: npt.NDArray[np.floating] | float,
        total: npt.NDArray[np.floating],
        square: Any = (),
        zeros: npt.NDArray[np.floating] | float = 0.0,
        absolute: npt.NDArray[np.floating] | float = 0.0,
    ) -> None:
        """Adds sums about the shift over rows of one fold; products as `Moments.add` takes them."""
        self._count[fold] += count
        self._sum[fold] += total
        if self._kind is not None:
            self._kind.add(self._square[fold], square)
        self._zeros[fold] += zeros
        self._absolute[fold] += absolute

    @property
    def folds(self) -> int:
        """The number of folds."""
        return len(self._count)

    def mean(self) -> Array:
        """The mean of everything added so far, `(features,)`."""
        mean: Array = self.shift + self._sum.sum(axis=0) / max(float(self._count.sum()), 1.0)
        return mean

    def result(self) -> Moments:
        """The moments of everything added; nothing can be added any more."""
        assert self._kind is not None
        apart = self._sum / np.maximum(self._count, 1)[:, None]
        return self._kind.centred(
            self._count,
            self.shift + apart,
            apart,
            self._square,
            zeros=self._zeros,
            absolute=self._absolute,
        )
