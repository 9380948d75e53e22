"""Moments of what each channel adds to a consumer's outputs; knows nothing of Keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgdap.statistics.moments import Moments

Array = npt.NDArray[np.float64]

BLOCK = 512
"""Features whose products with all others are made at once: memory is `BLOCK · features`."""


@dataclass(frozen=True, eq=False)
class Contributions:
    """Moments of `Z_i = X_i W_i`, what channel i adds to a consumer's outputs, for each fold.

    `Z_i` is a vector with an entry for each output. Channels that the consumer doesn't read add 0.

    Attributes:
        count: Rows in each fold, `(folds,)`.
        mean: Means of the Z, `(folds, channels, outputs)`.
        gram: Sums of the products `(Z_i − mean_i) · (Z_j − mean_j)` about the fold's own means,
            `(folds, channels, channels)`; `(folds, channels)` where only the diagonal is known.
    """

    count: Array
    mean: Array
    gram: Array

    @property
    def folds(self) -> int:
        """The number of folds."""
        return len(self.count)

    @property
    def alone(self) -> bool:
        """Whether only each channel's own power is known."""
        return self.gram.ndim == 2

    def select(self, folds: Sequence[int]) -> Contributions:
        """The moments of some of the folds."""
        index = list(folds)
        return Contributions(self.count[index], self.mean[index], self.gram[index])

    def total(self) -> Contributions:
        """All folds merged into one."""
        if self.folds == 1:
            return self
        share = self.count / max(self.count.sum(), 1)
        mean = np.tensordot(share, self.mean, 1)
        gram = self.gram.sum(axis=0)
        for count, own in zip(self.count, self.mean, strict=True):
            gram = gram + count * _products(own - mean, self.alone)
        return Contributions(self.count.sum(keepdims=True), mean[None], gram[None])

    def about(self, point: Array) -> Array:
        """The products of one fold about another point than its mean.

        Args:
            point: `(channels, outputs)`.

        Returns:
            `(channels, channels)`, or `(channels,)` where only the diagonal is known.
        """
        apart = self.mean[0] - point
        moved: Array = self.gram[0] + self.count[0] * _products(apart, self.alone)
        return moved

    def scattered(self, channels: npt.NDArray[np.int64], size: int) -> Contributions:
        """The moments with each channel at another place, among others that add nothing.

        Args:
            channels: The place of each channel; -1 is left out, `(channels,)`.
            size: Number of places.
        """
        chosen = np.flatnonzero(channels >= 0)
        places = channels[chosen]
        mean = np.zeros((self.folds, size, self.mean.shape[-1]))
        mean[:, places] = self.mean[:, chosen]
        gram = np.zeros((self.folds, *(size,) * (self.gram.ndim - 1)))
        if self.alone:
            gram[:, places] = self.gram[:, chosen]
        else:
            gram[:, places[:, None], places] = self.gram[:, chosen[:, None], chosen]
        return Contributions(self.count, mean, gram)


def _products(vectors: Array, alone: bool) -> Array:
    products: Array = (vectors**2).sum(axis=1) if alone else vectors @ vectors.T
    return products


def contributions_of(
    moments: Moments, weights: Array, channels: npt.NDArray[np.int64], size: int
) -> Contributions:
    """The moments of contributions from those of the features, exactly.

    `G_ij = Σ_{a,b} M[(i,a),(j,b)] (W Wᵀ)[(i,a),(j,b)]`.

    Args:
        moments: Moments of the features.
        weights: `(features, outputs)`.
        channels: The channel of each feature; -1 is left out, `(features,)`.
        size: Number of channels.
    """
    return Contributions(
        moments.count,
        np.stack([channel_sums(mean, weights, channels, size) for mean in moments.mean]),
        channel_grams(moments.second, weights, channels, size),
    )


def channel_sums(
    values: Array, weights: Array, channels: npt.NDArray[np.int64], size: int
) -> Array:
    """What each channel adds to the outputs for one row of features, `(size, outputs)`."""
    chosen = np.flatnonzero(channels >= 0)
    sums = np.zeros((size, weights.shape[1]))
    np.add.at(sums, channels[chosen], values[chosen, None] * weights[chosen])
    return sums


def channel_gram(
    second: Array, weights: Array, channels: npt.NDArray[np.int64], size: int
) -> Array:
    """Sums `second ∘ (W Wᵀ)` over the features of each pair of channels.

    Args:
        second: `(features, features)`.
        weights: `(features, outputs)`.
        channels: The channel of each feature; -1 is left out, `(features,)`.
        size: Number of channels.

    Returns:
        `(size, size)`.
    """
    gram: Array = channel_grams(second[None], weights, channels, size)[0]
    return gram


def channel_grams(
    seconds: Array, weights: Array, channels: npt.NDArray[np.int64], size: int
) -> Array:
    """`channel_gram` of several second moments `(n, features, features)`, `(n, size, size)`."""
    grams = np.zeros((len(seconds), size, size))
    order = np.argsort(channels, kind="stable")
    order = order[channels[order] >= 0]
    if not len(order):
        return grams
    sorted_weights = weights[order]
    present, starts = np.unique(channels[order], return_index=True)
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        factors = weights[rows] @ sorted_weights.T
        for second, gram in zip(seconds, grams, strict=True):
            products = second[rows[:, None], order] * factors
            sums = np.zeros((len(rows), size))
            sums[:, present] = np.add.reduceat(products, starts, axis=1)
            np.add.at(gram, channels[rows], sums)
    return grams


def weighted_kernel(kernel: Array, sensitivity: Array | None) -> Array:
    """A kernel times the root of its outputs' sensitivity, `(features, outputs)`.

    Args:
        kernel: `(features, outputs)`.
        sensitivity: `(outputs, outputs)`, its diagonal `(outputs,)`, or None for ones.
    """
    weighted: Array = kernel
    if sensitivity is not None and sensitivity.ndim == 1:
        weighted = kernel * np.sqrt(np.maximum(sensitivity, 0))
    elif sensitivity is not None:
        values, vectors = np.linalg.eigh(sensitivity)
        weighted = kernel @ (vectors * np.sqrt(np.maximum(values, 0)))
    return weighted
