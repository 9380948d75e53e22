"""Error curves: the output error for each number of channels kept, by block elimination."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.linalg import blas

from sgdap.statistics.activation import ActivationStatistics
from sgdap.statistics.moments import Moments
from sgdap.statistics.ridge import inverse_with, ridges

Array = npt.NDArray[np.float64]
Order = npt.NDArray[np.int64]

PENDING = 128
"""Columns of downdates that wait until they are applied to an inverse in one matrix product."""

STAYING = 0.8
"""Features that are gone are dropped from an inverse when less than this share is left."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """What is known of one consumer of a group.

    Attributes:
        moments: Moments of its features by fold. Where products of features were too many to keep,
            a feature is what a whole channel adds to the outputs, and its weight is 1.
        weights: Its kernel times the root of its outputs' sensitivity, `(features, outputs)`:
            squared errors of these outputs are twice the expected loss.
        channels: For each feature the channel of the group, -1 where it belongs to another one,
            `(features,)`.
        refittable: Whether its weights may be fitted to the channels that stay.
        look: Makes the activation statistics of the channels; None where they are not known.
        taylor: Mean of `|Σ_positions a ∂L/∂a|` over the samples for each channel, `(size,)`; None
            where no gradients were collected.
    """

    moments: Moments
    weights: Array
    channels: npt.NDArray[np.int64]
    refittable: bool
    look: Callable[[], ActivationStatistics] | None = None
    taylor: Array | None = None

    @cached_property
    def activation(self) -> ActivationStatistics | None:
        """Activation statistics of the channels, made when a criterion asks for them."""
        return None if self.look is None else self.look()

    def contributions(self, size: int) -> Moments:
        """The moments over all samples of what each channel adds to its outputs.

        Args:
            size: Number of channels in the group.
        """
        if size not in self._added:
            total = self.moments.total()
            self._added[size] = total.contributions(self.weights, self.channels, size)
        return self._added[size]

    @cached_property
    def _added(self) -> dict[int, Moments]:
        return {}


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """What a group's width costs.

    Attributes:
        order: Channels in the order of their removal, `(removable,)`.
        errors: Expected loss with 0, 1, … of them removed, `(removable + 1,)`.
        wanted: How many of them the criterion itself removes; None: it was not asked.
    """

    order: Order
    errors: Array
    wanted: int | None = None


def eliminate(
    consumers: Sequence[Consumer],
    candidates: npt.NDArray[np.int64],
    order: Order | None = None,
    refinement: float = 0.0,
    *,
    reconstruction: bool = True,
) -> ErrorCurve:
    """Removes channels one by one, the weights of the others refitted each time.

    With `H` the inverse of the kept features' second moment and `W` the weights refitted so far,
    removing the features J of a channel costs `½ tr(W_Jᵀ (H_JJ)⁻¹ W_J)`; both are downdated:
    `W ← W − H_:J (H_JJ)⁻¹ W_J`, `H ← H − H_:J (H_JJ)⁻¹ H_J:`.

    Where weights are left as they are, a removed channel is 0 at its consumer, and all that are
    removed cost `½ Σ_{i,j removed} G_ij`, with `G_ij = Σ_{a,b} E[x_ia x_jb] (W Wᵀ)_{ia,jb}`. Where
    only powers are known, `G` is a diagonal, and a refit changes no more than the bias.

    Args:
        consumers: Consumers of the group; their errors add up.
        candidates: Channels that may leave, `(removable,)`.
        order: The order in which they leave, `(removable,)`; None: the cheapest first.
        refinement: Share of the remaining channels, the first ones of `order`, of which the
            cheapest leaves next; 0 keeps strictly to `order`.
        reconstruction: Whether weights are refitted where they may be.

    Returns:
        The `ErrorCurve`.

    Reference:
        Hassibi & Stork 1993 (optimal brain surgeon); Frantar & Alistarh 2022, arXiv 2208.11580,
        section 4 (groups).
    """
    states: list[_Elimination | _Removal] = []
    others = []
    for consumer in consumers:
        if reconstruction and consumer.refittable and consumer.moments.has_products:
            states.append(_Elimination(consumer))
        else:
            others.append(consumer)
    if others:
        last = max(candidates.max(initial=-1), *(int(own.channels.max()) for own in others))
        states.append(_Removal(others, 1 + int(last), reconstruction))
    left = np.array(candidates if order is None else order)
    removed: list[int] = []
    errors = [0.0]
    while len(left):
        window = len(left) if order is None else max(1, round(refinement * len(left)))
        costs = np.zeros(window)
        for state in states:
            costs += state.costs(left[:window])
        position = int(np.argmin(costs))
        cost = float(costs[position])
        channel = int(left[position])
        left = np.delete(left, position)
        for state in states:
            state.remove(channel)
        removed.append(channel)
        errors.append(max(errors[-1] + cost, 0.0))
    return ErrorCurve(np.array(removed, np.int64), np.array(errors))


def scale_of(power: float) -> float:
    """What errors are measured against: a power, or 1 where all that has it is as good as 0."""
    return power if power > 1e-100 else 1.0


@dataclass(eq=False)
class _SameArea:
    """The channels of a consumer that have the same number k of features.

    Attributes:
        channels: `(n,)`.
        rows: Their features, `(n, k)`.
        blocks: The blocks `H_jj` of the inverse, kept up to date, `(n, k, k)`.
        products: The blocks `W_j W_jᵀ` of the weights, likewise, `(n, k, k)`.
    """

    channels: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    blocks: Array
    products: Array

    def find(self, wanted: npt.NDArray[np.int64]) -> tuple[Any, Any]:
        """Which of some channels are among these, and their places here."""
        place = np.searchsorted(self.channels, wanted)
        place[place == len(self.channels)] = 0
        known = np.flatnonzero(self.channels[place] == wanted) if len(self.channels) else place[:0]
        return known, place[known]


class _Removal:
    """Consumers whose kernels are left as they are, while their channels are removed."""

    def __init__(self, consumers: Sequence[Consumer], size: int, reconstruction: bool) -> None:
        self._gram = np.zeros((size, size))
        for consumer in consumers:
            known = consumer.contributions(size)
            makes_up = reconstruction and consumer.refittable  # the bias does, for the means
            point = known.mean[0] if makes_up else np.zeros_like(known.mean[0])
            self._gram += known.about(point) / known.rows
        self._costs = np.diag(self._gram) / 2

    def costs(self, channels: npt.NDArray[np.int64]) -> Array:
        """Expected loss of removing each of some channels, `(channels,)`; may be a gain."""
        costs: Array = self._costs[channels]
        return costs

    def remove(self, channel: int) -> None:
        """Makes a channel 0."""
        self._costs = self._costs + self._gram[:, channel]


def _compacted(matrix: Array, stay: npt.NDArray[np.int64]) -> Array:
    """Some rows and columns of an upper triangle, in order, in the memory of that matrix."""
    flat, size = matrix.reshape(-1), len(stay)
    assert flat.base is not None, "rows must lie one after another"
    for number, row in enumerate(stay):  # never before where what is still needed lies
        flat[number * size + number : (number + 1) * size] = matrix[row, stay[number:]]
    return flat[: size * size].reshape(size, size)


class _Elimination:
    """One consumer while its channels are removed.

    Removing the features J takes `S Sᵀ` off the inverse and `S U` off the weights, with
    `C Cᵀ = H_JJ`, `S = H_:J C⁻ᵀ` and `U = C⁻¹ W_J`. Both wait until there are enough of them for
    one matrix product. What costs depend on, the blocks of each channel, is kept up to date. Of the
    inverse only the upper triangle is.
    """

    def __init__(self, consumer: Consumer) -> None:
        total = consumer.moments.total()
        second = total.second[0]
        added = ridges(second, mean=np.sqrt(total.rows) * total.mean[0])
        self._inverse = inverse_with(second, added)
        self._inverse *= total.rows  # the sums are those of all rows
        del total, second
        self._weights = consumer.weights.copy()
        features, outputs = self._weights.shape
        if outputs > features:  # only W Wᵀ matters, and a triangle has it too
            self._weights = linalg.qr(self._weights.T, mode="r")[0][:features].T.copy()
        self._alive = np.ones(features, bool)
        self._wait(PENDING)
        order = np.argsort(consumer.channels, kind="stable")
        order = order[consumer.channels[order] >= 0]
        channels, starts, counts = np.unique(
            consumer.channels[order], return_index=True, return_counts=True
        )
        self._areas = []
        for area in np.unique(counts):
            mine = counts == area
            rows = order[starts[mine][:, None] + np.arange(area)]
            pairs = rows[:, :, None], rows[:, None, :]
            blocks = self._inverse[np.minimum(*pairs), np.maximum(*pairs)]
            self._areas.append(_SameArea(channels[mine], rows, blocks, self._products(rows)))

    def costs(self, channels: npt.NDArray[np.int64]) -> Array:
        """Expected loss of removing each of some channels, `(channels,)`."""
        result = np.zeros(len(channels))
        for area in self._areas:
            known, place = area.find(channels)
            products, blocks = area.products[place], area.blocks[place]
            if blocks.shape[1:] == (1, 1):
                cost = products[:, 0, 0] / blocks[:, 0, 0]
            else:
                cost = np.trace(np.linalg.solve(blocks, products), axis1=1, axis2=2)
            result[known] = np.maximum(cost, 0) / 2
        return result

    def remove(self, channel: int) -> None:
        """Takes a channel's features out and refits the others."""
        for area in self._areas:
            _, place = area.find(np.array([channel]))
            if not len(place):
                continue
            if self._filled + area.rows.shape[1] > self._of_inverse.shape[1]:
                self._apply(area.rows.shape[1])
                _, place = area.find(np.array([channel]))
            self._remove(area.rows[place[0]])

    def _remove(self, rows: npt.NDArray[np.int64]) -> None:
        before, weights = self._of_inverse[:, : self._filled], self._of_weights[: self._filled]
        column = self._columns(rows) - before @ before[rows].T
        root = linalg.cholesky(column[rows], lower=True)
        scaled = linalg.solve_triangular(root, column.T, lower=True).T
        own = self._weights[rows] - before[rows] @ weights
        own = linalg.solve_triangular(root, own, lower=True)
        cross = self._weights @ own.T - before @ (weights @ own.T)
        cross -= scaled @ (own @ own.T / 2)
        for area in self._areas:
            part, crossed = scaled[area.rows], cross[area.rows]
            change = part @ crossed.transpose(0, 2, 1)
            area.products -= change + change.transpose(0, 2, 1)
            area.blocks -= part @ part.transpose(0, 2, 1)
        self._alive[rows] = False
        waiting = slice(self._filled, self._filled + len(rows))
        self._of_inverse[:, waiting], self._of_weights[waiting] = scaled, own
        self._filled += len(rows)

    def _columns(self, rows: npt.NDArray[np.int64]) -> Array:
        """Columns of the inverse as it was when what waits began to, `(features, columns)`."""
        columns = np.empty((len(rows), len(self._inverse)))
        for row, column in zip(rows, columns, strict=True):
            column[:row], column[row:] = self._inverse[:row, row], self._inverse[row, row:]
        return columns.T

    def _wait(self, columns: int) -> None:
        """Makes room for columns of S and rows of U that wait."""
        features, outputs = self._weights.shape
        self._of_inverse = np.zeros((features, columns))
        self._of_weights = np.zeros((columns, outputs))
        self._filled = 0

    def _products(self, rows: npt.NDArray[np.int64]) -> Array:
        """`W_j W_jᵀ` of channels with these features, `(n, k, k)`."""
        weights = self._weights[rows]
        products: Array = weights @ weights.transpose(0, 2, 1)
        return products

    def _apply(self, wanted: int) -> None:
        """Takes off what waits; drops the features that are gone where they are many.

        Args:
            wanted: How many columns must have room then.
        """
        waiting, of_weights = self._of_inverse[:, : self._filled], self._of_weights[: self._filled]
        if self._alive.mean() < STAYING:
            waiting = self._dropped(waiting)
        if waiting.size:  # BLAS writes to the terminal where no feature is left
            self._inverse = blas.dsyrk(  # Fortran's lower triangle is our upper one
                -1.0, waiting.T, beta=1.0, c=self._inverse.T, trans=1, lower=1, overwrite_c=1
            ).T
        self._weights -= waiting @ of_weights
        for area in self._areas:
            area.products = self._products(area.rows)
        self._wait(max(PENDING, wanted))

    def _dropped(self, waiting: Array) -> Array:
        """Drops the features that are gone, also of what waits, which is returned."""
        stay = np.flatnonzero(self._alive)
        self._inverse = _compacted(self._inverse, stay)
        self._weights = self._weights[stay]
        number = np.cumsum(self._alive) - 1
        for area in self._areas:
            left = self._alive[area.rows].all(axis=1)
            area.channels, area.blocks = area.channels[left], area.blocks[left]
            area.rows = number[area.rows[left]]
        self._alive = np.ones(len(stay), bool)
        return waiting[stay]
