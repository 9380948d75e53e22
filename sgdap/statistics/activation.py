"""Activation values and patterns of channels, read from the moments of their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.statistics.moments import Moments

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """How strongly and how alike channels fire, as their consumer sees them.

    Each channel is taken over all rows and kernel positions. Constant channels correlate with
    nothing (0 off the diagonal).

    Attributes:
        mean: Mean activation, `(channels,)`.
        std: Standard deviation, `(channels,)`.
        combined: `mean|a| + std|a|`, `(channels,)`.
        zeros: Share of activations that are exactly 0 (APoZ, arXiv 1607.03250 section 3.1),
            `(channels,)`.
        correlation: The activation pattern: correlation between channels at the same place,
            `(channels, channels)`.
    """

    mean: Array
    std: Array
    combined: Array
    zeros: Array
    correlation: Array


def activation_statistics(
    moments: Moments, features: npt.NDArray[np.int64], contributions: Moments | None = None
) -> ActivationStatistics:
    """Reads activation values and the activation pattern from moments.

    Args:
        moments: Moments of the features, zeros and magnitudes counted.
        features: The channel (0, 1, …) of each feature; features of a channel are its values at
            the kernel's positions, in the same order for every channel. -1: not looked at.
        contributions: Moments of what each channel adds to the outputs, where only the features'
            `Powers` are known; correlations are those of the contributions then.

    Returns:
        `ActivationStatistics` of the channels in order of their number; a channel without
        features is a silent one.
    """
    total = moments.total()
    assert total.zeros is not None and total.absolute is not None
    mean = total.mean[0]
    rows = positions_of(features)
    raw = total.variance + mean**2
    own = _pooled(raw, rows)
    mean_of = _pooled(mean, rows)
    absolute = _pooled(total.absolute[0] / total.rows, rows)
    std = np.sqrt(np.maximum(own - mean_of**2, 0))
    if contributions is not None:
        whole = contributions.total()
        covariance = whole.about(whole.mean[0])[: len(rows), : len(rows)]
    else:
        covariance = _same_place(total, mean_of, rows)
    scale = np.sqrt(np.maximum(np.diag(covariance), 0))
    product = np.outer(scale, scale)
    floor = 1e-12 * float(product.max(initial=0.0))
    correlation = np.divide(
        covariance, product, out=np.zeros_like(covariance), where=product > floor
    )
    np.fill_diagonal(correlation, 1.0)
    return ActivationStatistics(
        mean=mean_of,
        std=std,
        combined=absolute + np.sqrt(np.maximum(own - absolute**2, 0)),
        zeros=_pooled(total.zeros[0] / total.rows, rows, empty=1.0),
        correlation=np.clip(correlation, -1, 1),
    )


def _same_place(total: Moments, mean_of: Array, rows: list[npt.NDArray[np.int64]]) -> Array:
    """Covariance of channels at the same place, mean over the kernel's positions."""
    covariance = np.zeros((len(rows), len(rows)))
    seen = np.array([c for c, r in enumerate(rows) if len(r)], np.int64)
    places = min((len(rows[c]) for c in seen), default=0)
    for place in range(places):
        index = np.array([rows[c][place] for c in seen])
        apart = total.mean[0][index] - mean_of[seen]
        both = total.second[0][np.ix_(index, index)] / total.rows
        covariance[np.ix_(seen, seen)] += (both + np.outer(apart, apart)) / places
    return covariance


def positions_of(features: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """For each channel the numbers of its features, in order."""
    if not (features >= 0).any():
        return []
    return [np.flatnonzero(features == c) for c in range(int(features.max()) + 1)]


def _pooled(values: Any, rows: list[npt.NDArray[np.int64]], empty: float = 0.0) -> Array:
    return np.array([values[r].mean() if len(r) else empty for r in rows])
