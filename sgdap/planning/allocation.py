"""How many channels each group keeps: the widths that meet a budget at the least expected loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sgdap.graph.groups import ChannelGroup
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.budget import Budget
from sgdap.planning.cost import MEASURES, CostModel

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(eq=False)
class _Widths:
    """Which channels are kept while widths are sought, and what that costs."""

    model: CostModel
    groups: Sequence[ChannelGroup]
    curves: Mapping[str, ErrorCurve]
    min_channels: int
    kept: Mask
    lengths: Array = field(init=False)
    removed: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = self.model.lengths(self.kept)
        self.removed = {group.name: [] for group in self.groups}
        self._matrix = self.model.widths
        self._terms = [_TermTable(terms, len(self.lengths)) for terms in self.model.terms]
        touched = {}
        for group in self.groups:
            axes = np.unique(self._matrix[:, group.channels].indices)
            touched[group.name] = [table.touching(axes) for table in self._terms]
        self._touched = touched
        self._orders = {
            g.name: [int(c) for c in g.channels[self.curves[g.name].order]] for g in self.groups
        }
        self._places = {name: {c: i for i, c in enumerate(o)} for name, o in self._orders.items()}
        self._neighbours: dict[str, list[ChannelGroup]] = {}

    def cost(self) -> Array:
        return np.array([table.total(self.lengths) for table in self._terms])

    def next_channel(self, group: ChannelGroup) -> int | None:
        """The group's next channel that may leave, as its number in the model."""
        done = self.removed[group.name]
        if group.size - len(done) <= self.min_channels:
            return None
        order = self._orders[group.name]
        start = self._places[group.name][done[-1]] + 1 if done else 0
        for channel in order[start:]:
            if self._spares(channel):
                return channel
        return None

    def saving(self, group: ChannelGroup, channel: int) -> Array:
        """What removing a channel saves of each measure."""
        axes, taken = self._column(channel)
        after = self.lengths.copy()
        after[axes] -= taken
        return np.array(
            [
                table.total(self.lengths, rows) - table.total(after, rows)
                for table, rows in zip(self._terms, self._touched[group.name], strict=True)
            ]
        )

    def remove(self, group: ChannelGroup, channel: int) -> None:
        """Takes a channel out."""
        self.kept[channel] = False
        self.removed[group.name].append(channel)
        axes, taken = self._column(channel)
        self.lengths[axes] -= taken

    def restore(self, group: ChannelGroup) -> None:
        """Brings the channel back that left the group last."""
        channel = self.removed[group.name].pop()
        self.kept[channel] = True
        axes, taken = self._column(channel)
        self.lengths[axes] += taken

    def _column(self, channel: int) -> tuple[npt.NDArray[np.int32], Array]:
        """The axes on which a channel has places, and how many."""
        start, stop = self._matrix.indptr[channel : channel + 2]
        return self._matrix.indices[start:stop], self._matrix.data[start:stop]

    def error(self) -> float:
        """The expected loss of everything removed."""
        return float(sum(self.curves[n].errors[len(d)] for n, d in self.removed.items()))

    def last_gain(self, group: ChannelGroup) -> float:
        """How much the loss rose with the group's last removal."""
        done, errors = len(self.removed[group.name]), self.curves[group.name].errors
        return float(errors[done] - errors[done - 1]) if done else 0.0

    def set_removed(self, removed: Mapping[str, list[int]]) -> None:
        for group in self.groups:
            mine, wanted = self.removed[group.name], removed[group.name]
            while mine[: len(wanted)] != wanted[: len(mine)] or len(mine) > len(wanted):
                self.restore(group)
            for channel in wanted[len(mine) :]:
                self.remove(group, channel)

    def neighbours(self, group: ChannelGroup) -> list[ChannelGroup]:
        """The groups whose savings change with the group's width, itself included."""
        if group.name not in self._neighbours:
            self._neighbours[group.name] = self._find_neighbours(group)
        return self._neighbours[group.name]

    def _find_neighbours(self, group: ChannelGroup) -> list[ChannelGroup]:
        mine = [set(rows.tolist()) for rows in self._touched[group.name]]
        return [
            other
            for other in self.groups
            if any(
                not own.isdisjoint(rows.tolist())
                for own, rows in zip(mine, self._touched[other.name], strict=True)
            )
        ]

    def _spares(self, channel: int) -> bool:
        axes, taken = self._column(channel)
        return bool((self.lengths[axes] > taken).all())


class _TermTable:
    """The terms of one measure as arrays."""

    def __init__(self, terms: Sequence[tuple[float, tuple[int, ...]]], axes: int) -> None:
        width = max((len(a) for _, a in terms), default=0)
        self.factors = np.array([f for f, _ in terms])
        self.axes = np.full((len(terms), width), axes)
        for row, (_, a) in enumerate(terms):
            self.axes[row, : len(a)] = a

    def total(self, lengths: Array, rows: npt.NDArray[np.int64] | None = None) -> float:
        padded = np.append(lengths, 1.0)
        axes = self.axes if rows is None else self.axes[rows]
        products = self.factors.copy() if rows is None else self.factors[rows]
        for column in axes.T:
            products *= padded[column]
        return float(products.sum())

    def touching(self, axes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.flatnonzero(np.isin(self.axes, axes).any(axis=1))


def allocate(
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, ErrorCurve],
    model: CostModel,
    budget: Budget,
    *,
    full: Array,
    allocation: str = "global",
    min_channels: int = 1,
) -> Mask:
    """Chooses the channels that stay.

    Args:
        groups: The groups that may shrink.
        curves: Their error curves by name.
        model: What the model costs.
        budget: What it may cost.
        full: What fractions of the budget refer to, `(measures,)`.
        allocation: `"global"`: channels leave where the loss rises least for what is saved, then
            widths that still fit are given back; `"layerwise"`: every group keeps the same share
            p, `N_new = max(floor(p · N), 1)`, the largest that meets the budget.
        min_channels: No group gets narrower than this.

    Returns:
        Which channels of the model stay, `(channels,)`.

    Raises:
        ValueError: The budget cannot be met, or `allocation` is unknown.
    """
    widths = _Widths(model, groups, curves, min_channels, np.ones(model.widths.shape[1], bool))
    targets = budget.targets(full)
    if allocation == "global":
        _globally(widths, targets, full)
    elif allocation == "layerwise":
        _layerwise(widths, targets)
    else:
        raise ValueError(
            f"allocation must be 'global' or 'layerwise'. Received: allocation={allocation!r}"
        )
    cost = widths.cost()
    if (cost > targets * (1 + 1e-9)).any():
        share = ", ".join(
            f"{cost[i] / full[i]:.3g} of its {name}"
            for i, name in enumerate(MEASURES)
            if cost[i] > targets[i]
        )
        absolute = [f"{n}={limit}" for n, limit in budget.limits().items() if limit > 1]
        raise ValueError(
            f"{budget} cannot be met: with {min_channels} "
            f"{'channel' if min_channels == 1 else 'channels'} per group the model still needs "
            f"{share}. Raise the budget, lower min_channels or let more layers shrink."
            + (f" A limit above 1 is absolute ({', '.join(absolute)})." if absolute else "")
        )
    return widths.kept


def _globally(widths: _Widths, targets: Array, full: Array) -> None:
    slopes = {g.name: hull_slopes(widths.curves[g.name].errors) for g in widths.groups}
    _remove_cheapest(widths, targets, full, slopes)
    _give_back(widths, targets)
    _exchange(widths, targets, full, slopes)


def _remove_cheapest(
    widths: _Widths,
    targets: Array,
    full: Array,
    slopes: Mapping[str, Array],
    spared: str | None = None,
) -> None:
    """Removes channels where the loss rises least for what is saved, until the targets are met."""
    groups = [group for group in widths.groups if group.name != spared]
    by_name = {group.name: group for group in groups}
    rates: dict[str, tuple[float, int]] = {}

    def rate(group: ChannelGroup, unmet: Mask) -> None:
        channel = widths.next_channel(group)
        rates.pop(group.name, None)
        if channel is None:
            return
        saved = float((widths.saving(group, channel) / full)[unmet].sum())
        if saved > 0:
            slope = slopes[group.name][len(widths.removed[group.name])]
            rates[group.name] = (slope / saved, channel)

    unmet = widths.cost() > targets
    for group in groups:
        rate(group, unmet)
    while unmet.any() and rates:
        name = min(rates, key=lambda key: rates[key][0])
        widths.remove(by_name[name], rates[name][1])
        now = widths.cost() > targets
        stale = groups
        if (now == unmet).all():
            stale = [g for g in widths.neighbours(by_name[name]) if g.name != spared]
        for group in stale:
            rate(group, now)
        unmet = now


def _exchange(
    widths: _Widths, targets: Array, full: Array, slopes: Mapping[str, Array], tries: int = 100
) -> None:
    """Brings a channel of one group back and pays for it in the others, while the loss falls.

    Groups whose last channel cost the most are tried first, `tries` exchanges in all.
    """
    if (widths.cost() > targets).any():
        return
    while True:
        current = widths.error()
        before = {name: list(done) for name, done in widths.removed.items()}
        for group in sorted(widths.groups, key=widths.last_gain, reverse=True):
            if not before[group.name] or not tries:
                continue
            tries -= 1
            widths.restore(group)
            _remove_cheapest(widths, targets, full, slopes, spared=group.name)
            _give_back(widths, targets)
            if (widths.cost() <= targets).all() and widths.error() < current * (1 - 1e-9):
                break
            widths.set_removed(before)
        else:
            return


def _give_back(widths: _Widths, targets: Array) -> None:
    """Brings channels back that still fit, those first whose removal cost the most."""
    if (widths.cost() > targets).any():
        return
    found = True
    while found:
        found = False
        for group in sorted(widths.groups, key=widths.last_gain, reverse=True):
            if not widths.removed[group.name]:
                continue
            channel = widths.removed[group.name][-1]
            widths.restore(group)
            if (widths.cost() <= targets).all():
                found = True
                break
            widths.remove(group, channel)


def _layerwise(widths: _Widths, targets: Array) -> None:
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        _set_share(widths, middle)
        if (widths.cost() <= targets).all():
            low = middle
        else:
            high = middle
    _set_share(widths, 1.0)
    if (widths.cost() > targets).any():
        _set_share(widths, low)


def _set_share(widths: _Widths, share: float) -> None:
    for group in widths.groups:
        while widths.removed[group.name]:
            widths.restore(group)
    for group in widths.groups:
        wanted = max(int(share * group.size + 1e-9), widths.min_channels)
        while group.size - len(widths.removed[group.name]) > wanted:
            channel = widths.next_channel(group)
            if channel is None:
                break
            widths.remove(group, channel)


def hull_slopes(errors: Array) -> Array:
    """Slopes of the lower convex hull of an error curve.

    Args:
        errors: Expected loss with 0, 1, … channels removed, `(n + 1,)`.

    Returns:
        For each step the hull's slope, never falling, `(n,)`.
    """
    hull = [0]
    for i in range(1, len(errors)):
        while len(hull) > 1 and (errors[hull[-1]] - errors[hull[-2]]) * (i - hull[-1]) >= (
            errors[i] - errors[hull[-1]]
        ) * (hull[-1] - hull[-2]):
            hull.pop()
        hull.append(i)
    slopes = np.empty(len(errors) - 1)
    for start, stop in zip(hull, hull[1:], strict=False):
        slopes[start:stop] = (errors[stop] - errors[start]) / (stop - start)
    return slopes
