"""Error curves: the output error for each number of channels kept, by block elimination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg

Array = npt.NDArray[np.float64]
Order = npt.NDArray[np.int64]

RIDGE = 1e-6
"""Share of the mean feature variance that is added to each: float32 moments are no better."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """One consumer of a group, ready for elimination.

    Attributes:
        second: Mean centred second moment of its features, `(features, features)`.
        mean: Mean of its features, `(features,)`.
        weights: Its kernel times the root of its outputs' sensitivity, `(features, outputs)`:
            squared errors of these outputs are twice the expected loss.
        channels: For each feature the channel of the group, -1 where it belongs to another one,
            `(features,)`.
    """

    second: Array
    mean: Array
    weights: Array
    channels: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """What a group's width costs.

    Attributes:
        order: Channels in the order of their removal, `(removable,)`.
        errors: Expected loss with 0, 1, … of them removed, `(removable + 1,)`.
    """

    order: Order
    errors: Array


def eliminate(
    consumers: Sequence[Consumer],
    candidates: npt.NDArray[np.int64],
    order: Order | None = None,
    refinement: float = 0.0,
) -> ErrorCurve:
    """Removes channels one by one, the weights of the others refitted each time.

    With `H` the inverse of the kept features' second moment and `W` the weights refitted so far,
    removing the features J of a channel costs `½ tr(W_Jᵀ (H_JJ)⁻¹ W_J)`; both are downdated:
    `W ← W − H_:J (H_JJ)⁻¹ W_J`, `H ← H − H_:J (H_JJ)⁻¹ H_J:`.

    Args:
        consumers: All consumers of the group; their errors add up.
        candidates: Channels that may leave, `(removable,)`.
        order: The order in which they leave, `(removable,)`; None: the cheapest first.
        refinement: Share of the remaining channels, the first ones of `order`, of which the
            cheapest leaves next; 0 keeps strictly to `order`.

    Returns:
        The `ErrorCurve`.

    Reference:
        Hassibi & Stork 1993 (optimal brain surgeon); Frantar & Alistarh 2022, arXiv 2208.11580,
        section 4 (groups).
    """
    states = [_Elimination(consumer) for consumer in consumers]
    left = list(candidates if order is None else order)
    removed: list[int] = []
    errors = [0.0]
    while left:
        window = len(left) if order is None else max(1, round(refinement * len(left)))
        costs = np.zeros(window)
        for state in states:
            costs += state.costs(np.array(left[:window]))
        position = int(np.argmin(costs))
        cost = float(costs[position])
        channel = left.pop(position)
        for state in states:
            state.remove(channel)
        removed.append(int(channel))
        errors.append(errors[-1] + max(cost, 0.0))
    return ErrorCurve(np.array(removed, np.int64), np.array(errors))


def removal_errors(consumers: Sequence[Consumer], order: Order) -> ErrorCurve:
    """The error curve where the weights of the channels that stay are left as they are.

    A removed channel is 0 at its consumers, so `½ Σ_{i,j removed} G_ij` is the expected loss, with
    `G_ij = Σ_{a,b} E[x_ia x_jb] (W Wᵀ)_{ia,jb}`.

    Args:
        consumers: All consumers of the group; their errors add up.
        order: Channels in the order of their removal, `(removable,)`.

    Returns:
        The `ErrorCurve`.
    """
    size = 1 + max(int(order.max(initial=-1)), *(int(c.channels.max()) for c in consumers))
    gram = np.zeros((size, size))
    for consumer in consumers:
        raw = consumer.second + np.outer(consumer.mean, consumer.mean)
        gram += channel_gram(raw, consumer.weights, consumer.channels, size)
    ordered = gram[np.ix_(order, order)]
    inside = np.cumsum(np.cumsum(ordered, axis=0), axis=1)
    return ErrorCurve(order, np.append(0.0, np.maximum(np.diag(inside) / 2, 0)))


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
    chosen = np.flatnonzero(channels >= 0)
    product = second[np.ix_(chosen, chosen)] * (weights[chosen] @ weights[chosen].T)
    rows = np.zeros((size, len(chosen)))
    np.add.at(rows, channels[chosen], product)
    gram = np.zeros((size, size))
    np.add.at(gram.T, channels[chosen], rows.T)
    return gram


def cholesky_with(second: Array, added: float) -> tuple[Array, bool]:
    """Factors `M + added I` for `scipy.linalg.cho_solve`.

    Moments of fewer rows than features are singular, and in float32 they may miss 0 by more than
    was added; then ten times as much is, until the factor exists.

    Args:
        second: Second moment M, finite, `(features, features)`.
        added: What is added to its diagonal, positive.
    """
    while True:
        try:
            factor: tuple[Array, bool] = linalg.cho_factor(
                second + added * np.eye(len(second)), lower=True
            )
        except linalg.LinAlgError:
            added *= 10
        else:
            return factor


class _Elimination:
    """One consumer while its channels are removed."""

    def __init__(self, consumer: Consumer) -> None:
        second = consumer.second
        diagonal = np.diag(second)
        ridge = RIDGE * max(float(diagonal.mean()), np.finfo(float).tiny)
        inverse = linalg.cho_solve(cholesky_with(second, ridge), np.eye(len(second)))
        # BLAS downdates arrays of columns where they lie.
        self._inverse = np.asfortranarray((inverse + inverse.T) / 2)
        self._weights = np.asfortranarray(consumer.weights, np.float64).copy(order="F")
        channels = consumer.channels
        count = int(channels.max(initial=-1)) + 1
        self._rows = [np.flatnonzero(channels == c) for c in range(count)]
        self._gone = np.zeros(len(second), bool)

    def costs(self, channels: npt.NDArray[np.int64]) -> Array:
        """Expected loss of removing each of some channels, `(channels,)`."""
        result = np.zeros(len(channels))
        by_area: dict[int, list[int]] = {}
        for i, channel in enumerate(channels):
            if channel < len(self._rows) and len(self._rows[channel]):
                by_area.setdefault(len(self._rows[channel]), []).append(i)
        for area, entries in by_area.items():
            rows = np.stack([self._rows[channels[i]] for i in entries])
            weights = self._weights[rows]
            if area == 1:
                pivots = self._inverse[rows[:, 0], rows[:, 0]]
                cost = np.einsum("ro,ro->r", weights[:, 0], weights[:, 0]) / pivots
            else:
                blocks = self._inverse[rows[:, :, None], rows[:, None, :]]
                cost = (weights * np.linalg.solve(blocks, weights)).sum((1, 2))
            result[entries] = cost / 2
        return result

    def remove(self, channel: int) -> None:
        """Takes a channel's features out and refits the others."""
        if channel >= len(self._rows):
            return
        rows = self._rows[channel]
        if not len(rows):
            return
        column = np.asfortranarray(self._inverse[:, rows])
        gain = linalg.solve(self._inverse[np.ix_(rows, rows)], column.T, assume_a="sym").T
        gone = np.asfortranarray(self._weights[rows])
        self._weights = linalg.blas.dgemm(
            -1.0, gain, gone, beta=1.0, c=self._weights, overwrite_c=True
        )
        self._inverse = linalg.blas.dgemm(
            -1.0, gain, column, beta=1.0, c=self._inverse, trans_b=True, overwrite_c=True
        )
        self._rows[channel] = rows[:0]
        self._gone[rows] = True
        if 2 * self._gone.sum() >= len(self._gone):
            self._compact()

    def _compact(self) -> None:
        """Drops the rows of what is gone, so that later steps cost less."""
        left = np.flatnonzero(~self._gone)
        number = np.cumsum(~self._gone) - 1
        self._rows = [number[rows] for rows in self._rows]
        self._inverse = np.asfortranarray(self._inverse[np.ix_(left, left)])
        self._weights = np.asfortranarray(self._weights[left])
        self._gone = self._gone[left]
