"""Scores the groups of a model: from calibration statistics to an error curve for each group."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial

import numpy as np
import numpy.typing as npt
from joblib import cpu_count
from threadpoolctl import ThreadpoolController

from sgdap import _keras
from sgdap.channels.groups import ChannelGraph, ChannelGroup, check_is_graph
from sgdap.execution.memory import checked_memory_limit
from sgdap.execution.triangle import is_made_anew
from sgdap.guidance.base import GroupData, Guidance
from sgdap.guidance.criteria import is_batch_norm_scale
from sgdap.guidance.elimination import PENDING, Consumer, ErrorCurve, eliminate, scale_of
from sgdap.guidance.growth import growth_rates
from sgdap.statistics.activation import activation_statistics
from sgdap.statistics.collect import CalibrationStatistics, ConsumerStatistics
from sgdap.statistics.contributions import weighted_kernel
from sgdap.statistics.moments import Moments, Powers

Array = npt.NDArray[np.float64]

_LIMITED = threading.Lock()
"""Held while the linear algebra of the process is limited: the last to leave takes it back."""


@cache
def _linear_algebra() -> ThreadpoolController:
    """The libraries of the process that compute with threads; to look for them takes 10 ms."""
    return ThreadpoolController()


def score_groups(
    graph: ChannelGraph,
    statistics: CalibrationStatistics,
    guidance: Guidance,
    *,
    groups: Sequence[ChannelGroup] | None = None,
    reconstruction: bool = True,
    choose: bool = False,
    memory_limit: int | None = None,
    progress: Callable[[ChannelGroup], None] | None = None,
) -> dict[str, ErrorCurve]:
    """Scores groups of a model.

    Args:
        graph: The model's channels.
        statistics: The result of a calibration pass over the same model.
        guidance: The criterion.
        groups: Prunable groups; None: all.
        reconstruction: Whether the consumers' weights will be refitted to the channels that stay.
        choose: Whether the criterion also says how many channels leave (`ErrorCurve.wanted`). These
            are the first in the order then. Groups that are nowhere seen stay whole.
        memory_limit: Fewer groups are scored side by side where their matrices and the statistics
            would need more bytes than this; None: as for `collect_statistics`.
        progress: Called with each group before it is scored.

    Returns:
        The `ErrorCurve` of each group by name. With sensitivities in the statistics,
        errors are in units of loss and comparable between groups; without, each consumer's error
        is relative to the power of its outputs. What others read (ConvLSTM, recurrent states,
        operations), whose weights are never refitted, costs what zeroing it there does. A
        group that is nowhere seen, inside a wrapper, costs the norm of its filters; the criterion
        gives its order unless it looks at consumers. Where memory allowed to know only each
        channel's own contribution, channels cost their power.

    Raises:
        TypeError: `graph` is no `ChannelGraph`.
    """
    check_is_graph("graph", graph)
    if groups is None:
        groups = [group for group in graph.groups if group.prunable]
    work = {group.name: _working_memory(group, statistics, graph.count) for group in groups}
    free = checked_memory_limit(memory_limit) - statistics.nbytes
    side_by_side = free // max([*work.values(), 1])

    def curve(group: ChannelGroup) -> ErrorCurve:
        if progress is not None:
            progress(group)
        data = group_data(graph, group, statistics)
        asked = data.consumers or not guidance.looks_at_consumers
        order = guidance.order(data) if asked else None
        refinement, wanted = guidance.refinement, None
        if choose:
            stay = guidance.keeps(data) if data.consumers else data.candidates
            order = data.candidates if order is None else order
            last = np.isin(order, stay)
            order, refinement = np.concatenate([order[~last], order[last]]), 0.0
            wanted = int((~last).sum())
        found = eliminate(
            data.consumers or (_by_filters(data),),
            data.candidates,
            order,
            refinement,
            reconstruction=reconstruction,
        )
        return replace(found, wanted=wanted)

    # Threads of the linear algebra would wait for each other: one each, the groups side by side.
    with _LIMITED, _linear_algebra().limit(limits=1, user_api="blas"):
        largest_first = sorted(groups, key=lambda group: work[group.name], reverse=True)
        workers = max(1, min(side_by_side, cpu_count()))
        with ThreadPoolExecutor(workers) as threads:
            curves = list(threads.map(curve, largest_first))
    by_name = {g.name: found for g, found in zip(largest_first, curves, strict=True)}
    return {group.name: by_name[group.name] for group in groups}


def _working_memory(group: ChannelGroup, statistics: CalibrationStatistics, channels: int) -> int:
    """Bytes that scoring a group needs at most.

    For each consumer there are the inverse, the weights and the columns that wait, and for one at
    a time the whole matrix and the sum over the folds.
    """
    member = np.zeros(channels, bool)
    member[group.channels] = True
    total, summed = 8 * 6 * group.size**2, 0
    for own in statistics.consumers.values():
        if member[own.place.features].any():
            known = own.moments if own.gathered is None else own.gathered
            size = known.mean.shape[1] if known.has_products else 0
            total += 8 * size * (size + 3 * own.place.weighed + PENDING)
            summed = max(summed, 8 * size**2 * ((known.folds > 1) + is_made_anew(size)))
    return total + summed


def scoring_notes(graph: ChannelGraph, statistics: CalibrationStatistics) -> tuple[str, ...]:
    """Names the prunable groups that can't be scored by what their consumers need, and why."""
    read = np.zeros(graph.count, bool)
    alone = np.zeros(graph.count, bool)
    for own in statistics.consumers.values():
        read[own.place.features] = True
        if own.gathered is not None and not own.gathered.has_products:
            alone[own.place.features] = True
    prunable = [group for group in graph.groups if group.prunable]
    notes = []
    for reason, names in (
        (
            "Scored by the norm of their filters, because they lie inside a wrapper and can't be "
            "seen (losing all channels counts as a loss of 1)",
            [g.name for g in prunable if not read[g.channels].any()],
        ),
        (
            "Scored by the power of each channel's own contribution, because memory_limit allows "
            "no products between channels",
            [g.name for g in prunable if alone[g.channels].any()],
        ),
    ):
        if names:
            notes.append(f"{reason}: {', '.join(names)}.")
    return tuple(notes)


def _by_filters(data: GroupData) -> Consumer:
    """Stands in for the consumers of a group that is nowhere seen: its filters' squared norms.

    They are scaled so that losing the whole group costs a loss of 1.
    """
    norms = sum((f**2).sum(axis=1) for f in data.filters) + np.zeros(data.size)
    powers = 2 * norms / scale_of(float(norms.sum()))
    moments = Powers(np.ones(1), np.zeros((1, data.size)), powers[None])
    return Consumer(moments, np.ones((data.size, 1)), np.arange(data.size), refittable=False)


def group_data(
    graph: ChannelGraph, group: ChannelGroup, statistics: CalibrationStatistics
) -> GroupData:
    """Gathers what a criterion may look at for one group.

    Args:
        graph: The model's channels.
        group: One of its groups.
        statistics: The result of a calibration pass over the same model.

    Returns:
        The group's `GroupData`.
    """
    local = np.full(graph.count, -1, np.int64)
    local[group.channels] = np.arange(group.size)
    calls, layers = graph.program.calls, graph.program.layers()
    consumers = [
        _consumer(own, calls[own.place.call].operation, local, group.size)
        for own in statistics.consumers.values()
        if (local[own.place.features] >= 0).any()
    ]
    filters, scales = [], []
    for axis in graph.axes:
        channels = local[axis.channels]
        layer = layers[axis.path]
        variable = _keras.layer_variables(layer)[axis.variable]
        if is_batch_norm_scale(layer, axis):
            if (channels >= 0).any():
                scales.append(_by_channel(np.abs(variable.numpy()), channels, group.size))
            continue
        if axis.role != "producer" or (channels < 0).all() or len(variable.shape) < 2:
            continue
        rows = np.moveaxis(variable.numpy(), axis.axis, 0).reshape(len(channels), -1)
        filters.append(_by_channel(rows, channels, group.size))
    return GroupData(
        name=group.name,
        size=group.size,
        candidates=np.flatnonzero(group.removable),
        consumers=tuple(consumers),
        filters=tuple(filters),
        scales=tuple(scales),
        growth=growth_rates(graph, group),
    )


def _by_channel(values: Array, channels: npt.NDArray[np.int64], size: int) -> Array:
    """Sums what belongs to each channel of a group, `(size, …)`; -1 belongs to none."""
    whole = np.zeros((size, *values.shape[1:]))
    np.add.at(whole, channels[channels >= 0], values[channels >= 0])
    return whole


def _consumer(
    statistics: ConsumerStatistics, layer: object, local: npt.NDArray[np.int64], size: int
) -> Consumer:
    """What is known of a consumer, of one group.

    Args:
        statistics: The consumer's statistics.
        layer: The layer or operation that is called there.
        local: For each channel of the model its number in the group, or -1.
        size: Number of channels in the group.
    """
    place = statistics.place
    channels, distinct = local[place.features], local[np.unique(place.features)]
    taylor = statistics.taylor
    if statistics.gathered is None:
        weights = statistics.weighed_matrix(layer)
        moments = statistics.moments
        look = partial(activation_statistics, moments, channels)
    else:
        moments, weights = statistics.gathered, np.ones((len(distinct), 1))
        placed = moments.contributions(weights, distinct, size)
        look = partial(activation_statistics, statistics.moments, channels, placed)
        channels = distinct
    if statistics.sensitivity is None:
        weights = weights / np.sqrt(scale_of(_power(moments, weights)))
    elif statistics.gathered is None:
        weights = weighted_kernel(weights, statistics.sensitivity)
    return Consumer(
        moments,
        weights,
        channels,
        place.refittable,
        look,
        None if taylor is None else _by_channel(taylor, distinct, size),
    )


def _power(moments: Moments, weights: Array) -> float:
    """The power of all outputs about their mean."""
    one = moments.total().contributions(weights, np.zeros(len(weights), np.int64), 1)
    return float(one.second.sum()) / one.rows
