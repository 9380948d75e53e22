"""Chooses widths from error curves and refits what stays; collects and scores nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sgdap.channels.groups import ChannelGroup
from sgdap.execution.precision import computing_in_float32
from sgdap.guidance.elimination import ErrorCurve
from sgdap.guidance.score import scoring_notes
from sgdap.planning.allocation import allocate
from sgdap.planning.budget import Budget
from sgdap.planning.cost import cost_model
from sgdap.planning.options import PruningOptions
from sgdap.planning.plan import Plan
from sgdap.planning.removal import plan_from_mask
from sgdap.planning.scope import Scope
from sgdap.reconstruction import Weights, reconstructed_weights, refitted_weights
from sgdap.reconstruction.measured import measured_widths
from sgdap.reconstruction.refit import Deeper
from sgdap.reconstruction.weights import Mask
from sgdap.statistics.collect import CalibrationStatistics

Curves = Mapping[str, ErrorCurve]


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
    graph, samples = scope.graph, statistics.samples
    notes = (*statistics.notes, *(scoring_notes(graph, statistics) if samples else ()))
    handed_over = [statistics]
    del statistics  # so that its matrices can be freed before the refit
    kept, weights = slim_weights(
        scope, handed_over.pop(), curves, budget, options, data, progress, deeper, timed=timed
    )
    return plan_from_mask(
        graph,
        kept,
        guidance=options.criterion.name or type(options.criterion).__name__,
        errors={name: curve.errors for name, curve in curves.items()} if samples else None,
        samples=samples,
        weights=weights,
        notes=notes,
    )


def slim_weights(
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
) -> tuple[Mask, Weights]:
    """The channels that stay, as a mask, `(channels,)`, and the weights that are fitted to them.

    Arguments and errors are those of `plan_from_curves`.
    """
    graph = scope.graph
    model = cost_model(graph)
    kept = allocate(
        scope.groups,
        curves,
        model,
        budget,
        full=model.whole,
        allocation=options.allocation,
        rules=scope.rules,
    )
    weights: Weights = {}
    with computing_in_float32(graph.program.model):
        by_curves = timed and options.allocation == "global"
        if data is not None and options.allocation != "layerwise" and not by_curves:
            kept = measured_widths(scope, statistics, curves, budget, kept, options, data)
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
    return kept, weights
