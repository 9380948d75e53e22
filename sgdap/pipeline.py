"""Makes a plan from a model's channels and data, with one set of options.

It only calls the steps in their order; the steps themselves are in other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sgdap._arguments import check_choice, check_integer, is_number, shown
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.execution.inputs import check_calibration_data
from sgdap.execution.memory import checked_memory_limit
from sgdap.execution.precision import computing_in_float32
from sgdap.guidance.base import Guidance, get_guidance
from sgdap.guidance.elimination import ErrorCurve
from sgdap.guidance.score import score_groups, scoring_notes
from sgdap.planning.allocation import ALLOCATIONS, allocate
from sgdap.planning.budget import Budget
from sgdap.planning.cost import cost_model
from sgdap.planning.exchange import exchange
from sgdap.planning.plan import Plan
from sgdap.planning.removal import plan_from_mask
from sgdap.planning.widths import WidthRules, prunable_groups, width_rules
from sgdap.reconstruction import Weights, reconstructed_weights, refitted_weights
from sgdap.reconstruction.trial import Trials
from sgdap.statistics.collect import CalibrationStatistics, collect_statistics

Curves = Mapping[str, ErrorCurve]

GRADIENTS = 6e11
"""FLOPs of the runs of a model whose gradients are taken: a backward pass costs twice as much."""

FEWEST_GRADIENTS = 64
"""Samples whose gradients are taken whatever the work."""


@dataclass(frozen=True)
class PruningOptions:
    """The options of calibration, scoring and planning, apart from the budget.

    Attributes:
        guidance: The criterion, by name or as an object.
        allocation: `"global"`, `"layerwise"` or `"measured"`.
        reconstruction: Whether to refit the consumers' weights to the channels that stay, first
            each by itself, then one after another.
        layers: Names or patterns of the layers whose channels may be removed; None: all.
        min_channels: The least number of channels of every group.
        round_to: Groups that shrink keep a multiple of this many channels, or `"auto"`.
        overrides: A dict from layer names or patterns to the share of their channels to keep.
        samples: The number of calibration samples to use; None: all.
        folds: The number of folds of the cross-validation, which chooses widths without a budget.
        positions: The most output positions of a convolution to use from each sample.
        seed: Seed for sampled positions and targets.
        memory_limit: Bytes that planning may take beyond the model and one sample; None: a quarter
            of the machine's memory, or half of the free memory if that is less.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option has an invalid value.
    """

    guidance: str | Guidance = "lasso"
    allocation: str = "global"
    reconstruction: bool = True
    layers: Sequence[str] | None = None
    min_channels: int = 1
    round_to: int | str = "auto"
    overrides: Mapping[str, float] | None = None
    samples: int | None = 4096
    folds: int = 5
    positions: int = 32
    seed: int = 0
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance", self.criterion)  # the same object for all rounds
        check_choice("allocation", self.allocation, ALLOCATIONS)
        check_choice("reconstruction", self.reconstruction, (True, False))
        check_integer("folds", self.folds, 2)
        for name in ("min_channels", "round_to", "positions"):
            if (name, getattr(self, name)) != ("round_to", "auto"):
                check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0)
        if self.samples is not None:
            check_integer("samples", self.samples, self.folds)
        if self.memory_limit is not None:
            check_integer("memory_limit", self.memory_limit, 1)
        _check_layers(self.layers)
        _check_overrides(self.overrides)

    @property
    def needs_statistics(self) -> bool:
        """Whether anything in a plan depends on what the calibration data do.

        Nothing does where every group keeps the same share, the criterion looks at weights only,
        and no consumer is refitted.
        """
        alike = self.allocation == "layerwise" and not self.reconstruction
        return self.criterion.looks_at_data or not alike

    @property
    def criterion(self) -> Guidance:
        """The guidance object, found by its name if a name was given."""
        return get_guidance(self.guidance)


def _check_layers(layers: Any) -> None:
    if layers is None:
        return
    several = isinstance(layers, Iterable) and not isinstance(layers, str)
    if not several or not all(isinstance(name, str) for name in layers):
        raise TypeError(
            "layers must be a list of layer names or patterns, for example ['conv*']. "
            f"Received: {shown(layers)}"
        )


def _check_overrides(overrides: object) -> None:
    if overrides is None:
        return
    if not isinstance(overrides, Mapping):
        raise TypeError(
            "overrides must be a dict of layer names or patterns and the share of channels to "
            f"keep, for example {{'stem*': 1.0}}. Received: {shown(overrides)}"
        )
    for pattern, share in overrides.items():
        if not is_number(share) or not 0 < share <= 1:
            raise ValueError(
                "overrides must give shares of channels to keep, above 0 and up to 1. "
                f"Received: {{{shown(pattern)}: {shown(share)}}}"
            )


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
        names = {group.name for group in self.groups}
        groups = [group for group in graph.groups if group.prunable and group.name in names]
        return replace(self, graph=graph, groups=groups)


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
    handed_over = [statistics]
    del statistics  # so that plan_from_curves can free its matrices before the refit
    plan = plan_from_curves(scope, handed_over.pop(), curves, spent, options, data, progress)
    return plan, curves


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
        if options.allocation == "measured" and data is not None:
            trials = Trials(
                graph,
                statistics,
                data,
                reconstruction=options.reconstruction,
                samples=options.samples,
                positions=options.positions,
                seed=options.seed,
                memory_limit=options.memory_limit,
            )
            kept = exchange(
                scope.groups,
                curves,
                model,
                budget,
                kept,
                trials.losses_of,
                full=full,
                rules=scope.rules,
                tries=trials.affordable,
            )
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
