"""The goal of a run: its budget, and what the model may cost on the way; never prunes."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sgdap.execution.latency import NoisyClockError, Stopwatch
from sgdap.pipeline import Curves, can_be_met_without_units
from sgdap.planning.allocation import (
    UnmetBudgetError,
    check_budget_can_be_met,
    flat_curves,
    narrowest,
)
from sgdap.planning.budget import Budget
from sgdap.planning.cost import MEASURES, cost_model
from sgdap.planning.depth import Depth
from sgdap.planning.scope import Scope
from sgdap.training.latency import (
    Latency,
    TooSlowError,
    check_fast_enough,
    estimated_flops,
    flops_within_latency,
    slim_model,
)
from sgdap.training.schedule import Adaptive, OneShot, Schedule, StepSchedule

Array = npt.NDArray[np.float64]
_FLOPS = MEASURES.index("flops")

NEAR = 0.15
"""A latency limit that leaves a smaller share of what shrinking can save is warned of."""


@dataclass(frozen=True, eq=False)
class Goal:
    """The budget of a run and the schedule that leads to it.

    Attributes:
        final: The budget of the final model.
        schedule: The schedule by which the budget is approached.
        full: The cost of the whole model, in the order of `sgdap.planning.cost.MEASURES`.
        shares: The share of each measure that the final model may keep, from 0 to 1. For FLOPs it
            includes the latency limit, as far as that was measured.
        seconds: The seconds that the final model may take for a batch, infinite without a limit.
        latency: What slim copies took when they were last timed; None without a limit.
        open: Whether the user gave no budget, so that the model gets as small as it can.
        chosen: Whether the criterion chooses the widths, in the place of a budget.
        fixed: Whether the user chose the schedule, which must then reach its end within the run.
    """

    final: Budget
    schedule: Schedule
    full: Array
    shares: Array
    seconds: float = math.inf
    latency: Latency | None = None
    open: bool = False
    chosen: bool = False
    fixed: bool = True

    @property
    def timed(self) -> bool:
        """Whether the latency is limited."""
        return math.isfinite(self.seconds)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was timed, in a sentence; empty without a limit."""
        return () if self.latency is None else (self.latency.words(self.final, self.seconds),)

    @property
    def step(self) -> float:
        """How far the first round may go, from 0 to 1."""
        return self.schedule.step(float(self.shares.min()))

    def check(self, rounds: int) -> None:
        """Checks that the budget can be reached.

        Args:
            rounds: How many rounds there are epochs for.

        Raises:
            ValueError: The schedule does not reach its end in so few rounds.
        """
        if self.fixed:
            self.schedule.check(rounds, float(self.shares.min()))

    def target(self, progress: float) -> Budget:
        """What the model may cost on the way to the budget, in absolute numbers.

        Args:
            progress: How far on the way to the budget the model should be, from 0 to 1.
        """
        limits = {
            name: max(self.schedule.fraction(progress, float(share)) * full, 1.5)
            for name, share, full in zip(MEASURES, self.shares, self.full, strict=True)
            if share < 1
        }
        return Budget(**limits) if limits else Budget(flops=1.0)

    def stopwatch(self, scope: Scope) -> Stopwatch | None:
        """Times copies of a model against it as it is now; None without a limit of latency.

        Args:
            scope: The groups of the model.

        Raises:
            NoisyClockError: The times differ too much from run to run.
        """
        if not self.timed:
            return None
        graph, final = scope.graph, self.final
        return Stopwatch(graph.program.model, final.batch_size, final.runtime, graph.counted_shapes)

    def measured(
        self, scope: Scope, curves: Curves, allocation: str, watch: Stopwatch | None = None
    ) -> Goal:
        """The same goal, with a limit of FLOPs at which the model meets the latency limit.

        Slim copies of the model are timed to find it.

        Args:
            scope: The groups that may shrink, of the model as it is now.
            curves: The error curve of each group, by name.
            allocation: `"global"` or `"layerwise"`.
            watch: A stopwatch of the model; None: a new one.

        Raises:
            TooSlowError: Even the narrowest copy takes longer.
            NoisyClockError: The times differ too much from run to run.
        """
        if not self.timed:
            return self
        watch = watch or self.stopwatch(scope)
        assert watch is not None
        cost = cost_model(scope.graph)
        flops = cost.cost(cost.lengths(np.ones(scope.graph.count, bool)))[_FLOPS]
        goal = self
        if not isinstance(self.final.latency, str) and flops >= self.full[_FLOPS]:
            # A share of the whole model's time is of its time now: the machine's pace changes.
            goal = replace(self, seconds=self.final.latency_target(watch.seconds))
        return _timed(goal, scope, curves, allocation, watch)

    def without_units(
        self, scope: Scope, curves: Curves, allocation: str, watch: Stopwatch, *, roughly: bool
    ) -> Goal:
        """The same goal, with the limit of FLOPs of a model that some layers left.

        Args:
            scope: The groups of the shallower model that may shrink.
            curves: The error curve of each group, by name.
            allocation: `"global"` or `"layerwise"`.
            watch: A stopwatch of the model before.
            roughly: Whether an estimate will do.

        Raises:
            TooSlowError: Even the narrowest copy takes longer.
            NoisyClockError: The times differ too much from run to run.
        """
        graph, how = scope.graph, (scope.groups, curves, scope.rules, allocation)
        if not roughly:
            own = watch.seconds_of(graph.program.model, self.seconds)
            found = flops_within_latency(graph, *how, self.final, self.seconds, watch, own=own)
            return self.within(found.flops, found)
        near = float(self.shares[_FLOPS] * self.full[_FLOPS])
        flops = estimated_flops(graph, *how, self.final, self.seconds, watch, near)
        return self.within(flops, self.latency)

    def within(self, flops: float, found: Latency | None) -> Goal:
        """The goal with a limit of FLOPs beside its own."""
        counted = self.final.targets(self.full)[_FLOPS]
        shares = self.shares.copy()
        shares[_FLOPS] = min(min(flops, counted) / self.full[_FLOPS], 1.0)
        return replace(self, shares=shares, latency=found)

    def missed(self, costs: Array, progress: float) -> list[str]:
        """Describes the costs of a model that are above the budget, in words.

        Args:
            costs: The cost of the model, in the order of `sgdap.planning.cost.MEASURES`.
            progress: How far on the way to the budget the kept rounds led, from 0 to 1.
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


@dataclass(eq=False)
class GoalSpending:
    """What a model may cost in one round on the way to a goal.

    Attributes:
        goal: The goal, as it was measured last.
        allocation: `"global"` or `"layerwise"`.
        progress: How far on the way to the budget the model should be, from 0 to 1; in a run, a
            failed measurement is warned of, and the one before holds. None: the budget itself.
    """

    goal: Goal
    allocation: str
    progress: float | None = None
    _watch: Stopwatch | None = None

    @property
    def timed(self) -> bool:
        """Whether models were timed when `budget` was asked last."""
        return self._watch is not None

    def budget(self, scope: Scope, curves: Curves) -> Budget:
        """Returns what a model may cost whose layers all stay; models are timed for a latency.

        Args:
            scope: The groups that may shrink.
            curves: The error curve of each group, by name.

        Raises:
            TooSlowError: Even the narrowest copy takes longer.
            NoisyClockError: The times differ too much from run to run.
        """
        try:
            self._watch = self.goal.stopwatch(scope)
            self.goal = self.goal.measured(scope, curves, self.allocation, self._watch)
            if self.progress is None:
                _warn_if_near_the_floor(self.goal)
        except (TooSlowError, NoisyClockError) as error:
            if self.progress is None:
                raise
            warnings.warn(f"Going by the latency measured before. {error}", stacklevel=2)
            self.goal, self._watch = replace(self.goal, latency=None), None
        return self._target(self.goal)

    def without_units(self, scope: Scope, curves: Curves, *, roughly: bool) -> Budget:
        """Returns what the same model may cost without some units.

        Args:
            scope: The groups of the shallower model that may shrink.
            curves: The error curve of each group, by name.
            roughly: Whether an estimate will do.

        Raises:
            TooSlowError: Even the narrowest copy takes longer.
            NoisyClockError: The times differ too much from run to run.
        """
        assert self._watch is not None
        goal = self.goal.without_units(scope, curves, self.allocation, self._watch, roughly=roughly)
        self.goal = self.goal if roughly else goal
        return self._target(goal)

    def _target(self, goal: Goal) -> Budget:
        if self.progress is None and not goal.timed:
            return goal.final
        return goal.target(1.0 if self.progress is None else self.progress)


def make_goal(
    budget: Budget | None,
    schedule: Schedule | StepSchedule,
    scope: Scope,
    rounds: int,
    chosen: bool = False,
    depth: Depth = False,
    searched: bool = True,
) -> Goal:
    """Makes the goal of a run. If the budget limits the latency, models are timed.

    Args:
        budget: What the final model may cost. None: the share of FLOPs that a schedule over steps
            leaves; with another schedule, as little as possible.
        schedule: The schedule by which the budget is approached, or a schedule over steps.
        scope: The groups of the whole model that may shrink.
        rounds: How many rounds there are epochs for.
        chosen: Whether the criterion chooses the widths; there is no budget then.
        depth: The units that may leave.
        searched: Whether the FLOPs that meet a latency are found, by which rounds lead to it; else
            it is only checked that the narrowest model meets it, if no layer may leave.

    Raises:
        ValueError: The budget cannot be met, or not in so few rounds.
    """
    model = cost_model(scope.graph)
    everything = np.ones(scope.graph.count, bool)
    full = model.cost(model.lengths(everything))
    if chosen:
        return Goal(Budget(params=1.0), OneShot(), full, np.ones(len(full)), open=True, chosen=True)
    by_rounds = Schedule() if isinstance(schedule, StepSchedule) else schedule
    is_open = budget is None and by_rounds is schedule
    if is_open:
        by_rounds = by_rounds if isinstance(by_rounds, Adaptive) else Adaptive()
        least = model.cost(model.lengths(narrowest(scope.groups, model, scope.rules)))
        budget = Budget(flops=float((least / full)[_FLOPS]))
    elif isinstance(schedule, StepSchedule):
        budget = budget or Budget(flops=1 - schedule.final)
    assert budget is not None
    if not is_open:
        try:
            check_budget_can_be_met(scope.graph, scope.groups, budget, scope.rules)
        except UnmetBudgetError:
            if depth is False or not can_be_met_without_units(scope, budget, depth):
                raise
    shares = np.minimum(budget.targets(full) / full, 1.0)
    fixed = by_rounds is schedule and not is_open
    goal = Goal(budget, by_rounds, full, shares, open=is_open, fixed=fixed)
    if budget.latency is not None:
        graph = scope.graph
        watch = Stopwatch(
            graph.program.model, budget.batch_size, budget.runtime, graph.counted_shapes
        )
        goal = replace(goal, seconds=budget.latency_target(watch.seconds))
        if searched:
            goal = _timed(goal, scope, flat_curves(scope.groups), "layerwise", watch)
            _warn_if_near_the_floor(goal)
        elif watch.seconds > goal.seconds and depth is False:
            slim = slim_model(scope.graph, narrowest(scope.groups, model, scope.rules))
            fastest = watch.seconds_of(slim, goal.seconds)
            check_fast_enough(fastest, watch.seconds, budget, goal.seconds)
    goal.check(rounds)
    return goal


def _timed(goal: Goal, scope: Scope, curves: Curves, allocation: str, watch: Stopwatch) -> Goal:
    """The goal with the share of FLOPs at which the model meets the latency limit."""
    model = cost_model(scope.graph)
    flops_now = model.cost(model.lengths(np.ones(scope.graph.count, bool)))[_FLOPS]
    share = goal.final.latency
    found = flops_within_latency(
        scope.graph,
        scope.groups,
        curves,
        scope.rules,
        allocation,
        goal.final,
        goal.seconds,
        watch,
        # The whole model's time differs between measurements, and the limit is a share of it.
        shrink=isinstance(share, (int, float)) and share < 1 and flops_now >= goal.full[_FLOPS],
    )
    return goal.within(found.flops, found)


def _warn_if_near_the_floor(goal: Goal) -> None:
    """Warns if most of the time left is not spent on what layers compute."""
    found = goal.latency
    if found is None or found.least is None:
        return
    above = (goal.seconds - found.least) / max(found.whole - found.least, 1e-12)
    if above < NEAR:
        runtime = ", or name the runtime that the model is shipped in: runtime='litert'"
        warnings.warn(
            f"{goal.final} leaves {found.flops / goal.full[_FLOPS]:.1%} of the FLOPs. "
            f"{goal.notes[0]} Near the narrowest model, time is the cost of calls and no longer "
            "of what layers compute. Allow more or raise batch_size"
            f"{runtime if goal.final.runtime == 'keras' else ''}.",
            stacklevel=2,
        )
