"""The adapter from a student's features to its teacher's, by least squares; pure mathematics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sgdap.reconstruction.closed_form import RIDGES, ridge_fit
from sgdap.statistics.ridge import ridges

Array = npt.NDArray[np.float64]


class FeatureMoments:
    """Sums over rows of a student's features s and its teacher's t, in two halves.

    Args:
        student: The number c of the student's features.
        teacher: The number d of the teacher's.
    """

    def __init__(self, student: int, teacher: int) -> None:
        self._counts = np.zeros(2)
        self._sums = np.zeros((2, student)), np.zeros((2, teacher))
        self._second = np.zeros((2, student, student))
        self._cross = np.zeros((2, student, teacher))
        self._squares = np.zeros(teacher)

    def add(self, student: Array, teacher: Array, half: int) -> None:
        """Adds rows.

        Args:
            student: The student's features, `(rows, c)`.
            teacher: The teacher's, `(rows, d)`.
            half: 0 or 1.
        """
        self._counts[half] += len(student)
        for sums, rows in zip(self._sums, (student, teacher), strict=True):
            sums[half] += rows.sum(axis=0)
        self._second[half] += student.T @ student
        self._cross[half] += student.T @ teacher
        self._squares += (teacher**2).sum(axis=0)

    def adapter(self) -> tuple[Array, Array, float]:
        """Solves `min ‖Aᵀ s + b − t‖²`.

        Where the student's features are some of the teacher's, A picks these out.

        Returns:
            A, `(c, d)`; b, `(d,)`; and the variance of t, summed over its entries: the error of
            b alone.

        Raises:
            ValueError: There are no rows in one of the halves, or they are not finite.
        """
        if not self._counts.all():
            raise ValueError(
                "Adapters of inner layers need several samples. Received: "
                f"{int(self._counts.sum())} rows of features. Pass more data, or leave features "
                "out."
            )
        total = self._counts.sum()
        mean, theirs = (sums.sum(axis=0) / total for sums in self._sums)
        weights = self._counts / total
        own, other = self._sums
        # The moments of each half around the mean of both.
        second = np.stack(
            [
                (self._second[h] - np.outer(own[h], mean) - np.outer(mean, own[h]))
                / self._counts[h]
                + np.outer(mean, mean)
                for h in range(2)
            ]
        )
        cross = np.stack(
            [
                (self._cross[h] - np.outer(own[h], theirs) - np.outer(mean, other[h]))
                / self._counts[h]
                + np.outer(mean, theirs)
                for h in range(2)
            ]
        )
        kernel = _fit(second, cross, weights)
        variance = float(np.maximum(self._squares / total - theirs**2, 0).sum())
        return kernel, theirs - mean @ kernel, variance


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
