"""Decides which rounds are kept and how far the next one goes; holds numbers, knows no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sgdap.planning.plan import Plan

Decision = Literal["pending", "kept", "undone"]

SMALLEST_STEP = 1e-3
"""The least progress towards the budget that is worth a round."""


@dataclass(frozen=True)
class _When:
    """The moment of a round."""

    epoch: int

    @property
    def when(self) -> str:
        """When the model shrank, in words, with epochs counted from 1 as Keras shows them."""
        return f"after epoch {self.epoch + 1}" if self.epoch >= 0 else "before epoch 1"


@dataclass(frozen=True)
class Round(_When):
    """One round of pruning and its result.

    Attributes:
        epoch: The epoch (from 0) after which the layers shrank; -1: before the first one.
        progress: How far on the way to the budget the round aimed, from 0 to 1.
        params: Parameters before and after.
        flops: FLOPs for one sample before and after.
        widths: The number of channels of each group after the round.
        before: The monitored metric of the model that the round started from.
        after: The monitored metric when the round was judged; None until then.
        decision: `"pending"`, `"kept"` or `"undone"`.
        held: The groups whose widths were fixed to those of the undone round before it. The
            other groups, which had cost the most, got channels back.
        bypassed: The names of the units that left as a whole in this round.
    """

    progress: float
    params: tuple[int, int]
    flops: tuple[int, int]
    widths: Mapping[str, int]
    before: float | None
    after: float | None = None
    decision: Decision = "pending"
    held: tuple[str, ...] = ()
    bypassed: tuple[str, ...] = ()


@dataclass(frozen=True)
class SparsityRound(_When):
    """One round in which single weights were set to zero, and its result.

    Attributes:
        epoch: The epoch (from 0) after which the masks grew; -1: before the first one.
        progress: How far on the way to the wanted sparsity the round aimed, from 0 to 1.
        sparsity: The share of zeros in the chosen weights before and after.
        widths: The number of weights that are left in each chosen variable, by its path
            in masks.
        before: The monitored metric of the model that the round started from.
        after: The monitored metric when the round was judged; None until then.
        decision: `"pending"`, `"kept"` or `"undone"`.
    """

    progress: float
    sparsity: tuple[float, float]
    widths: Mapping[str, int]
    before: float | None
    after: float | None = None
    decision: Decision = "pending"


@dataclass(frozen=True)
class QuantizationRound(_When):
    """The round in which kernels were put on their lattices, and its result.

    Attributes:
        epoch: The epoch (from 0) after which quantization began; -1: before the first one.
        progress: How far on the way to few bits the round went: 1.
        widths: The bits of each kernel, by its path.
        before: The monitored metric of the model that the round started from.
        after: The monitored metric when the round was judged; None until then.
        decision: `"pending"`, `"kept"` or `"undone"`.
    """

    progress: float
    widths: Mapping[str, int]
    before: float | None
    after: float | None = None
    decision: Decision = "pending"


AnyRound = Round | SparsityRound | QuantizationRound


@dataclass
class Guard:
    """Judges rounds by the monitored metric.

    Attributes:
        drop: The most that the metric may be worse than the baseline; None: every round is kept.
        patience: The number of epochs that a round has to recover. None: half of those that are
            left after it, all if these are fewer than four.
        step: The most progress that the next round may make. A round that is undone halves it.
        sign: 1 if a higher metric is better, -1 if a lower one is.
        baseline: The value of the metric that rounds are compared with; None before the first.
        brought: The metric of the model before it was trained; None: it was not measured.
        best: The best metric with the present widths.
        progress: How far on the way to the budget the last kept round led, from 0 to 1.
        waited: The number of epochs in which the last round was not good enough.
        left: The number of epochs after the last round that have the metric.
        widths: Fixed widths of groups in the next round, by name.
    """

    drop: float | None
    patience: int | None = None
    step: float = 1.0
    sign: float = 1.0
    baseline: float | None = None
    brought: float | None = None
    best: float | None = None
    progress: float = 0.0
    waited: int = 0
    left: int = 0
    widths: dict[str, int] = field(default_factory=dict)

    def begin(self, left: int) -> float | None:
        """Begins a round and returns the best metric before it.

        Args:
            left: The number of epochs after the round that have the metric.
        """
        before = self.best
        if self.baseline is None:  # of the two values the one that allows less
            self.baseline = self.brought if self.improves(self.brought) else before
        self.best = None
        self.waited = 0
        self.left = left
        return before

    def improves(self, value: float | None) -> bool:
        """Whether a value is better than the best one with the present widths."""
        if value is None or not math.isfinite(value):
            return False
        return self.best is None or self.sign * (value - self.best) > 0

    def remember(self, value: float | None) -> None:
        """Stores a value as the best one with the present widths."""
        self.best = value

    def allowed(self, wanted: float) -> float | None:
        """Limits the progress that a schedule wants from the next round.

        Args:
            wanted: How far on the way to the budget the schedule wants to go, from 0 to 1.

        Returns:
            How far the round goes, at most one `step`; None if that is not worth a round.
        """
        far = min(wanted, 1.0, self.progress + self.step)
        return far if far > self.progress + SMALLEST_STEP else None

    def good_enough(self, value: float | None) -> bool:
        """Whether a value is at most `drop` worse than the baseline."""
        if self.drop is None:
            return True
        if value is None or self.baseline is None or not math.isfinite(value):
            return False
        return self.sign * (value - self.baseline) >= -self.drop - 1e-12

    def judge(self, value: float | None, *, retry: bool) -> Decision:
        """Judges the last round after another epoch, which counts towards the patience.

        Args:
            value: The epoch's metric; None if it had none.
            retry: Whether another round could still replace it. If not, it may recover until the
                end.
        """
        if self.good_enough(value):
            return "kept"
        if value is None:
            return "pending"
        self.waited += 1
        patience = self.patience
        if patience is None:
            patience = self.left // 2 if self.left >= 4 else self.left
        return "undone" if retry and self.waited >= max(patience, 1) else "pending"

    def keep(self, last: AnyRound) -> None:
        """Keeps the last round."""
        self.progress = last.progress
        self.widths = {}

    def undo(self, last: AnyRound, costly: Sequence[str]) -> None:
        """Undoes the last round, so that the next one goes half as far.

        In the next round all groups have the widths of the undone one, except those that cost the
        most. These get the channels that the smaller step need not remove.

        Args:
            last: The round to undo.
            costly: The names of the groups that cost the most.
        """
        self.step = (last.progress - self.progress) / 2
        self.best = last.before
        self.waited = 0
        self.widths = {name: w for name, w in last.widths.items() if name not in costly}


def costliest_groups(plan: Plan) -> tuple[str, ...]:
    """The groups that make up half of a plan's expected loss, the costliest first.

    Where no loss is known, as of a plan without data, all that lost channels.
    """
    errors = {g.name: g.error or 0.0 for g in plan.groups if len(g.kept) < g.size}
    half = sum(errors.values()) / 2
    if not half:
        return tuple(errors)
    found: list[str] = []
    for name in sorted(errors, key=errors.__getitem__, reverse=True):
        if half <= 0:
            break
        found.append(name)
        half -= errors[name]
    return tuple(found)
