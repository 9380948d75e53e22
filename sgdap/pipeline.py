"""Makes a plan from error curves: allocates, reconstructs; and says what can be planned at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.execution.memory import checked_memory_limit
from sgdap.guidance.base import Guidance
from sgdap.guidance.elimination import ErrorCurve
from sgdap.guidance.score import scoring_notes
from sgdap.planning.allocation import allocate
from sgdap.planning.budget import Budget
from sgdap.planning.cost import cost_model, input_shapes
from sgdap.planning.plan import GroupPlan, Plan, model_fingerprint, reconstruction_fingerprint
from sgdap.planning.widths import WidthRules, fits
from sgdap.planning.work import warn_of_uncounted, work_notes
from sgdap.reconstruction.in_turn import Weights, reconstructed_weights, refitted_weights
from sgdap.statistics.collect import CalibrationStatistics

Mask = npt.NDArray[np.bool_]


class PassProgress(Protocol):
    """Shows how far the passes are in which consumers are refitted."""

    def passes(self, samples: int) -> Callable[[int, int, int], None]:
        """Returns what is called with the pass, the number of passes and the samples seen."""


def plan_from_statistics(
    graph: ChannelGraph,
    statistics: CalibrationStatistics,
    budget: Budget,
    guidance: Guidance,
    *,
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, ErrorCurve],
    allocation: str = "global",
    reconstruction: bool = True,
    rules: WidthRules | None = None,
    data: Any = None,
    samples: int | None = None,
    positions: int = 32,
    seed: int = 0,
    memory_limit: int | None = None,
    progress: PassProgress | None = None,
) -> Plan:
    """Makes a plan from a calibration pass and the scores that came of it.

    Args:
        graph: The model's channels.
        statistics: The result of a calibration pass over the same model.
        budget: What the slim model may cost.
        guidance: The criterion that scored the groups.
        groups: The groups that may shrink.
        curves: Their error curves by name, as `score_groups` makes them.
        allocation: `"global"` or `"layerwise"`.
        reconstruction: Whether the consumers' weights are refitted.
        rules: Which widths the groups may have; None: any.
        data: Inputs on which the consumers are refitted one after another to what those before
            them lost; None: each is fitted by itself.
        samples: How many of them are looked at; None takes all.
        positions: Output positions of a convolution that are read of each sample at most.
        seed: Of sampled positions.
        memory_limit: Bytes for the matrices that are needed at a time; None: a quarter of the
            free memory.
        progress: Shows how far it is.

    Returns:
        The `Plan`.

    Raises:
        ValueError: The budget cannot be met.
    """
    limit = checked_memory_limit(memory_limit)
    model = cost_model(graph)
    everything = np.ones(graph.count, bool)
    full = model.cost(model.lengths(everything))
    kept = allocate(
        groups,
        curves,
        model,
        budget,
        full=full,
        allocation=allocation,
        rules=rules,
    )
    after = model.cost(model.lengths(kept))
    weights: Weights = {}
    if reconstruction:
        weights = reconstructed_weights(graph, statistics, kept)
        if data is not None:
            weights = refitted_weights(
                graph,
                statistics,
                kept,
                weights,
                data,
                samples,
                positions=positions,
                seed=seed,
                memory_limit=limit,
                progress=None if progress is None else progress.passes(statistics.samples),
            )
    return Plan(
        model=model_fingerprint(graph),
        guidance=guidance.name or type(guidance).__name__,
        groups=tuple(_group_plan(group, kept, curves) for group in graph.groups),
        unknown=graph.kept,
        params=(round(full[0]), round(after[0])),
        flops=(round(full[1]), round(after[1])),
        samples=statistics.samples,
        weights={f"{path}:{number}": value for (path, number), value in weights.items()},
        fitted_to=reconstruction_fingerprint(graph, kept) if weights else "",
        notes=(
            *work_notes(graph),
            *statistics.notes,
            *scoring_notes(graph, statistics),
        ),
    )


def prunable_groups(graph: ChannelGraph, layers: Sequence[str] | None = None) -> list[ChannelGroup]:
    """The groups that may shrink.

    Args:
        graph: The model's channels.
        layers: Names or patterns of layers; None: all.

    Raises:
        TypeError: `layers` is no sequence of names.
        ValueError: A name fits no layer, or nothing can shrink.
    """
    prunable = [group for group in graph.groups if group.prunable]
    if layers is not None:
        if (
            isinstance(layers, str)
            or not isinstance(layers, Iterable)
            or not all(isinstance(name, str) for name in layers)
        ):
            raise TypeError(
                "layers must be a list of layer names or patterns, for example ['conv*']. "
                f"Received: {layers!r}"
            )
        for pattern in layers:
            if not any(fits(group, pattern) for group in graph.groups):
                raise ValueError(
                    f"No layer that makes channels is called '{pattern}'. There are: "
                    f"{', '.join(name for group in graph.groups for name in group.producers)}."
                )
        prunable = [g for g in prunable if any(fits(g, pattern) for pattern in layers)]
    if not prunable:
        why = [(g.name, ", ".join(g.reasons) or "not among layers") for g in graph.groups]
        reasons = "; ".join(f"'{name}': {reason}" for name, reason in [*why, *graph.kept][:5])
        raise ValueError(
            f"No channel of model '{graph.program.model.name}' can be removed. "
            f"{reasons or 'It has no layer that makes channels.'}"
        )
    return prunable


def check_budget_can_be_met(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], budget: Budget, rules: WidthRules
) -> None:
    """Says whether a budget has a meaning for a model and can be met.

    Raises:
        ValueError: Even the narrowest model costs more, or FLOPs depend on sizes that the model's
            inputs leave open.
    """
    open_sizes = [shape for shape in input_shapes(graph) if None in shape[1:]]
    if budget.flops is not None and open_sizes:
        raise ValueError(
            f"{budget} can't be checked: an input of model '{graph.program.model.name}' has the "
            f"shape {open_sizes[0]}, and FLOPs depend on the sizes left open. Build the model with "
            "a fixed keras.Input shape, or limit its parameters: Budget(params=0.5)."
        )
    if budget.flops is not None:
        warn_of_uncounted(graph)
    curves = {
        g.name: ErrorCurve(np.flatnonzero(g.removable), np.zeros(int(g.removable.sum()) + 1))
        for g in groups
    }
    model = cost_model(graph)
    full = model.cost(model.lengths(np.ones(graph.count, bool)))
    allocate(groups, curves, model, budget, full=full, rules=rules)


def _group_plan(group: ChannelGroup, kept: Mask, curves: Mapping[str, ErrorCurve]) -> GroupPlan:
    stays = kept[group.channels]
    removed = int((~stays).sum())
    return GroupPlan(
        name=group.name,
        layers=group.producers,
        size=group.size,
        kept=tuple(int(i) for i in np.flatnonzero(stays)),
        error=float(curves[group.name].errors[removed]) if removed else 0.0,
        note="; ".join(group.reasons),
    )
