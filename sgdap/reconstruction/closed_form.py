"""Refits a consumer's weights to the kept channels by least squares; knows no Keras objects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg

from sgdap.statistics.ridge import cholesky_with, ridges

Array = npt.NDArray[np.float64]

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
"""The ridges that cross-validation chooses from, as shares of each feature's second moment."""


def reconstruct(
    second: Array, mean: Array, weights: Array, kept: npt.NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Fits the weights of the kept features to the outputs that all features gave.

    With S the kept and R the removed features, `W'_S = W_S + M_SS⁻¹ M_SR W_R` and
    `Δb = μ_Rᵀ W_R − μ_Sᵀ (W'_S − W_S)`. This is the least-squares optimum, written as a change of
    the old weights, so that the ridge pulls towards them and not towards 0.

    Args:
        second: Centred second moment M of the features, `(features, features)`.
        mean: Mean μ of the features, `(features,)`.
        weights: The consumer's kernel W, `(features, outputs)`.
        kept: A mask of the features, True for those that stay, `(features,)`.

    Returns:
        The new weights of the kept features, `(kept, outputs)`, and the change Δb of the bias,
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
    """The change D of the weights that minimises `E‖r − Dᵀx‖² + Σ_i added_i ‖D_i‖²`.

    Args:
        second: Second moment M of the features x, `(features, features)`.
        cross: Cross moment `E[x rᵀ]` of the features and the outputs' error r,
            `(features, outputs)`.
        added: The ridge added to each feature's second moment, `(features,)`.

    Returns:
        `(M + diag(added))⁻¹ E[x rᵀ]`, `(features, outputs)`.
    """
    change: Array = linalg.cho_solve(cholesky_with(second, added), cross)
    return change


def cross_validated_fit(second: Array, cross: Array, weights: Array) -> Array:
    """Fits a change of the weights to the outputs' error; two-fold cross-validation sets the ridge.

    A change D lowers the mean squared error of one half of the samples by
    `2 tr(Dᵀ C) − tr(Dᵀ M D)`, with the moments M and C of that half. Each ridge is fitted on one
    half and judged by this gain on the other. The ridge with the largest gain is used; if none
    gains, the change is 0.

    Args:
        second: Second moments M of the features, of each half, `(2, features, features)`.
        cross: Cross moments C of the features and the outputs' error, of each half,
            `(2, features, outputs)`.
        weights: The share of the samples in each half, `(2,)`.

    Returns:
        The change D, fitted on both halves together, `(features, outputs)`.
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
