"""Makes a plan from a model's channels and data, with one set of options.

It only calls the steps in their order; the steps themselves are in other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from sgdap.channels.counting import counted_on
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.depth import shallower
from sgdap.depth.costs import UnitCost, unit_costs
from sgdap.depth.units import RemovableUnit, live_calls
from sgdap.execution.inputs import check_calibration_data
from sgdap.execution.memory import batch_memory, checked_memory_limit
from sgdap.execution.precision import computing_in_float32
from sgdap.guidance.elimination import ErrorCurve
from sgdap.guidance.score import score_groups, scoring_notes
from sgdap.planning.allocation import allocate, narrowest
from sgdap.planning.budget import Budget
from sgdap.planning.bypassed import BypassedUnit
from sgdap.planning.carried import (
    curves_carried,
    groups_carried,
    rules_carried,
    statistics_carried,
)
from sgdap.planning.cost import MEASURES, cost_model
from sgdap.planning.depth import allowed_units, cheapest_units, choose_units
from sgdap.planning.exchange import better_of, exchange
from sgdap.planning.options import PruningOptions
from sgdap.planning.plan import Plan, model_fingerprint
from sgdap.planning.removal import plan_from_mask
from sgdap.planning.widths import WidthRules, prunable_groups, width_rules
from sgdap.reconstruction import Weights, reconstructed_weights, refitted_weights
from sgdap.reconstruction.refit import Deeper
from sgdap.reconstruction.trial import Trials, affordable_trials
from sgdap.reconstruction.weights import Mask
from sgdap.statistics.collect import CalibrationStatistics, collect_statistics

Curves = Mapping[str, ErrorCurve]

GRADIENTS = 6e11
"""FLOPs of the runs of a model whose gradients are taken: a backward pass costs twice as much."""

JUDGED = 1500
"""The most samples on which the widths by the curves are compared with equal shares."""

FEWEST_GRADIENTS = 64
"""Samples whose gradients are taken whatever the work."""


class PlanProgress(Protocol):
    """Receives the progress of making a plan, to show it."""

    def samples(self, what: str, total: int | None) -> Callable[[int], None]:
        """Returns a function to call with the number of samples seen."""

    def groups(self, total: int) -> Callable[[ChannelGroup], None]:
        """Returns a function to call with each group when its scoring begins."""

    def passes(self, samples: int) -> Callable[[int, int, int], None]:
        """Returns a function to call with the pass, the number of passes and the samples seen."""


@dataclass(frozen=True, eq=False)
class Scope:
    """The part of a model that may shrink.

    Attributes:
        graph: The model's channels.
        groups: The groups that may shrink.
        rules: The widths that these groups may have.
    """

    graph: ChannelGraph
    groups: Sequence[ChannelGroup]
    rules: WidthRules

    def moved_to(self, graph: ChannelGraph) -> Scope:
        """The scope with the same groups, after the model's widths changed.

        Args:
            graph: The model's channels as they are now.
        """
        owners = {path: group.name for group in self.groups for path in group.producers}
        groups: list[ChannelGroup] = []
        fixed: dict[str, int] = {}
        for group in graph.groups:
            known = [owners[path] for path in group.producers if path in owners]
            if group.prunable and known:
                groups.append(group)
                if known[0] in self.rules.fixed:
                    fixed[group.name] = self.rules.fixed[known[0]]
        rules = replace(self.rules, fixed=fixed)
        return replace(self, graph=graph, groups=groups, rules=rules)


def pruning_scope(graph: ChannelGraph, options: PruningOptions) -> Scope:
    """Finds the groups of a model that may shrink, and the widths they may have.

    Args:
        graph: The model's channels.
        options: The layers and widths that are allowed, and the criterion.

    Raises:
        ValueError: A name matches no layer, no group can shrink, or the model lacks what the
            criterion needs.
    """
    groups = prunable_groups(graph, options.layers)
    options.criterion.check(graph, groups)
    rules = width_rules(groups, options.min_channels, options.round_to, options.overrides)
    return Scope(graph, groups, rules)


def make_plan(
    scope: Scope,
    data: Any,
    options: PruningOptions,
    budget: Callable[[Curves], Budget] | None,
    progress: PlanProgress | None = None,
    *,
    timed: bool = False,
) -> tuple[Plan, Curves]:
    """Makes a plan: collects statistics, scores the groups, spends the budget, refits consumers.

    Args:
        scope: The groups that may shrink.
        data: Calibration inputs that can be read repeatedly, as `reusable` returns them.
        options: The options of calibration, scoring and planning.
        budget: Returns the budget for given error curves of the groups. A latency limit needs the
            curves, to measure models of the widths that they lead to. None: the criterion chooses
            the widths, by cross-validation.
        progress: Receives the progress; None: nothing is shown.
        timed: Whether the budget was found by timing models of the widths that the curves lead to;
            others of the same cost may take longer.

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
            folds=options.folds if budget is None else 1,
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
        choose=budget is None,
        memory_limit=options.memory_limit,
        progress=progress.groups(len(scope.groups)) if progress else None,
    )
    if budget is None:
        spent = Budget(params=1.0)
        scope = replace(scope, rules=scope.rules.chosen(scope.groups, curves))
    else:
        spent = budget(curves)
    chosen: tuple[UnitCost, ...] = ()
    if options.depth is not False:
        chosen = _chosen_units(scope, curves, spent, options, data, progress)
    handed_over = [statistics]
    del statistics  # so that plan_from_curves can free its matrices before the refit
    if chosen:
        made = _shallower_plan(
            scope, handed_over, curves, spent, options, data, progress, chosen, timed
        )
        if made is not None:
            return made
    plan = plan_from_curves(
        scope, handed_over.pop(), curves, spent, options, data, progress, timed=timed
    )
    return plan, curves


def _chosen_units(
    scope: Scope,
    curves: Curves,
    budget: Budget,
    options: PruningOptions,
    data: Any,
    progress: PlanProgress | None,
) -> tuple[UnitCost, ...]:
    """The units that leave for a budget."""
    graph = scope.graph
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
        budget,
        full=cost_model(graph).whole,
        allocation=options.allocation,
        rules=scope.rules,
    )


def _shallower_plan(
    scope: Scope,
    statistics: list[CalibrationStatistics],
    curves: Curves,
    budget: Budget,
    options: PruningOptions,
    data: Any,
    progress: PlanProgress | None,
    chosen: Sequence[UnitCost],
    timed: bool,
) -> tuple[Plan, Curves] | None:
    """The plan for the model without some units, and the curves of its groups.

    None where the budget can't be met by it, as channels stay that a unit's input ties, and where
    nobody asked for these units.
    """
    graph, units = scope.graph, [own.unit for own in chosen]
    made = shallower(graph, [own.bypass for own in chosen])
    after = counted_on(channel_graph(made.model), graph.counted_shapes)
    pairs = groups_carried(scope.groups, graph, after, made.paths)
    found = curves_carried(curves, pairs, graph, after)
    pairs = [pair for pair in pairs if pair[1].name in found]
    groups = [own for _, own, *_ in pairs]
    full = cost_model(graph).whole
    # What is left of an absolute budget, and shares are of the whole model.
    limits = {name: budget.targets(full)[MEASURES.index(name)] for name in budget.limits()}
    left = Budget(**{name: max(limit, 1.5) for name, limit in limits.items()})
    rules = rules_carried(scope.rules, pairs)
    if not isinstance(options.depth, float) and not _can_be_met(after, groups, left, rules):
        return None
    plan = plan_from_curves(
        Scope(after, groups, rules),
        statistics_carried(statistics.pop(), graph, after, made.paths),
        found,
        left,
        options,
        data,
        progress,
        _whole_of(graph, units, made.paths),
        timed=timed,
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
            kept = _measured(scope, statistics, curves, budget, kept, options, data)
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


def _measured(
    scope: Scope,
    statistics: CalibrationStatistics,
    curves: Curves,
    budget: Budget,
    kept: Mask,
    options: PruningOptions,
    data: Any,
) -> Mask:
    """The widths that slim models measure best, `(channels,)`.

    Of the `"global"` allocation either those by the curves or nearly equal shares; the first where
    measuring them would take long. Of the `"measured"` one those that `exchange` finds.
    """
    graph, model = scope.graph, cost_model(scope.graph)
    groups, rules, full = scope.groups, scope.rules, model.whole
    samples, other = options.samples, kept
    if options.allocation == "global":
        samples = min(samples or JUDGED, JUDGED)
        fits = options.reconstruction and graph.counted is graph.program
        if not fits or affordable_trials(graph, samples) < 2:
            return kept
        other = allocate(groups, curves, model, budget, full=full, rules=rules, least=1.0)
        if np.array_equal(kept, other):
            return kept
    trials = Trials(
        graph,
        statistics,
        data,
        reconstruction=options.reconstruction,
        samples=samples,
        positions=options.positions,
        seed=options.seed,
        memory_limit=options.memory_limit,
    )
    judge = trials.losses_of
    if options.allocation == "global":
        return better_of(kept, other, judge)
    return exchange(
        groups,
        curves,
        model,
        budget,
        kept,
        judge,
        full=full,
        rules=rules,
        tries=trials.affordable,
    )


def _can_be_met(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], budget: Budget, rules: WidthRules
) -> bool:
    model = cost_model(graph)
    least = model.cost(model.lengths(narrowest(groups, model, rules)))
    return bool((least <= budget.targets(model.whole) * (1 + 1e-9)).all())


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
