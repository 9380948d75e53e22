"""Makes a plan from a model's channels and data, with one set of options.

It only calls the steps in their order; the steps themselves are in other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sgdap.channels.counting import counted_on
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.depth import Bypass, Shallower, shallower
from sgdap.depth.costs import UnitCost, unit_costs
from sgdap.depth.units import RemovableUnit, live_calls
from sgdap.execution.inputs import check_calibration_data
from sgdap.execution.memory import batch_memory, checked_memory_limit
from sgdap.execution.precision import computing_in_float32
from sgdap.guidance.elimination import ErrorCurve
from sgdap.guidance.score import score_groups, scoring_notes
from sgdap.planning.allocation import allocate, flat_curves, narrowest
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
from sgdap.planning.options import PruningOptions
from sgdap.planning.plan import Plan, model_fingerprint
from sgdap.planning.removal import plan_from_mask
from sgdap.planning.scope import Scope
from sgdap.reconstruction import Weights, reconstructed_weights, refitted_weights
from sgdap.reconstruction.measured import measured_widths
from sgdap.reconstruction.refit import Deeper
from sgdap.statistics.collect import CalibrationStatistics, collect_statistics

Curves = Mapping[str, ErrorCurve]

GRADIENTS = 6e11
"""FLOPs of the runs of a model whose gradients are taken: a backward pass costs twice as much."""

FEWEST_GRADIENTS = 64
"""Samples whose gradients are taken whatever the work."""


class Spending(Protocol):
    """Says what a model may cost."""

    @property
    def timed(self) -> bool:
        """Whether models were timed when `budget` was asked last."""

    def budget(self, scope: Scope, curves: Curves) -> Budget:
        """Returns what a model may cost whose layers all stay.

        Args:
            scope: The groups that may shrink.
            curves: Their error curves, which lead to the widths of the models that are timed.
        """

    def without_units(self, scope: Scope, curves: Curves, *, roughly: bool) -> Budget:
        """Returns what the same model may cost without some units; asked where models are timed.

        Args:
            scope: The groups of the shallower model that may shrink.
            curves: Their error curves.
            roughly: Whether an estimate will do.
        """


class PlanProgress(Protocol):
    """Receives the progress of making a plan, to show it."""

    def samples(self, what: str, total: int | None) -> Callable[[int], None]:
        """Returns a function to call with the number of samples seen."""

    def groups(self, total: int) -> Callable[[ChannelGroup], None]:
        """Returns a function to call with each group when its scoring begins."""

    def passes(self, samples: int) -> Callable[[int, int, int], None]:
        """Returns a function to call with the pass, the number of passes and the samples seen."""


def make_plan(
    scope: Scope,
    data: Any,
    options: PruningOptions,
    spending: Spending | None,
    progress: PlanProgress | None = None,
) -> tuple[Plan, Curves]:
    """Makes a plan: collects statistics, scores the groups, spends the budget, refits consumers.

    Args:
        scope: The groups that may shrink.
        data: Calibration inputs that can be read repeatedly, as `reusable` returns them.
        options: The options of calibration, scoring and planning.
        spending: Says what the model may cost. None: the criterion chooses the widths, by
            cross-validation.
        progress: Receives the progress; None: nothing is shown.

    Returns:
        The `Plan`, and the groups' error curves by name.

    Raises:
        ValueError: There is no sample, an activation is not finite, or the budget can't be met.
        TypeError: `data` is of a kind that can't be read.
    """
    options = replace(options, memory_limit=checked_memory_limit(options.memory_limit))
    if options.needs_statistics:
        statistics = collect_statistics(
            scope.graph,
            data,
            folds=options.folds if spending is None else 1,
            samples=options.samples,
            positions=options.positions,
            gradient_samples=_gradient_samples(scope.graph),
            seed=options.seed,
            memory_limit=options.memory_limit,
            progress=progress.samples("calibration", options.samples) if progress else None,
        )
    else:
        check_calibration_data(scope.graph, data)
        statistics = CalibrationStatistics(0, {})
    curves = score_groups(
        scope.graph,
        statistics,
        options.criterion,
        groups=scope.groups,
        reconstruction=options.reconstruction,
        choose=spending is None,
        memory_limit=options.memory_limit,
        progress=progress.groups(len(scope.groups)) if progress else None,
    )
    if spending is None:
        budget = Budget(params=1.0)
        scope = replace(scope, rules=scope.rules.chosen(scope.groups, curves))
    else:
        budget = spending.budget(scope, curves)
    timing = spending if spending is not None and spending.timed else None
    chosen: tuple[UnitCost, ...] = ()
    if options.depth is not False:
        chosen = _chosen_units(scope, curves, budget, timing, options, data, progress)
    handed_over = [statistics]
    del statistics  # so that plan_from_curves can free its matrices before the refit
    if chosen:
        made = _shallower_plan(
            scope, handed_over, curves, budget, timing, options, data, progress, chosen
        )
        if made is not None:
            return made
    timed = timing is not None
    plan = plan_from_curves(
        scope, handed_over.pop(), curves, budget, options, data, progress, timed=timed
    )
    return plan, curves


def _chosen_units(
    scope: Scope,
    curves: Curves,
    budget: Budget,
    timing: Spending | None,
    options: PruningOptions,
    data: Any,
    progress: PlanProgress | None,
) -> tuple[UnitCost, ...]:
    """The units that leave for a budget."""
    graph = scope.graph

    def budget_without(units: Sequence[UnitCost]) -> Budget:
        if timing is None or not units:
            return budget
        _, scope_left, found = _without(scope, curves, [own.bypass for own in units])
        return timing.without_units(scope_left, found, roughly=True)

    costs = unit_costs(
        graph,
        allowed_units(graph, options.depth),
        data,
        samples=options.samples,
        positions=options.positions,
        seed=options.seed,
        memory=batch_memory(checked_memory_limit(options.memory_limit)),
        progress=progress.samples("units", None) if progress else None,
    )
    if isinstance(options.depth, float):
        return cheapest_units(graph, costs, options.depth)
    return choose_units(
        graph,
        costs,
        scope.groups,
        curves,
        budget_without,
        full=cost_model(graph).whole,
        allocation=options.allocation,
        rules=scope.rules,
    )


def _without(
    scope: Scope, curves: Curves, bypasses: Sequence[Bypass]
) -> tuple[Shallower, Scope, Curves]:
    """A model without some units, its groups that may shrink, and their curves."""
    graph = scope.graph
    made = shallower(graph, bypasses)
    after = counted_on(channel_graph(made.model), graph.counted_shapes)
    pairs = groups_carried(scope.groups, graph, after, made.paths)
    found = curves_carried(curves, pairs, graph, after)
    pairs = [pair for pair in pairs if pair[1].name in found]
    groups = [own for _, own, *_ in pairs]
    return made, Scope(after, groups, rules_carried(scope.rules, pairs)), found


def _shallower_plan(
    scope: Scope,
    statistics: list[CalibrationStatistics],
    curves: Curves,
    budget: Budget,
    timing: Spending | None,
    options: PruningOptions,
    data: Any,
    progress: PlanProgress | None,
    chosen: Sequence[UnitCost],
) -> tuple[Plan, Curves] | None:
    """The plan for the model without some units, and the curves of its groups.

    None where the budget can't be met by it, as channels stay that a unit's input ties, and where
    nobody asked for these units.
    """
    graph, units = scope.graph, [own.unit for own in chosen]
    made, scope_left, found = _without(scope, curves, [own.bypass for own in chosen])
    after, full = scope_left.graph, cost_model(graph).whole
    if timing is not None:
        budget = timing.without_units(scope_left, found, roughly=False)
    # What is left of an absolute budget, and shares are of the whole model.
    limits = {name: budget.targets(full)[MEASURES.index(name)] for name in budget.limits()}
    left = Budget(**{name: max(limit, 1.5) for name, limit in limits.items()})
    if not isinstance(options.depth, float) and not _can_be_met(scope_left, left.targets(full)):
        return None
    plan = plan_from_curves(
        scope_left,
        statistics_carried(statistics.pop(), graph, after, made.paths),
        found,
        left,
        options,
        data,
        progress,
        _whole_of(graph, units, made.paths),
        timed=timing is not None,
    )
    bypassed = tuple(BypassedUnit.of(own.bypass, own.error) for own in chosen)
    return (
        replace(
            plan,
            bypassed=bypassed,
            whole=model_fingerprint(graph),
            params=(round(full[0]), plan.params[1]),
            flops=(round(full[1]), plan.flops[1]),
        ),
        found,
    )


def _gradient_samples(graph: ChannelGraph) -> int:
    """How many samples sensitivities are measured on; all of them but in large models."""
    flops = float(cost_model(graph).whole[1])
    return max(int(GRADIENTS / max(flops, 1.0)), FEWEST_GRADIENTS)


def plan_from_curves(
    scope: Scope,
    statistics: CalibrationStatistics,
    curves: Curves,
    budget: Budget,
    options: PruningOptions,
    data: Any = None,
    progress: PlanProgress | None = None,
    deeper: Deeper | None = None,
    *,
    timed: bool = False,
) -> Plan:
    """Makes a plan from a calibration pass and the error curves computed from it.

    Args:
        scope: The groups that may shrink.
        statistics: The result of a calibration pass over the same model.
        curves: The groups' error curves by name, as `score_groups` makes them.
        budget: What the slim model may cost.
        options: The options of calibration, scoring and planning.
        data: Inputs for refitting the consumers one after another, so that each makes up for the
            errors of those before it; None: each is fitted by itself only.
        progress: Receives the progress; None: nothing is shown.
        deeper: The whole model, where that of the scope lacks some of its layers.
        timed: Whether the budget was found by timing models of the widths by the curves.

    Raises:
        ValueError: The budget cannot be met.
    """
    graph = scope.graph
    model = cost_model(graph)
    full = model.whole
    known = statistics.samples > 0
    notes = (*statistics.notes, *(scoring_notes(graph, statistics) if known else ()))
    kept = allocate(
        scope.groups,
        curves,
        model,
        budget,
        full=full,
        allocation=options.allocation,
        rules=scope.rules,
    )
    with computing_in_float32(graph.program.model):
        by_curves = timed and options.allocation == "global"
        if data is not None and options.allocation != "layerwise" and not by_curves:
            kept = measured_widths(scope, statistics, curves, budget, kept, options, data)
        weights: Weights = {}
        if options.reconstruction:
            weights = reconstructed_weights(graph, statistics, kept)
            # frees the products unless the caller still holds them
            statistics = statistics.without_products()
            if data is not None:
                weights = refitted_weights(
                    graph,
                    statistics,
                    kept,
                    weights,
                    data,
                    options.samples,
                    positions=options.positions,
                    seed=options.seed,
                    memory_limit=options.memory_limit,
                    progress=progress.passes(statistics.samples) if progress else None,
                    deeper=deeper,
                )
    return plan_from_mask(
        graph,
        kept,
        guidance=options.criterion.name or type(options.criterion).__name__,
        errors={name: curve.errors for name, curve in curves.items()} if known else None,
        samples=statistics.samples,
        weights=weights,
        notes=notes,
    )


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
    _, left, _ = _without(scope, flat_curves(scope.groups), bypasses)
    return _can_be_met(left, budget.targets(full))


def _can_be_met(scope: Scope, targets: npt.NDArray[np.float64]) -> bool:
    model = cost_model(scope.graph)
    least = model.cost(model.lengths(narrowest(scope.groups, model, scope.rules)))
    return bool((least <= targets * (1 + 1e-9)).all())


def _whole_of(
    graph: ChannelGraph, units: Sequence[RemovableUnit], paths: Mapping[str, str]
) -> Deeper:
    """The whole model, as the refit of a shallower one asks for it.

    Args:
        graph: The channels of the whole model.
        units: The units that left.
        paths: The path of each layer in the shallower model.
    """
    reads = {unit.target: unit.source for unit in units}
    calls = [graph.program.calls[number] for number in live_calls(graph.program, reads)]
    changed = {call.path for call in calls if any(ref.index in reads for ref in call.inputs)}
    names = {after: path for path, after in paths.items()}
    return Deeper(graph, names, frozenset(paths[path] for path in changed))
