"""Re-fits a consumer's weights to the channels that stay, by least squares; pure mathematics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg

from sgdap.statistics.ridge import cholesky_with, ridges

Array = npt.NDArray[np.float64]

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
"""Shares of each feature's second moment that cross-validation may add to it."""


def reconstruct(
    second: Array, mean: Array, weights: Array, kept: npt.NDArray[np.bool_]
) -> tuple[Array, Array]:
    """The weights on the kept features that come closest to the outputs of all of them.

    For S kept and R removed, `W'_S = W_S + M_SS⁻¹ M_SR W_R` and
    `Δb = μ_Rᵀ W_R − μ_Sᵀ (W'_S − W_S)`: the least squares optimum, written so that the ridge draws
    towards the old weights.

    Args:
        second: Centred second moment of the features, `(features, features)`.
        mean: Their mean, `(features,)`.
        weights: The consumer's kernel, `(features, outputs)`.
        kept: Which features stay, `(features,)`.

    Returns:
        The new weights of the kept features, `(kept, outputs)`, and what to add to the bias,
        `(outputs,)`.
    """
    stay, leave = np.flatnonzero(kept), np.flatnonzero(~kept)
    gone = weights[leave]
    if not len(stay):
        return weights[stay], mean[leave] @ gone
    staying = second[np.ix_(stay, stay)]
    added = ridges(staying, mean=mean[stay])
    change = ridge_fit(staying, second[np.ix_(stay, leave)] @ gone, added)
    return weights[stay] + change, mean[leave] @ gone - mean[stay] @ change


def ridge_fit(second: Array, cross: Array, added: Array) -> Array:
    """The change D of weights that minimises `E‖r − Dᵀx‖² + Σ_i added_i ‖D_i‖²`.

    Args:
        second: Second moment of the features x, `(features, features)`.
        cross: Moment of the features and what the outputs lack, `E[x rᵀ]`, `(features, outputs)`.
        added: What is added to each feature's second moment, `(features,)`.

    Returns:
        `(M + diag(added))⁻¹ E[x rᵀ]`, `(features, outputs)`.
    """
    change: Array = linalg.cho_solve(cholesky_with(second, added), cross)
    return change


def cross_validated_fit(second: Array, cross: Array, weights: Array) -> Array:
    """Fits what outputs lack, the ridge chosen by two-fold cross-validation.

    A change D lowers the mean squared error of a half by `2 tr(Dᵀ C) − tr(Dᵀ M D)`, with its own
    M and C; the ridge is taken whose changes, fitted on one half, gain most on the other. Where
    none gains, nothing changes.

    Args:
        second: Second moments M of the features, `(2, features, features)`.
        cross: Moments C of the features and what the outputs lack, `(2, features, outputs)`.
        weights: Share of the samples that each half has, `(2,)`.

    Returns:
        D fitted on both halves, `(features, outputs)`.
    """
    gains = []
    for ridge in RIDGES:
        gain = 0.0
        for mine, other in ((0, 1), (1, 0)):
            change = ridge_fit(second[mine], cross[mine], ridges(second[mine], ridge))
            lowered = 2 * change * cross[other] - change * (second[other] @ change)
            gain += weights[other] * float(lowered.sum())
        gains.append(gain)
    best = int(np.argmax(gains))
    if gains[best] <= 0:
        return np.zeros_like(cross[0])
    both = np.einsum("h,hij->ij", weights, second)
    return ridge_fit(both, np.einsum("h,hio->io", weights, cross), ridges(both, RIDGES[best]))
