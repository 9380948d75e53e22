"""Re-fits a consumer's weights to the channels that stay, by least squares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg

from sgdap.guidance.elimination import RIDGE

Array = npt.NDArray[np.float64]


def reconstruct(
    second: Array,
    mean: Array,
    weights: Array,
    kept: npt.NDArray[np.bool_],
    ridge: float = RIDGE,
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
        ridge: Share of the mean feature variance added to each one's.

    Returns:
        The new weights of the kept features, `(kept, outputs)`, and what to add to the bias,
        `(outputs,)`.
    """
    stay, leave = np.flatnonzero(kept), np.flatnonzero(~kept)
    gone = weights[leave]
    if not len(stay):
        return weights[stay], mean[leave] @ gone
    block = second[np.ix_(stay, stay)]
    added = ridge * max(float(np.diag(second).mean()), np.finfo(float).tiny)
    change = linalg.solve(
        block + added * np.eye(len(stay)), second[np.ix_(stay, leave)] @ gone, assume_a="pos"
    )
    return weights[stay] + change, mean[leave] @ gone - mean[stay] @ change
