"""Second moments that may be singular, factored and inverted with a small ridge; pure mathematics.

The ridge of a feature is a share of its own second moment. So a feature that is measured in another
unit gets the same result, and one of small scale is not swamped by the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.linalg import lapack

Array = npt.NDArray[np.float64]

RIDGE = 1e-6
"""Share of a feature's second moment that is added to it: float32 moments are no better."""

ROUNDING = 2.0**-23
"""Relative rounding of float32: a deviation that is smaller against the mean tells nothing."""

DEAD = 1e-60
"""What is added for a feature that is always 0, less than any power of float32 numbers."""


def ridges(second: Array, share: float = RIDGE, mean: Array | None = None) -> Array:
    """What is added to each feature's second moment.

    Args:
        second: Second moment of the features, `(features, features)`.
        share: The share of each feature's own second moment.
        mean: Means of the features, `(features, …)`; None where deviations from them do not matter.

    Returns:
        Positive numbers, `(features,)`.
    """
    own = share * np.maximum(np.diag(second), 0)
    if mean is not None:
        own = own + ROUNDING**2 * (mean.reshape(len(mean), -1) ** 2).sum(axis=1)
    added: Array = np.maximum(own, DEAD)
    return added


def cholesky_with(second: Array, added: Array) -> tuple[Array, bool]:
    """Factors `M + diag(added)` for `scipy.linalg.cho_solve`.

    Moments of fewer rows than features are singular, and in float32 they may miss 0 by more than
    was added. Then ten times as much is added, until the factor exists.

    Args:
        second: Second moment M, `(features, features)`.
        added: What is added to its diagonal, positive, `(features,)`.

    Returns:
        The factor, `(features, features)`, and True, for its lower triangle is meant.

    Raises:
        ValueError: A moment is not finite, or what is added not positive.
    """
    if not (added > 0).all():
        raise ValueError(
            f"What is added to second moments must be positive. Received: {added.min()}"
        )
    while True:
        ridged = np.array(second.T, np.float64, order="F")  # it is symmetric, and so only copied
        ridged[np.diag_indices_from(ridged)] += added
        try:
            factor: tuple[Array, bool] = linalg.cho_factor(ridged, lower=True, overwrite_a=True)
        except linalg.LinAlgError:
            added = 10 * added
        except ValueError as error:
            raise ValueError(
                f"The second moments of {len(second)} features, or what is added to them, are not "
                "finite (NaN or infinity). Look for such numbers in the data and the weights."
            ) from error
        else:
            return factor


def ridged(second: Array, added: Array) -> Array:
    """`M + diag(added)`, with so much more added that it can be factored, as `cholesky_with`.

    Args:
        second: Second moment M, `(features, features)`.
        added: What is added to its diagonal, `(features,)`.
    """
    factor = np.tril(cholesky_with(second, added)[0])
    made = np.array(second)
    np.einsum("ii->i", made)[:] = np.einsum("ij,ij->i", factor, factor)
    return made


def inverse_with(second: Array, added: Array) -> Array:
    """Returns `(M + diag(added))⁻¹`, made in the memory of one matrix.

    Args:
        second: As for `cholesky_with`.
        added: As for `cholesky_with`.

    Returns:
        The inverse, its rows one after another in memory, `(features, features)`. Only its upper
        triangle is meant.

    Raises:
        ValueError: As `cholesky_with`.
    """
    factor, _ = cholesky_with(second, added)
    inverse: Array
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    return inverse.T  # LAPACK's lower triangle, its columns one after another
