"""The adapter from a student's features to its teacher's, by least squares; pure mathematics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sgdap.reconstruction.closed_form import RIDGES, ridge_fit
from sgdap.reconstruction.residuals import Residuals
from sgdap.statistics.ridge import ridges

Array = npt.NDArray[np.float64]


def sums_of(student: Array, teacher: Array) -> dict[str, Array]:
    """What `ResidualAccumulator` adds up of rows, with the shift 0.

    Args:
        student: The student's features s, `(rows, c)`.
        teacher: Its teacher's features t, `(rows, d)`.
    """
    return {
        "count": np.asarray(float(len(student))),
        "x": student.sum(axis=0),
        "r": teacher.sum(axis=0),
        "rr": (teacher**2).sum(axis=0),
        "xx": student.T @ student,
        "xr": student.T @ teacher,
    }


def fitted_adapter(moments: Residuals) -> tuple[Array, Array, float]:
    """Solves `min ‖Aᵀ s + b − t‖²`.

    Where the student's features are some of the teacher's, A picks these out.

    Args:
        moments: Those of s as features and of t as what is lacking, in two halves of the rows.

    Returns:
        A, `(c, d)`; b, `(d,)`; and the variance of t, summed over its entries: the error of b
        alone.

    Raises:
        ValueError: There are no rows in one of the halves.
    """
    if not moments.count.all():
        raise ValueError(
            "Adapters of inner layers need several samples. Received: "
            f"{int(moments.count.sum())} rows of features. Pass more data, or leave features out."
        )
    weights = moments.count / moments.count.sum()
    mean, theirs = weights @ moments.mean, weights @ moments.lacking
    kernel = _fit(moments.second, moments.cross, weights)
    variance = weights @ (moments.power + (moments.lacking - theirs) ** 2)
    return kernel, theirs - mean @ kernel, float(variance.sum())


def _fit(second: Array, cross: Array, weights: Array) -> Array:
    """Fits each output with the ridge of its own that does best across the halves.

    An output that follows from the features needs none, one that hardly does a large one, and one
    that no ridge serves is 0. The gain is that of `closed_form.validated_fit`.

    Args:
        second: Second moments of the features in each half, `(2, c, c)`.
        cross: Cross moments of the features and the outputs, `(2, c, d)`.
        weights: The share of the rows in each half, `(2,)`.

    Returns:
        `(c, d)`.
    """
    both = [np.tensordot(weights, own, axes=1) for own in (second, cross)]
    kernel, most = np.zeros_like(both[1]), np.zeros(cross.shape[-1])
    for ridge in RIDGES:
        gain = np.zeros(cross.shape[-1])
        for mine, other in ((0, 1), (1, 0)):
            change = ridge_fit(second[mine], cross[mine], ridges(second[mine], ridge))
            lowered = 2 * change * cross[other] - change * (second[other] @ change)
            gain += weights[other] * lowered.sum(axis=0)
        better = gain > most
        if better.any():
            most = np.where(better, gain, most)
            kernel[:, better] = ridge_fit(both[0], both[1][:, better], ridges(both[0], ridge))
    return kernel
