"""Chooses between widths by slim models that are refitted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.allocation import allocate
from sgdap.planning.budget import Budget
from sgdap.planning.cost import cost_model
from sgdap.planning.exchange import better_of, exchange
from sgdap.planning.options import PruningOptions
from sgdap.planning.scope import Scope
from sgdap.reconstruction.held_back import affordable_trials
from sgdap.reconstruction.trial import Trials
from sgdap.reconstruction.weights import Mask
from sgdap.statistics.collect import CalibrationStatistics

JUDGED = 1500
"""The most samples on which the widths by the curves are compared with equal shares."""

LITTLE = 0.25
"""They are compared where a budget leaves no more than this share: there errors of neighbouring
layers add up, which the sum of the curves does not know."""


def measured_widths(
    scope: Scope,
    statistics: CalibrationStatistics,
    curves: Mapping[str, ErrorCurve],
    budget: Budget,
    kept: Mask,
    options: PruningOptions,
    data: Any,
) -> Mask:
    """The widths that slim models measure best.

    Of the `"global"` allocation either those by the curves or nearly equal shares; the first where
    more than a quarter is left, or measuring would take long. Of the `"measured"` one those that
    `exchange` finds.

    Args:
        scope: The groups that may shrink.
        statistics: The result of a calibration pass over the same model.
        curves: The groups' error curves by name.
        budget: What the slim model may cost.
        kept: The widths by the curves, as a mask of the channels that stay, `(channels,)`.
        options: The options of calibration, scoring and planning.
        data: Calibration inputs.

    Returns:
        A mask of the channels that stay, `(channels,)`.
    """
    graph, model = scope.graph, cost_model(scope.graph)
    groups, rules, full = scope.groups, scope.rules, model.whole
    samples, other = options.samples, kept
    if options.allocation == "global":
        samples = min(samples or JUDGED, JUDGED)
        little = bool((budget.targets(full) <= LITTLE * full).any())
        fits = options.reconstruction and graph.counted is graph.program
        if not little or not fits or affordable_trials(graph, samples) < 2:
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
