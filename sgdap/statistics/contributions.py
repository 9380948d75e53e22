"""What each channel adds to a consumer's outputs, from the moments of its features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BLOCK = 512
"""Features whose products with all others are made at once: memory is `BLOCK · features`."""


def channel_sums(
    values: Array, weights: Array, channels: npt.NDArray[np.int64], size: int
) -> Array:
    """What each channel adds to the outputs for one row of features.

    Args:
        values: The row, `(features,)`, or `(features, entries)` where features are vectors.
        weights: `(features, outputs)`.
        channels: The channel of each feature; -1 is left out, `(features,)`.
        size: Number of channels.

    Returns:
        `(size, outputs)`, or `(size, entries · outputs)`.
    """
    chosen = np.flatnonzero(channels >= 0)
    added = values[chosen].reshape(len(chosen), -1, 1) * weights[chosen, None]
    sums = np.zeros((size, added.shape[1] * added.shape[2]))
    np.add.at(sums, channels[chosen], added.reshape(len(chosen), -1))
    return sums


def channel_powers(
    powers: Array, weights: Array, channels: npt.NDArray[np.int64], size: int
) -> Array:
    """The power of what each channel adds to the outputs, uncorrelated features assumed, `(size,)`.

    Args:
        powers: The features' second moments, `(features,)`.
        weights: `(features, outputs)`.
        channels: The channel of each feature; -1 is left out, `(features,)`.
        size: Number of channels.
    """
    chosen = np.flatnonzero(channels >= 0)
    own = powers[chosen] * (weights[chosen] ** 2).sum(axis=1)
    sums = np.zeros(size)
    np.add.at(sums, channels[chosen], own)
    return sums


def channel_grams(
    seconds: Array, weights: Array, channels: npt.NDArray[np.int64], size: int
) -> Array:
    """Sums `second ∘ (W Wᵀ)` over the features of each pair of channels.

    Args:
        seconds: Several second moments, `(n, features, features)`.
        weights: `(features, outputs)`.
        channels: The channel of each feature; -1 is left out, `(features,)`.
        size: Number of channels.

    Returns:
        `(n, size, size)`.
    """
    grams = np.zeros((len(seconds), size, size))
    order = np.argsort(channels, kind="stable")
    order = order[channels[order] >= 0]
    if not len(order):
        return grams
    sorted_weights = weights[order]
    present, starts = np.unique(channels[order], return_index=True)
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        here, firsts = np.unique(channels[rows], return_index=True)
        factors = weights[rows] @ sorted_weights.T
        for second, gram in zip(seconds, grams, strict=True):
            products = second[rows[:, None], order] * factors
            products = np.add.reduceat(products, firsts, axis=0)
            gram[np.ix_(here, present)] += np.add.reduceat(products, starts, axis=1)
    return grams


def weighted_kernel(kernel: Array, sensitivity: Array | None) -> Array:
    """A kernel K times a root of its outputs' sensitivity Γ: `W` with `W Wᵀ = K Γ Kᵀ`.

    Directions of the outputs that do not matter, to the last bit, are left out.

    Args:
        kernel: `(features, outputs)`.
        sensitivity: `(outputs, outputs)`, its diagonal `(outputs,)`, or None for ones.

    Returns:
        `(features, r)`, r at most the lesser of features and outputs where the sensitivity is a
        matrix, else the number of outputs.
    """
    if sensitivity is None:
        return kernel
    if sensitivity.ndim == 1:
        return kernel * np.sqrt(np.maximum(sensitivity, 0))
    features, outputs = kernel.shape
    if outputs > features:
        return _root(kernel @ sensitivity @ kernel.T)
    return kernel @ _root(sensitivity)


def _root(second: Array) -> Array:
    """R with `R Rᵀ` a positive semidefinite matrix, a column for each eigenvalue above rounding."""
    values, vectors = np.linalg.eigh(second)
    above = values > len(values) * np.finfo(np.float64).eps * values.max(initial=0.0)
    root: Array = vectors[:, above] * np.sqrt(values[above])
    return root
