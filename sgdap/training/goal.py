"""What a run aims at, and what its model may cost on the way there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.guidance.elimination import ErrorCurve
from sgdap.pipeline import check_budget_can_be_met
from sgdap.planning.allocation import narrowest
from sgdap.planning.budget import Budget
from sgdap.planning.cost import MEASURES, cost_model
from sgdap.planning.widths import WidthRules
from sgdap.training.latency import TooSlowError, flops_within_latency, slim_latency
from sgdap.training.schedule import Adaptive, Schedule, StepSchedule

_FLOPS = MEASURES.index("flops")


class Goal:
    """The budget of a run and the way to it.

    Args:
        budget: What the model may cost in the end; None with a schedule over steps: the share of
            FLOPs that it leaves; None without: as little as it can.
        schedule: How the budget is approached, or a schedule over steps.
        graph: The whole model's channels.
        groups: The groups that may shrink.
        rules: Which widths they may have.
        allocation: `"global"` or `"layerwise"`.
        rounds: How many rounds there are epochs for.

    Attributes:
        final: The budget.
        way: How it is approached.
        step: How far the first round may go, from 0 to 1.
        seconds: What a batch may take in the end, infinite without such a limit.

    Raises:
        ValueError: The budget cannot be met, or not in so few rounds.
    """

    def __init__(
        self,
        budget: Budget | None,
        schedule: Schedule | StepSchedule,
        graph: ChannelGraph,
        groups: Sequence[ChannelGroup],
        rules: WidthRules,
        allocation: str,
        rounds: int,
    ) -> None:
        model = cost_model(graph)
        self._rules = rules
        self._allocation = allocation
        self._full = model.cost(model.lengths(np.ones(graph.count, bool)))
        self._open = budget is None and isinstance(schedule, Schedule)
        self.seconds = np.inf
        if self._open:
            least = model.cost(model.lengths(narrowest(groups, model, rules)))
            budget = Budget(flops=float((least / self._full)[_FLOPS]))
        elif budget is None and isinstance(schedule, StepSchedule):
            budget = Budget(flops=1 - schedule.final)
        assert budget is not None
        self.final = budget
        if not self._open:
            check_budget_can_be_met(graph, groups, budget, rules)
        self._shares = np.minimum(budget.targets(self._full) / self._full, 1.0)
        if budget.latency is not None:
            everything = np.ones(graph.count, bool)
            self.seconds = budget.latency_target(slim_latency(graph, everything, budget.batch_size))
            curves = {g.name: _flat(g) for g in groups}
            self._measure(graph, groups, curves, "layerwise")
        if isinstance(schedule, StepSchedule):
            self.way = Schedule()
        elif self._open:
            self.way = schedule if isinstance(schedule, Adaptive) else Adaptive()
        else:
            self.way = schedule
        self._checked = self.way is schedule and not self._open
        self.check(rounds)
        self.step = self.way.step(float(self._shares.min()))

    def check(self, rounds: int) -> None:
        """Says whether the budget can be reached.

        Args:
            rounds: How many rounds there are epochs for.

        Raises:
            ValueError: It can't.
        """
        if self._checked:
            self.way.check(rounds, float(self._shares.min()))

    def target(
        self,
        progress: float,
        graph: ChannelGraph,
        groups: Sequence[ChannelGroup],
        curves: Mapping[str, ErrorCurve],
    ) -> Budget:
        """What the model may cost now, in absolute numbers.

        Args:
            progress: How far it is to be on its way, from 0 to 1.
            graph: Its channels now.
            groups: The groups that may shrink.
            curves: Their error curves by name.
        """
        if np.isfinite(self.seconds):
            try:
                self._measure(graph, groups, curves, self._allocation)
            except TooSlowError as error:  # it could be met at the start: the machine is busy now
                warnings.warn(f"Going by the latency measured before. {error}", stacklevel=2)
        limits = {
            name: max(self.way.fraction(progress, float(share)) * full, 1.5)
            for name, share, full in zip(MEASURES, self._shares, self._full, strict=True)
            if share < 1
        }
        return Budget(**limits) if limits else Budget(flops=1.0)

    def missed(self, costs: npt.NDArray[np.float64], progress: float) -> list[str]:
        """What a model costs that is above the budget, in words.

        Args:
            costs: What it costs, in the order of `sgdap.planning.cost.MEASURES`.
            progress: How far the rounds led that were kept.
        """
        if self._open:
            return []
        words = [
            f"{cost / full:.1%} of its {name}"
            for name, cost, full, target in zip(
                MEASURES, costs, self._full, self.final.targets(self._full), strict=True
            )
            if cost > target * (1 + 1e-9)
        ]
        if np.isfinite(self.seconds) and progress < 1 - 1e-9:
            words.append("more time than allowed")
        return words

    def _measure(
        self,
        graph: ChannelGraph,
        groups: Sequence[ChannelGroup],
        curves: Mapping[str, ErrorCurve],
        allocation: str,
    ) -> None:
        """Finds the share of FLOPs with which the model is as fast as asked."""
        model = cost_model(graph)
        flops_now = model.cost(model.lengths(np.ones(graph.count, bool)))[_FLOPS]
        share = self.final.latency
        flops = flops_within_latency(
            graph,
            groups,
            curves,
            self._rules,
            allocation,
            self.final,
            self.seconds,
            # A share of the whole model's own time, which differs from one measurement to another.
            shrink=isinstance(share, (int, float))
            and share < 1
            and flops_now >= self._full[_FLOPS],
        )
        counted = self.final.targets(self._full)[_FLOPS]
        self._shares[_FLOPS] = min(min(flops, counted) / self._full[_FLOPS], 1.0)


def _flat(group: ChannelGroup) -> ErrorCurve:
    order = np.flatnonzero(group.removable)
    return ErrorCurve(order, np.zeros(len(order) + 1))
