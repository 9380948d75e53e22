"""Which groups may shrink, to which widths, and a search's state; never decides what leaves."""

from __future__ import annotations

import bisect
import fnmatch
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sgdap._arguments import choices_for
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.cost import CostModel

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Step = tuple[int, ...]
"""Channels that are removed together, by their number in the model."""


@dataclass(frozen=True)
class WidthRules:
    """The widths that groups may have.

    Attributes:
        min_channels: The least number of channels of every group.
        round_to: Groups that shrink keep a multiple of this many channels. `"auto"`: of 8 from 16
            channels on, of 4 from 8 on.
        fixed: The widths of groups whose width the user set, by name.
    """

    min_channels: int = 1
    round_to: int | str = 1
    fixed: Mapping[str, int] = field(default_factory=dict)

    def allowed(self, group: ChannelGroup) -> tuple[int, ...]:
        """The widths that a group may have, widest first."""
        if group.name in self.fixed:
            return (min(self.fixed[group.name], group.size),)
        return (group.size, *_narrower(group.size, self.min_channels, self.round_to))

    def chosen(
        self, groups: Sequence[ChannelGroup], curves: Mapping[str, ErrorCurve]
    ) -> WidthRules:
        """The rules with the widths fixed that the criterion wants, where the user has set none.

        Args:
            groups: The groups that may shrink.
            curves: Their error curves by name; `wanted` says how many channels leave.
        """
        fixed = dict(self.fixed)
        for group in groups:
            least = group.size - (curves[group.name].wanted or 0)
            widths = (group.size, *_asked_for(group.size, self.min_channels, self.round_to))
            fixed.setdefault(group.name, min(w for w in widths if w >= least))
        return replace(self, fixed=fixed)


def width_rules(
    groups: Sequence[ChannelGroup],
    min_channels: int = 1,
    round_to: int | str = 1,
    overrides: Mapping[str, float] | None = None,
) -> WidthRules:
    """Makes the rules for widths from the user's options.

    Args:
        groups: The groups that may shrink.
        min_channels: The least number of channels of every group.
        round_to: Groups that shrink keep a multiple of this many channels, or `"auto"`.
        overrides: A dict from layer names or patterns (`"conv*"`) to the share of channels that
            their groups keep. The first matching entry holds.

    Raises:
        ValueError: A name matches no layer whose channels may be removed.
    """
    fixed: dict[str, int] = {}
    for pattern, share in (overrides or {}).items():
        fitting = _called(pattern, groups)
        if not fitting:
            raise ValueError(
                f"No layer whose channels may leave is called '{pattern}', as overrides says. "
                f"{choices_for(pattern, _producers(groups))}"
            )
        for group in fitting:
            widths = (group.size, *_asked_for(group.size, min_channels, round_to))
            nearest = min(widths, key=lambda width: abs(width - share * group.size))  # noqa: B023
            fixed.setdefault(group.name, nearest)
    return WidthRules(min_channels, round_to, fixed)


def prunable_groups(
    graph: ChannelGraph, layers: Sequence[str] | None = None, *, depth: bool = False
) -> list[ChannelGroup]:
    """The groups that may shrink.

    Args:
        graph: The model's channels.
        layers: Names or patterns of the layers whose channels may be removed; None: all.
        depth: Whether a share of the units leaves in any case, so that there may be no group.

    Raises:
        ValueError: A name matches no layer, or no group can shrink.
    """
    prunable = [group for group in graph.groups if group.prunable]
    if layers is not None:
        chosen: set[str] = set()
        for pattern in layers:
            fitting = _called(pattern, graph.groups)
            if not fitting:
                raise ValueError(
                    f"No layer that makes channels is called '{pattern}'. "
                    f"{choices_for(pattern, _producers(graph.groups))}"
                )
            chosen.update(group.name for group in fitting)
        prunable = [group for group in prunable if group.name in chosen]
    if not prunable and not depth:
        why = [(g.name, ", ".join(g.reasons) or "not among layers") for g in graph.groups]
        reasons = "; ".join(f"'{name}': {reason}" for name, reason in [*why, *graph.kept][:5])
        raise ValueError(
            f"No channel of model '{graph.program.model.name}' can be removed. "
            + (
                f"{reasons}. sgdap.inspect(model) shows all of them."
                if reasons
                else "It has no layer that makes channels."
            )
        )
    return prunable


def _called(pattern: str, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups with a producer that a pattern means."""
    fitting = {*paths_called(pattern, _producers(groups))}
    return [group for group in groups if not fitting.isdisjoint(group.producers)]


def paths_called(pattern: str, paths: Sequence[str]) -> list[str]:
    """The paths that a name or pattern means.

    Those that match it; if none does, those of which the end does, so that `"block5*"` finds
    `"backbone/block5a_conv"`; else those that stand in a layer or model that it means: `"both"`
    finds `"both/forward_lstm"` and `"both/backward_lstm"`, `"rnn"` the cells `"rnn:0"`, `"rnn:1"`.
    """
    for names in (lambda path: [path], _ends, _ends_of_holders):
        fitting = [
            path
            for path in paths
            if any(own == pattern or fnmatch.fnmatchcase(own, pattern) for own in names(path))
        ]
        if fitting:
            return fitting
    return []


def _ends(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _ends_of_holders(path: str) -> list[str]:
    """The ends of the paths of all layers and models in which a layer stands."""
    places = [i for i, letter in enumerate(path) if letter in "/:"]
    return [end for place in places for end in _ends(path[:place])]


def _producers(groups: Sequence[ChannelGroup]) -> list[str]:
    return [path for group in groups for path in group.producers]


def _narrower(size: int, least: int, round_to: int | str) -> list[int]:
    return [w for w in range(size - 1, least - 1, -1) if w % _multiple(w, round_to) == 0]


def _asked_for(size: int, least: int, round_to: int | str) -> list[int]:
    """Narrower widths for what asks for a width itself: only a number rounds that."""
    return _narrower(size, least, 1 if isinstance(round_to, str) else round_to)


def _multiple(width: int, round_to: int | str) -> int:
    """What a width must be a multiple of."""
    if not isinstance(round_to, str):
        return round_to
    return next((multiple for multiple in (8, 4) if width >= 2 * multiple), 1)


@dataclass(eq=False)
class WidthSearch:
    """The state of a search for widths: the channels kept so far, and what the model then costs.

    A step is a tuple of channels that leave a group together.

    Attributes:
        model: The cost of the model for any widths.
        groups: The groups that may shrink.
        curves: The error curve of each group, by name.
        rules: The widths that the groups may have.
        kept: A mask of the model's channels, True for those still kept, `(channels,)`.
        lengths: The current length of every axis of the cost model.
        removed: The steps removed from each group, in order, by name.
    """

    model: CostModel
    groups: Sequence[ChannelGroup]
    curves: Mapping[str, ErrorCurve]
    rules: WidthRules
    kept: Mask
    lengths: Array = field(init=False)
    removed: dict[str, list[Step]] = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = self.model.lengths(self.kept)
        self.removed = {group.name: [] for group in self.groups}
        self._gone = dict.fromkeys(self.removed, 0)
        self.allowed = {group.name: self.rules.allowed(group) for group in self.groups}
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
        """The current cost of the model, `(measures,)`."""
        return np.array([table.total(self.lengths) for table in self._terms])

    def width(self, group: ChannelGroup) -> int:
        """The number of channels that the group still has."""
        return group.size - self._gone[group.name]

    def next_step(self, group: ChannelGroup) -> Step | None:
        """The step to the group's next narrower width; None: it can't get any narrower."""
        widths = self.allowed[group.name]
        place = bisect.bisect_right(widths, -self.width(group), key=operator.neg)
        return self.step_to(group, widths[place]) if place < len(widths) else None

    def step_to(self, group: ChannelGroup, width: int) -> Step | None:
        """The step that brings the group to a width; None: it would leave some axis empty."""
        wanted = self.width(group) - width
        done = self.removed[group.name]
        start = self._places[group.name][done[-1][-1]] + 1 if done else 0
        lengths = self.lengths if wanted == 1 else self.lengths.copy()
        step: list[int] = []
        for channel in self._orders[group.name][start:]:
            axes, taken = self._column(channel)
            if (lengths[axes] > taken).all():
                step.append(channel)
                if len(step) == wanted:
                    return tuple(step)
                lengths[axes] -= taken
        return None

    def saving(self, group: ChannelGroup, step: Step) -> Array:
        """How much of each measure a step saves, `(measures,)`."""
        after = self.lengths.copy()
        for channel in step:
            axes, taken = self._column(channel)
            after[axes] -= taken
        return np.array(
            [
                table.total(self.lengths, rows) - table.total(after, rows)
                for table, rows in zip(self._terms, self._touched[group.name], strict=True)
            ]
        )

    def remove(self, group: ChannelGroup, step: Step) -> None:
        """Removes the channels of a step from a group."""
        self.removed[group.name].append(step)
        self._gone[group.name] += len(step)
        for channel in step:
            self.kept[channel] = False
            axes, taken = self._column(channel)
            self.lengths[axes] -= taken

    def restore(self, group: ChannelGroup) -> Step:
        """Undoes the group's last step and returns it."""
        step = self.removed[group.name].pop()
        self._gone[group.name] -= len(step)
        for channel in step:
            self.kept[channel] = True
            axes, taken = self._column(channel)
            self.lengths[axes] += taken
        return step

    def _column(self, channel: int) -> tuple[npt.NDArray[np.int32], Array]:
        """The axes of the cost model that hold a channel, and how many of their entries it has."""
        start, stop = self._matrix.indptr[channel : channel + 2]
        return self._matrix.indices[start:stop], self._matrix.data[start:stop]

    def error(self) -> float:
        """The expected rise of the loss from all removed channels together."""
        return float(sum(self.curves[n].errors[gone] for n, gone in self._gone.items()))

    def last_gain(self, group: ChannelGroup) -> float:
        """The expected rise of the loss from the group's last step, 0 without one."""
        if not self.removed[group.name]:
            return 0.0
        gone, errors = self._gone[group.name], self.curves[group.name].errors
        return float(errors[gone] - errors[gone - len(self.removed[group.name][-1])])

    def set_removed(self, removed: Mapping[str, list[Step]]) -> None:
        """Restores and removes steps until exactly the given ones are removed.

        Args:
            removed: The steps of each group, in order, by name.
        """
        for group in self.groups:
            mine, wanted = self.removed[group.name], removed[group.name]
            while mine[: len(wanted)] != wanted[: len(mine)] or len(mine) > len(wanted):
                self.restore(group)
            for step in wanted[len(mine) :]:
                self.remove(group, step)

    def neighbours(self, group: ChannelGroup) -> list[ChannelGroup]:
        """The groups whose savings depend on this group's width, itself included."""
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


class _TermTable:
    """The terms of one measure's cost, stored as arrays so that their sum is fast."""

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
