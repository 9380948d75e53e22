"""Which rounds are kept and how far the next one goes: numbers only, no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sgdap.planning.plan import Plan

Decision = Literal["pending", "kept", "undone"]

SMALLEST_STEP = 1e-3
"""Rounds that would lead less far on the way to the budget are not worth one."""


@dataclass(frozen=True)
class Round:
    """One round of pruning and what came of it.

    Attributes:
        epoch: The epoch (from 0) after which the layers shrank.
        progress: How far on the way to the budget it aimed, from 0 to 1.
        params: Parameters before and after.
        flops: FLOPs for one sample before and after.
        widths: Channels of each group after.
        before: The monitored metric of the model that the round started from.
        after: The monitored metric when it was decided, None while it is not.
        decision: `"pending"`, `"kept"` or `"undone"`.
        held: Groups that got no narrower than in the round that was undone before, so that the
            others, which had cost the most, got channels back.
    """

    epoch: int
    progress: float
    params: tuple[int, int]
    flops: tuple[int, int]
    widths: Mapping[str, int]
    before: float | None
    after: float | None = None
    decision: Decision = "pending"
    held: tuple[str, ...] = ()


@dataclass
class Guard:
    """Judges rounds by the monitored metric.

    Attributes:
        drop: The most that the metric may be worse than before the first round; None: every round
            is kept.
        patience: Epochs that a round has to recover.
        step: How far the next round may go at most; a round that is undone halves it.
        sign: 1 where more of the metric is better, -1 where less is.
        baseline: The metric before the first round.
        best: The best metric within the present widths.
        progress: How far on the way to the budget the last round led that was kept.
        waited: Epochs in which the last round was not good enough.
        widths: Widths that groups have in the next round whatever it aims at, by name.
    """

    drop: float | None
    patience: int = 2
    step: float = 1.0
    sign: float = 1.0
    baseline: float | None = None
    best: float | None = None
    progress: float = 0.0
    waited: int = 0
    widths: dict[str, int] = field(default_factory=dict)

    def begin(self) -> float | None:
        """A round begins, from the best model of the present widths, whose metric is returned."""
        before = self.best
        if self.baseline is None:
            self.baseline = before
        self.best = None
        self.waited = 0
        return before

    def improves(self, value: float | None) -> bool:
        """Whether a value is better than the best within the present widths."""
        if value is None or not math.isfinite(value):
            return False
        return self.best is None or self.sign * (value - self.best) > 0

    def remember(self, value: float | None) -> None:
        """Takes a value for the best within the present widths."""
        self.best = value

    def allowed(self, wanted: float) -> float | None:
        """How far the next round goes where a schedule wants it to go somewhere.

        Args:
            wanted: How far on the way to the budget, from 0 to 1.

        Returns:
            How far, no further than one step; None where that is not worth a round.
        """
        far = min(wanted, 1.0, self.progress + self.step)
        return far if far > self.progress + SMALLEST_STEP else None

    def good_enough(self, value: float | None) -> bool:
        """Whether a value is not worse than the one before the first round by more than allowed."""
        if self.drop is None:
            return True
        if value is None or self.baseline is None or not math.isfinite(value):
            return False
        return self.sign * (value - self.baseline) >= -self.drop - 1e-12

    def judge(self, value: float | None, *, retry: bool) -> Decision:
        """Decides about the last round after another epoch, which counts towards the patience.

        Args:
            value: The epoch's metric, None where it had none.
            retry: Whether another round could be tried in its place; where not, it may recover to
                the end.
        """
        if self.good_enough(value):
            return "kept"
        if value is None:
            return "pending"
        self.waited += 1
        return "undone" if retry and self.waited >= max(self.patience, 1) else "pending"

    def keep(self, last: Round) -> None:
        """The last round is kept."""
        self.progress = last.progress
        self.widths = {}

    def undo(self, last: Round, costly: Sequence[str]) -> None:
        """The last round is undone, and the next one goes half as far.

        In it all groups keep the widths of the failed round but those that cost the most: what
        the smaller step leaves over comes back to them.

        Args:
            last: The round.
            costly: Those groups.
        """
        self.step = (last.progress - self.progress) / 2
        self.best = last.before
        self.waited = 0
        self.widths = {name: w for name, w in last.widths.items() if name not in costly}


def costliest_groups(plan: Plan) -> tuple[str, ...]:
    """The groups that make up half of a plan's expected loss, the costliest first."""
    shrunk = sorted(
        (g for g in plan.groups if len(g.kept) < g.size), key=lambda g: g.error, reverse=True
    )
    half = sum(g.error for g in shrunk) / 2
    found: list[str] = []
    for group in shrunk:
        if half <= 0:
            break
        found.append(group.name)
        half -= group.error
    return tuple(found)
