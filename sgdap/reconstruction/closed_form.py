"""Refits a consumer's weights to the kept channels by least squares; knows no Keras objects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg

from sgdap.statistics.ridge import cholesky_with, ridges

Array = npt.NDArray[np.float64]

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
"""The ridges that samples held back choose from, as shares of each feature's second moment."""

UNUSED = 1e-30
"""A feature that is not used counts as if its weights had this part of the largest one's power."""


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


def validated_fit(second: Array, cross: Array, prior: Array) -> Array:
    """Fits a change of the weights to the outputs' error; samples held back set the ridge.

    A change D lowers the mean squared error by `2 tr(Dᵀ C) − tr(Dᵀ M D)`, with the moments M and C
    of the samples held back. The ridge with the largest gain is used; if none gains, the change is
    0. Nothing is fitted to these samples, so that they judge the next consumer as well: what it
    reads of the others has been fitted to them already.

    Args:
        second: Second moments M of the features, of the samples to fit and of those held back,
            `(2, features, features)`.
        cross: Cross moments C of the features and the outputs' error, `(2, features, outputs)`.
        prior: What is added to each feature's second moment besides, `(features,)`.

    Returns:
        The change D, `(features, outputs)`.
    """
    best: Array = np.zeros_like(cross[0])
    most = 0.0
    for ridge in RIDGES:
        change = ridge_fit(second[0], cross[0], ridges(second[0], ridge) + prior)
        gain = float((2 * change * cross[1] - change * (second[1] @ change)).sum())
        if gain > most:
            best, most = change, gain
    return best


def prior_ridge(weights: Array, power: Array, count: float) -> Array:
    """The ridge of a fit that expects changes as large as the weights are: `σ² / (n E[w²])`.

    It is nothing for features that are seen often. A feature that is all but dead in n rows would
    else get any weight for the little that it explains there, and ruin the first sample on which it
    is not dead. A feature of another unit gets the same result.

    Args:
        weights: The consumer's kernel, `(features, outputs)`.
        power: The power σ² of the outputs' error, `(outputs,)`.
        count: The number n of rows.

    Returns:
        What is added to each feature's second moment, `(features,)`.

    Reference:
        Hastie, Tibshirani, Friedman 2009, "The Elements of Statistical Learning", section 3.4.1:
        ridge regression is the mode of the posterior with a normal prior of the weights.
    """
    own = (weights**2).mean(axis=1)
    expected = np.maximum(own, UNUSED * own.max(initial=0.0))
    added: Array = np.zeros(len(own))
    np.divide(power.mean(), max(count, 1.0) * expected, out=added, where=expected > 0)
    return added
