"""Goes from a model's channels and data to a plan; it only calls the steps in their order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sgdap.channels.groups import ChannelGraph
from sgdap.execution.inputs import check_calibration_data
from sgdap.execution.memory import checked_memory_limit
from sgdap.guidance.score import score_groups
from sgdap.pipeline.units import Units
from sgdap.pipeline.widths import Curves, PlanProgress, Spending, plan_from_curves
from sgdap.planning.allocation import UnmetBudgetError
from sgdap.planning.budget import Budget
from sgdap.planning.cost import cost_model
from sgdap.planning.options import PruningOptions
from sgdap.planning.plan import Plan
from sgdap.planning.scope import Scope
from sgdap.statistics.collect import CalibrationStatistics, collect_statistics

GRADIENTS = 6e11
"""FLOPs of the runs of a model whose gradients are taken: a backward pass costs twice as much."""

NONE = 1.5
"""FLOPs that no model has; 1 would be a share."""

FEWEST_GRADIENTS = 64
"""Samples whose gradients are taken whatever the work."""


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
    unmet: UnmetBudgetError | None = None
    if spending is None:
        budget = Budget(params=1.0)
        scope = replace(scope, rules=scope.rules.chosen(scope.groups, curves))
    else:
        try:
            budget = spending.budget(scope, curves)
        except UnmetBudgetError as error:
            if options.depth is False:
                raise
            budget, unmet = Budget(flops=NONE), error
    timing = spending if spending is not None and spending.timed else None
    units = Units(scope, curves, budget, timing, options, data, progress)
    chosen = () if options.depth is False else units.chosen(statistics)
    handed_over = [statistics]
    del statistics  # so that its matrices can be freed before the refit
    if chosen:
        made = units.plan(handed_over, chosen)
        if made is not None:
            return made
    if unmet is not None:
        raise unmet
    plan = plan_from_curves(
        scope,
        handed_over.pop(),
        curves,
        budget,
        options,
        data,
        progress,
        timed=timing is not None,
    )
    return plan, curves


def _gradient_samples(graph: ChannelGraph) -> int:
    """How many samples sensitivities are measured on; all of them but in large models."""
    flops = float(cost_model(graph).whole[1])
    return max(int(GRADIENTS / max(flops, 1.0)), FEWEST_GRADIENTS)
