"""What a run aims at, and what its model may cost on the way there."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sgdap.pipeline import Curves, Scope
from sgdap.planning.allocation import check_budget_can_be_met, flat_curves, narrowest
from sgdap.planning.budget import Budget
from sgdap.planning.cost import MEASURES, cost_model
from sgdap.training.latency import TooSlowError, flops_within_latency, slim_latency
from sgdap.training.schedule import Adaptive, Schedule, StepSchedule

Array = npt.NDArray[np.float64]
_FLOPS = MEASURES.index("flops")


@dataclass(frozen=True, eq=False)
class Goal:
    """The budget of a run and the way to it.

    Attributes:
        final: What the model may cost in the end.
        way: How that is approached.
        full: What the whole model costs, in the order of `sgdap.planning.cost.MEASURES`.
        shares: What of it the budget allows in the end, from 0 to 1; of the FLOPs also what the
            latency allows, as far as it was measured.
        seconds: What a batch may take in the end, infinite without such a limit.
        open: Whether the user gave no budget, so the model gets as small as it can.
        fixed: Whether the way is the user's own, so it must lead to the end in a run's epochs.
    """

    final: Budget
    way: Schedule
    full: Array
    shares: Array
    seconds: float = math.inf
    open: bool = False
    fixed: bool = True

    @property
    def timed(self) -> bool:
        """Whether there is a limit of the latency."""
        return math.isfinite(self.seconds)

    @property
    def step(self) -> float:
        """How far the first round may go, from 0 to 1."""
        return self.way.step(float(self.shares.min()))

    def check(self, rounds: int) -> None:
        """Checks that the budget can be reached.

        Args:
            rounds: How many rounds there are epochs for.

        Raises:
            ValueError: The way does not lead to its end in so few rounds.
        """
        if self.fixed:
            self.way.check(rounds, float(self.shares.min()))

    def target(self, progress: float) -> Budget:
        """What the model may cost on its way, in absolute numbers.

        Args:
            progress: How far it is to be on its way, from 0 to 1.
        """
        limits = {
            name: max(self.way.fraction(progress, float(share)) * full, 1.5)
            for name, share, full in zip(MEASURES, self.shares, self.full, strict=True)
            if share < 1
        }
        return Budget(**limits) if limits else Budget(flops=1.0)

    def measured(self, scope: Scope, curves: Curves, allocation: str) -> Goal:
        """The same goal with the FLOPs that a model of these curves may have for the latency.

        Slim copies of the model are run for that. Where even the narrowest one takes too long,
        the machine is busy: the FLOPs found before stay, and a warning says so.

        Args:
            scope: The model as it is now.
            curves: The error curves of its groups by name.
            allocation: `"global"` or `"layerwise"`.
        """
        if not self.timed:
            return self
        try:
            return _timed(self, scope, curves, allocation)
        except TooSlowError as error:  # it could be met at the start
            warnings.warn(f"Going by the latency measured before. {error}", stacklevel=2)
            return self

    def missed(self, costs: Array, progress: float) -> list[str]:
        """What a model costs that is above the budget, in words.

        Args:
            costs: What it costs, in the order of `sgdap.planning.cost.MEASURES`.
            progress: How far the rounds led that were kept.
        """
        if self.open:
            return []
        words = [
            f"{cost / full:.1%} of its {name}"
            for name, cost, full, target in zip(
                MEASURES, costs, self.full, self.final.targets(self.full), strict=True
            )
            if cost > target * (1 + 1e-9)
        ]
        if self.timed and progress < 1 - 1e-9:
            words.append("more time than allowed")
        return words


def make_goal(
    budget: Budget | None, schedule: Schedule | StepSchedule, scope: Scope, rounds: int
) -> Goal:
    """Makes the goal of a run; a latency is measured for that.

    Args:
        budget: What the model may cost in the end; None with a schedule over steps: the share of
            FLOPs that it leaves; None without: as little as it can.
        schedule: How the budget is approached, or a schedule over steps.
        scope: What of the whole model may shrink.
        rounds: How many rounds there are epochs for.

    Raises:
        ValueError: The budget cannot be met, or not in so few rounds.
    """
    model = cost_model(scope.graph)
    everything = np.ones(scope.graph.count, bool)
    full = model.cost(model.lengths(everything))
    way = Schedule() if isinstance(schedule, StepSchedule) else schedule
    is_open = budget is None and way is schedule
    if is_open:
        way = way if isinstance(way, Adaptive) else Adaptive()
        least = model.cost(model.lengths(narrowest(scope.groups, model, scope.rules)))
        budget = Budget(flops=float((least / full)[_FLOPS]))
    elif isinstance(schedule, StepSchedule):
        budget = budget or Budget(flops=1 - schedule.final)
    assert budget is not None
    if not is_open:
        check_budget_can_be_met(scope.graph, scope.groups, budget, scope.rules)
    shares = np.minimum(budget.targets(full) / full, 1.0)
    goal = Goal(budget, way, full, shares, open=is_open, fixed=way is schedule and not is_open)
    if budget.latency is not None:
        whole = slim_latency(scope.graph, everything, budget.batch_size)
        goal = replace(goal, seconds=budget.latency_target(whole))
        goal = _timed(goal, scope, flat_curves(scope.groups), "layerwise")
    goal.check(rounds)
    return goal


def _timed(goal: Goal, scope: Scope, curves: Curves, allocation: str) -> Goal:
    """The goal with the share of FLOPs with which the model is as fast as asked."""
    model = cost_model(scope.graph)
    flops_now = model.cost(model.lengths(np.ones(scope.graph.count, bool)))[_FLOPS]
    share = goal.final.latency
    flops = flops_within_latency(
        scope.graph,
        scope.groups,
        curves,
        scope.rules,
        allocation,
        goal.final,
        goal.seconds,
        # A share of the whole model's own time, which differs from one measurement to another.
        shrink=isinstance(share, (int, float)) and share < 1 and flops_now >= goal.full[_FLOPS],
    )
    counted = goal.final.targets(goal.full)[_FLOPS]
    shares = goal.shares.copy()
    shares[_FLOPS] = min(min(flops, counted) / goal.full[_FLOPS], 1.0)
    return replace(goal, shares=shares)
