"""Makes a plan: reads the model, runs the calibration pass, scores, allocates, reconstructs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.graph.groups import ChannelGraph, ChannelGroup, channel_graph
from sgdap.guidance.base import Guidance, get_guidance
from sgdap.guidance.elimination import ErrorCurve
from sgdap.guidance.score import score_groups, scoring_notes
from sgdap.planning.allocation import allocate
from sgdap.planning.budget import Budget, check_budget
from sgdap.planning.cost import cost_model, input_shapes
from sgdap.planning.plan import GroupPlan, Plan, model_fingerprint, reconstruction_fingerprint
from sgdap.planning.progress import Progress
from sgdap.planning.refit import Weights, reconstructed_weights, refitted_weights
from sgdap.planning.widths import WidthRules, fits, width_rules
from sgdap.statistics.collect import CalibrationStatistics, collect_statistics
from sgdap.statistics.data import reusable
from sgdap.statistics.memory import checked_memory_limit

Mask = npt.NDArray[np.bool_]


def plan(
    model: Any,
    data: Any,
    budget: Budget,
    *,
    guidance: str | Guidance = "lasso",
    allocation: str = "global",
    reconstruction: bool = True,
    layers: Sequence[str] | None = None,
    min_channels: int = 1,
    round_to: int = 1,
    overrides: Mapping[str, float] | None = None,
    samples: int | None = 4096,
    folds: int = 5,
    positions: int = 32,
    seed: int = 0,
    memory_limit: int | None = None,
    verbose: int = 0,
) -> Plan:
    """Decides which channels of a model stay, so that it meets a budget at the least loss.

    Args:
        model: A built `keras.Sequential` or functional `keras.Model`; it is not changed.
        data: Calibration inputs: an array, a list or dict of arrays, a tuple `(x, y)`, a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator. Targets are not needed.
        budget: What the slim model may cost.
        guidance: A criterion by name or object: `"lasso"`, `"second_order"`, `"magnitude"`,
            `"activation"`, `"taylor"`, `"fpgm"`, `"batch_norm_scale"`, `"correlation"`,
            `"growth"`, `"random"`.
        allocation: `"global"`: channels leave where the loss rises least for what is saved;
            `"layerwise"`: the same share of every group.
        reconstruction: Whether the consumers' weights are refitted to the channels that stay.
        layers: Names or patterns (`"conv*"`) of the layers whose channels may leave; None: all.
        min_channels: No group gets narrower than this.
        round_to: Groups that shrink get a multiple of this many channels; 8 suits most hardware.
        overrides: For names or patterns of layers the share of their channels to keep, whatever
            the guidance says: `{"stem*": 1.0}`; the first that fits holds.
        samples: How many calibration samples are looked at; None takes all.
        folds: Folds of the cross-validation.
        positions: Output positions of a convolution that are read of each sample at most.
        seed: Of sampled positions and targets.
        memory_limit: Bytes for all moments together, and for the tensors of one batch; None: a
            quarter of the free memory. What is given up for it stands in the plan's `notes`.
        verbose: 1 shows what is done, how far it is and how long it took; 0 shows nothing.

    Returns:
        The `Plan`; hand it to `sgdap.apply`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The model is not built, no sample or no finite activation was found, a layer
            is unknown, the budget cannot be met, or `memory_limit` is too small for anything.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, "relu"),
        ...                           keras.layers.Dense(3, "softmax")])
        >>> plan = sgdap.plan(model, np.random.rand(64, 8), sgdap.Budget(flops=0.5))
        >>> slim = sgdap.apply(model, plan)
        >>> slim.count_params() <= model.count_params() / 2 + 3
        True
    """
    check_budget(budget)
    if budget.latency is not None:
        raise ValueError(
            f"{budget}: sgdap.plan counts, it does not measure. Latency is a limit in "
            "SGDAPCallback; for sgdap.plan, give a limit of FLOPs and look at "
            "sgdap.profile(slim).latency."
        )
    if not isinstance(reconstruction, bool):
        raise TypeError(
            f"reconstruction must be True or False. Received: reconstruction={reconstruction!r}"
        )
    criterion = get_guidance(guidance)
    limit = checked_memory_limit(memory_limit)
    graph = channel_graph(model)
    groups = prunable_groups(graph, layers)
    criterion.check(graph, groups)
    rules = width_rules(groups, min_channels, round_to, overrides)
    check_budget_can_be_met(graph, groups, budget, rules)
    data = reusable(data, samples)
    with Progress(verbose) as progress:
        statistics = collect_statistics(
            graph,
            data,
            folds=folds,
            samples=samples,
            positions=positions,
            seed=seed,
            memory_limit=limit,
            progress=progress.samples("calibration", samples),
        )
        return plan_from_statistics(
            graph,
            statistics,
            budget,
            criterion,
            groups=groups,
            allocation=allocation,
            reconstruction=reconstruction,
            rules=rules,
            data=data,
            samples=samples,
            positions=positions,
            seed=seed,
            memory_limit=limit,
            progress=progress,
        )


def plan_from_statistics(
    graph: ChannelGraph,
    statistics: CalibrationStatistics,
    budget: Budget,
    guidance: Guidance,
    *,
    groups: Sequence[ChannelGroup],
    allocation: str = "global",
    reconstruction: bool = True,
    rules: WidthRules | None = None,
    data: Any = None,
    samples: int | None = None,
    positions: int = 32,
    seed: int = 0,
    memory_limit: int | None = None,
    progress: Progress | None = None,
    curves: Mapping[str, ErrorCurve] | None = None,
) -> Plan:
    """Makes a plan from a calibration pass that was run already.

    Args:
        graph: The model's channels.
        statistics: The result of a calibration pass over the same model.
        budget: What the slim model may cost.
        guidance: The criterion.
        groups: The groups that may shrink.
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
        curves: The groups' error curves where they are known already.

    Returns:
        The `Plan`.

    Raises:
        ValueError: The budget cannot be met.
    """
    limit = checked_memory_limit(memory_limit)
    progress = progress or Progress(0)
    if curves is None:
        curves = score_groups(
            graph,
            statistics,
            guidance,
            groups=groups,
            reconstruction=reconstruction,
            memory_limit=limit,
            progress=progress.groups(len(groups)),
        )
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
                progress=progress.passes(statistics.samples),
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
        notes=(*statistics.notes, *scoring_notes(graph, statistics)),
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
        reasons = "; ".join(
            f"'{g.name}': {', '.join(g.reasons) or 'not among layers'}" for g in graph.groups[:5]
        )
        raise ValueError(
            f"No channel of model '{graph.program.model.name}' can be removed. {reasons}"
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
