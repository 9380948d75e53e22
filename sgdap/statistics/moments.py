"""Streamed first and second moments of feature rows, per fold; knows nothing of Keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of rows `x` of features, for each fold of the samples.

    Attributes:
        count: Rows in each fold, `(folds,)`.
        mean: Mean row, `(folds, features)`.
        second: Centred second moment `Σ (x − mean)(x − mean)ᵀ` about the fold's own mean,
            `(folds, features, features)`; `(folds, features)` where only its diagonal is known.
        zeros: How often each feature was exactly 0, `(folds, features)`.
        absolute: Sum of |x|, `(folds, features)`.
    """

    count: Array
    mean: Array
    second: Array
    zeros: Array
    absolute: Array

    @property
    def folds(self) -> int:
        """The number of folds."""
        return len(self.count)

    @property
    def diagonal(self) -> bool:
        """Whether only the diagonal of the second moment is known."""
        return self.second.ndim == 2

    @property
    def variance(self) -> Array:
        """Each feature's variance in the first fold, `(features,)`."""
        own = self.second[0] if self.diagonal else np.diag(self.second[0])
        variance: Array = own / max(float(self.count[0]), 1.0)
        return variance

    def select(self, folds: Sequence[int]) -> Moments:
        """The moments of some of the folds."""
        index = list(folds)
        return Moments(
            self.count[index],
            self.mean[index],
            self.second[index],
            self.zeros[index],
            self.absolute[index],
        )

    def total(self) -> Moments:
        """All folds merged into one.

        Reference:
            Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
            variances", 1979: `M = Σ_f M_f + Σ_f n_f (μ_f − μ)(μ_f − μ)ᵀ`.
        """
        if self.folds == 1:
            return self
        count = self.count.sum()
        weights = self.count / max(count, 1)
        mean = weights @ self.mean
        apart = (self.mean - mean) * np.sqrt(self.count)[:, None]
        return Moments(
            np.array([count]),
            mean[None],
            (self.second.sum(axis=0) + _products(apart, self.diagonal))[None],
            self.zeros.sum(axis=0)[None],
            self.absolute.sum(axis=0)[None],
        )


def _products(apart: Array, diagonal: bool) -> Array:
    products: Array = (apart**2).sum(axis=0) if diagonal else apart.T @ apart
    return products


def merge_moments(first: Moments, second: Moments) -> Moments:
    """Merges the moments of disjoint samples (batches, replicas, hosts), fold by fold, exactly."""
    stacked = [
        Moments(
            np.stack([first.count[f], second.count[f]]),
            np.stack([first.mean[f], second.mean[f]]),
            np.stack([first.second[f], second.second[f]]),
            np.stack([first.zeros[f], second.zeros[f]]),
            np.stack([first.absolute[f], second.absolute[f]]),
        ).total()
        for f in range(first.folds)
    ]
    return Moments(
        np.concatenate([m.count for m in stacked]),
        np.concatenate([m.mean for m in stacked]),
        np.concatenate([m.second for m in stacked]),
        np.concatenate([m.zeros for m in stacked]),
        np.concatenate([m.absolute for m in stacked]),
    )


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
        np.array([(p - m).T @ (p - m) for p, m in zip(parts, means, strict=True)]),
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
        seconds: Which second moments are added up: `"all"`, their `"diagonal"`, or `"none"`, for
            the mean alone.
    """

    def __init__(self, folds: int, shift: Array, seconds: str = "all") -> None:
        features = len(shift)
        self.shift = shift
        self._count = np.zeros(folds)
        self._sum = np.zeros((folds, features))
        shapes = {"all": (folds, features, features), "diagonal": (folds, features), "none": ()}
        self._square = np.zeros(shapes[seconds])
        self._zeros = np.zeros((folds, features))
        self._absolute = np.zeros((folds, features))

    def add(
        self,
        count: npt.NDArray[np.floating],
        total: npt.NDArray[np.floating],
        square: npt.NDArray[np.floating] | float = 0.0,
        zeros: npt.NDArray[np.floating] | float = 0.0,
        absolute: npt.NDArray[np.floating] | float = 0.0,
    ) -> None:
        """Adds one batch's sums about the shift, each with a leading axis of folds."""
        self._count += count
        self._sum += total
        self._square += square
        self._zeros += zeros
        self._absolute += absolute

    def mean(self) -> Array:
        """The mean of everything added so far, `(features,)`."""
        mean: Array = self.shift + self._sum.sum(axis=0) / max(float(self._count.sum()), 1.0)
        return mean

    def result(self) -> Moments:
        """The moments of everything added; nothing can be added any more."""
        offset = self._sum / np.maximum(self._count, 1)[:, None]
        for count, apart, square in zip(self._count, offset, self._square, strict=True):
            if square.ndim == 1:
                square -= count * apart**2
                continue
            for row, own in zip(square, apart, strict=True):  # in place: the matrix is large
                row -= count * own * apart
        return Moments(self._count, self.shift + offset, self._square, self._zeros, self._absolute)
