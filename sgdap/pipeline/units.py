"""Chooses the units that leave for a budget, and plans the widths of the model without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.channels.counting import counted_on
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.depth import Bypass, shallower
from sgdap.depth.costs import UnitCost, unit_costs
from sgdap.depth.units import RemovableUnit, live_calls
from sgdap.execution.memory import batch_memory, checked_memory_limit
from sgdap.pipeline.widths import (
    Curves,
    PlanProgress,
    Spending,
    plan_from_curves,
    slim_weights,
)
from sgdap.planning.allocation import UnmetBudgetError, flat_curves, narrowest
from sgdap.planning.budget import Budget
from sgdap.planning.bypassed import BypassedUnit
from sgdap.planning.carried import (
    curves_carried,
    groups_carried,
    rules_carried,
    statistics_carried,
)
from sgdap.planning.cost import MEASURES, cost_model
from sgdap.planning.depth import Depth, allowed_units, cheapest_units, choose_units, most_units
from sgdap.planning.exchange import is_better
from sgdap.planning.options import PruningOptions
from sgdap.planning.plan import Plan, model_fingerprint
from sgdap.planning.scope import Scope
from sgdap.reconstruction.held_back import FITTED, HeldBack, affordable_trials
from sgdap.reconstruction.refit import Deeper
from sgdap.statistics.collect import CalibrationStatistics

Array = npt.NDArray[np.float64]

FIRST, LESS, MORE = 0.25, 0.125, 0.5
"""Shares of the units whose slim models are measured: the first, then less or more of them."""

TRIALS = 3
"""The slim models that are measured."""


@dataclass(frozen=True, eq=False)
class Without:
    """A model without some units, as it is before channels leave.

    Attributes:
        scope: Its groups that may shrink.
        curves: Their error curves by name.
        whole: The channels of the whole model.
        units: The units that left.
        paths: The path of each layer, by that in the whole model.
    """

    scope: Scope
    curves: Curves
    whole: ChannelGraph
    units: Sequence[RemovableUnit]
    paths: Mapping[str, str]

    def statistics(self, statistics: CalibrationStatistics) -> CalibrationStatistics:
        """The statistics of the whole model, told of this one."""
        if not self.units:
            return statistics
        return statistics_carried(statistics, self.whole, self.scope.graph, self.paths)

    @property
    def deeper(self) -> Deeper | None:
        """The whole model, as the refit asks for it, where this one has not all of its layers."""
        if not self.units:
            return None
        program = self.whole.program
        reads = {unit.target: unit.source for unit in self.units}
        calls = [program.calls[number] for number in live_calls(program, reads)]
        changed = {call.path for call in calls if any(ref.index in reads for ref in call.inputs)}
        names = {after: path for path, after in self.paths.items()}
        return Deeper(self.whole, names, frozenset(self.paths[path] for path in changed))


def without(scope: Scope, curves: Curves, bypasses: Sequence[Bypass]) -> Without:
    """Makes the model without some units.

    Args:
        scope: The groups of the whole model that may shrink.
        curves: Their error curves by name.
        bypasses: The units, and what stands in for them.
    """
    graph = scope.graph
    made = shallower(graph, bypasses)
    after = counted_on(channel_graph(made.model), graph.counted_shapes)
    pairs = groups_carried(scope.groups, graph, after, made.paths)
    found = curves_carried(curves, pairs, graph, after)
    pairs = [pair for pair in pairs if pair[1].name in found]
    groups = [own for _, own, *_ in pairs]
    left = Scope(after, groups, rules_carried(scope.rules, pairs))
    return Without(left, found, graph, [own.unit for own in bypasses], made.paths)


@dataclass(frozen=True, eq=False)
class Units:
    """Chooses units for a budget, and plans the widths of the model without them.

    Attributes:
        scope: The groups of the whole model that may shrink.
        curves: Their error curves by name.
        budget: What the model may cost with all its layers.
        timing: Says what it may cost without some; None where no model was timed: as much.
        options: The options of calibration, scoring and planning.
        data: Calibration inputs.
        progress: Receives the progress; None: nothing is shown.
    """

    scope: Scope
    curves: Curves
    budget: Budget
    timing: Spending | None
    options: PruningOptions
    data: Any
    progress: PlanProgress | None

    def chosen(self, statistics: CalibrationStatistics) -> tuple[UnitCost, ...]:
        """The units that leave.

        For a time, slim models without some numbers of units are measured, unless that takes too
        long; else the expected loss decides.

        Args:
            statistics: The result of a calibration pass over the whole model.
        """
        graph, options = self.scope.graph, self.options
        costs = unit_costs(
            graph,
            allowed_units(graph, options.depth),
            self.data,
            samples=options.samples,
            positions=options.positions,
            seed=options.seed,
            memory=batch_memory(checked_memory_limit(options.memory_limit)),
            progress=self.progress.samples("units", None) if self.progress else None,
        )
        if isinstance(options.depth, float):
            return cheapest_units(graph, costs, options.depth)
        if self.timing is not None and costs and affordable_trials(graph, FITTED) >= TRIALS:
            return self._measured(statistics, costs)
        return choose_units(
            graph,
            costs,
            self.scope.groups,
            self.curves,
            lambda units: self._budget(self._without(units), roughly=True),
            full=cost_model(graph).whole,
            allocation=options.allocation,
            rules=self.scope.rules,
        )

    def plan(
        self, statistics: list[CalibrationStatistics], chosen: Sequence[UnitCost]
    ) -> tuple[Plan, Curves] | None:
        """The plan for the model without some units, and the curves of its groups.

        None where the budget can't be met by it, as channels stay that a unit's input ties, and
        where nobody asked for these units.

        Args:
            statistics: The result of a calibration pass over the whole model, the only item. It is
                taken out, so that its matrices can be freed before the refit.
            chosen: The units that leave.
        """
        graph, left = self.scope.graph, self._without(chosen)
        full, asked_for = cost_model(graph).whole, isinstance(self.options.depth, float)
        try:
            budget = self._budget(left, roughly=False)
        except UnmetBudgetError:
            if asked_for:
                raise
            return None
        if not asked_for and not _can_be_met(left.scope, budget.targets(full)):
            return None
        plan = plan_from_curves(
            left.scope,
            left.statistics(statistics.pop()),
            left.curves,
            budget,
            self.options,
            self.data,
            self.progress,
            left.deeper,
            timed=self.timing is not None,
        )
        plan = replace(
            plan,
            bypassed=tuple(BypassedUnit.of(own.bypass, own.error) for own in chosen),
            whole=model_fingerprint(graph),
            params=(round(full[0]), plan.params[1]),
            flops=(round(full[1]), plan.flops[1]),
        )
        return plan, left.curves

    def _measured(
        self, statistics: CalibrationStatistics, costs: Sequence[UnitCost]
    ) -> tuple[UnitCost, ...]:
        """The units without which a slim model is measured to lose least."""
        graph, options = self.scope.graph, self.options
        held_back = HeldBack(graph, self.data, options, TRIALS)
        if options.allocation == "measured":
            options = replace(options, allocation="global")

        def losses_without(units: Sequence[UnitCost]) -> Array | None:
            """What a slim model that meets the budget loses; None where none meets it."""
            left = self._without(units)
            try:
                kept, weights = slim_weights(
                    left.scope,
                    left.statistics(statistics),
                    left.curves,
                    self._budget(left, roughly=True),
                    options,
                    held_back.others,
                    deeper=left.deeper,
                    timed=True,
                )
            except UnmetBudgetError:
                return None
            return held_back.losses_of(left.scope.graph, kept, weights)

        best = losses_without(())
        found: tuple[UnitCost, ...] = ()
        for less, more in ((FIRST, FIRST), (LESS, MORE)):
            units = cheapest_units(graph, costs, more if found or best is None else less)
            losses = losses_without(units)
            if losses is not None and (best is None or is_better(losses, best)):
                best, found = losses, units
        return found

    def _without(self, units: Sequence[UnitCost]) -> Without:
        if not units:
            return Without(self.scope, self.curves, self.scope.graph, (), {})
        return without(self.scope, self.curves, [own.bypass for own in units])

    def _budget(self, left: Without, *, roughly: bool) -> Budget:
        """What the model without some units may cost, in numbers: shares are of the whole one."""
        budget, full = self.budget, cost_model(self.scope.graph).whole
        if self.timing is not None and left.units:
            budget = self.timing.without_units(left.scope, left.curves, roughly=roughly)
        limits = {name: budget.targets(full)[MEASURES.index(name)] for name in budget.limits()}
        return Budget(**{name: max(limit, 1.5) for name, limit in limits.items()})


def can_be_met_without_units(scope: Scope, budget: Budget, depth: Depth) -> bool:
    """Whether the narrowest model that lacks all units that may leave together meets a budget.

    Args:
        scope: The groups that may shrink.
        budget: What the model may cost; its latency is not looked at.
        depth: The units that may leave.
    """
    shapes, full = scope.graph.program.shapes, cost_model(scope.graph).whole
    bypasses = []
    for unit in most_units(scope.graph, allowed_units(scope.graph, depth)):
        sizes = [int(shapes[tensor][-1] or 1) for tensor in (unit.source, unit.target)]
        bypasses.append(Bypass(unit, np.zeros(sizes) if unit.readers else None))
    left = without(scope, flat_curves(scope.groups), bypasses)
    return _can_be_met(left.scope, budget.targets(full))


def _can_be_met(scope: Scope, targets: Array) -> bool:
    model = cost_model(scope.graph)
    least = model.cost(model.lengths(narrowest(scope.groups, model, scope.rules)))
    return bool((least <= targets * (1 + 1e-9)).all())
