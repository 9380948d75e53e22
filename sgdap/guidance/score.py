"""Scores the groups of a model: from calibration statistics to an error curve for each group."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import keras
import numpy as np
import numpy.typing as npt
from joblib import Parallel, cpu_count, delayed
from threadpoolctl import threadpool_limits

from sgdap import _keras
from sgdap.channels.facts import Linear
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.execution.memory import checked_memory_limit
from sgdap.execution.taps import kernel_matrix
from sgdap.guidance.base import GroupData, Guidance
from sgdap.guidance.elimination import Consumer, ErrorCurve, eliminate, scale_of
from sgdap.guidance.growth import growth_rates
from sgdap.statistics.activation import activation_statistics
from sgdap.statistics.collect import CalibrationStatistics, ConsumerStatistics
from sgdap.statistics.contributions import Contributions, weighted_kernel

Array = npt.NDArray[np.float64]

_LIMITED = threading.Lock()
"""Held while the linear algebra of the process is limited: the last to leave takes it back."""


def score_groups(
    graph: ChannelGraph,
    statistics: CalibrationStatistics,
    guidance: Guidance,
    *,
    groups: Sequence[ChannelGroup] | None = None,
    reconstruction: bool = True,
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
        memory_limit: Fewer groups are scored side by side where their matrices would need more
            bytes than this; None: a quarter of the free memory.
        progress: Called with each group before it is scored.

    Returns:
        The `ErrorCurve` of each group by name. With sensitivities in the statistics,
        errors are in units of loss and comparable between groups; without, each consumer's error
        is relative to the power of its outputs. What others read (recurrent, grouped or attention
        layers, operations), whose weights are never refitted, costs what zeroing it there does. A
        group that is nowhere seen, inside a wrapper, is scored by the norm of its filters; one of
        which memory allowed to know only each channel's own contribution, by their power.
    """
    if groups is None:
        groups = [group for group in graph.groups if group.prunable]
    work = {group.name: _working_memory(group, statistics, graph.count) for group in groups}
    side_by_side = checked_memory_limit(memory_limit) // max(*work.values(), 1)

    def curve(group: ChannelGroup) -> ErrorCurve:
        if progress is not None:
            progress(group)
        data = group_data(graph, group, statistics)
        if not data.consumers:
            return filter_norm_curve(data)
        if data.alone:
            return power_curve(data, reconstruction)
        fitted = data.consumers[: data.fitted] if reconstruction else ()
        return eliminate(
            fitted,
            data.candidates,
            guidance.order(data),
            guidance.refinement,
            others=data.consumers[len(fitted) :],
        )

    # Threads of the linear algebra would wait for each other: one each, the groups side by side.
    with _LIMITED, threadpool_limits(limits=1, user_api="blas"):
        largest_first = sorted(groups, key=lambda group: work[group.name], reverse=True)
        workers = max(1, min(side_by_side, cpu_count()))
        curves = Parallel(n_jobs=workers, prefer="threads")(
            delayed(curve)(group) for group in largest_first
        )
    by_name = {g.name: found for g, found in zip(largest_first, curves, strict=True)}
    return {group.name: by_name[group.name] for group in groups}


def _working_memory(group: ChannelGroup, statistics: CalibrationStatistics, channels: int) -> int:
    """Bytes that scoring a group needs at most: for each consumer three matrices of its size."""
    member = np.zeros(channels, bool)
    member[group.channels] = True
    total = 8 * 4 * group.size**2
    for own in (*statistics.consumers.values(), *statistics.readings.values()):
        if member[own.linear.features].any():
            size = len(own.linear.features)
            if own.gathered is not None:
                size = 0 if own.gathered.alone else own.gathered.gram.shape[-1]
            total += 8 * 3 * size**2
    return total


def scoring_notes(graph: ChannelGraph, statistics: CalibrationStatistics) -> tuple[str, ...]:
    """Says which prunable groups can't be scored by what their consumers need, and why."""
    read = np.zeros(graph.count, bool)
    alone = np.zeros(graph.count, bool)
    for own in (*statistics.consumers.values(), *statistics.readings.values()):
        read[own.linear.features] = True
        if own.gathered is not None and own.gathered.alone:
            alone[own.linear.features] = True
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


def power_curve(data: GroupData, reconstruction: bool) -> ErrorCurve:
    """The curve where channels are taken to be uncorrelated: their contributions' powers add up.

    With reconstruction the offset makes up for the mean of what is removed, where it is refitted.
    """
    powers = np.zeros(data.size)
    for number, total in enumerate(data.contributions(merged=True)):
        gram = total.gram[0] if total.alone else np.diag(total.gram[0])
        powers += gram / max(float(total.count[0]), 1.0)
        if not reconstruction or number >= data.fitted:
            powers += (total.mean[0] ** 2).sum(axis=1)
    order = data.candidates[np.argsort(powers[data.candidates], kind="stable")]
    return ErrorCurve(order, np.append(0.0, np.cumsum(powers[order]) / 2))


def filter_norm_curve(data: GroupData) -> ErrorCurve:
    """The curve of a group that is nowhere seen: its filters' squared norms.

    They are scaled so that losing the whole group costs a loss of 1.
    """
    norms = sum((f**2).sum(axis=1) for f in data.filters) + np.zeros(data.size)
    order = data.candidates[np.argsort(norms[data.candidates], kind="stable")]
    errors = np.append(0.0, np.cumsum(norms[order]))
    return ErrorCurve(order, errors / scale_of(float(norms.sum())))


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
    layers = graph.program.layers()
    consumers, moments, activations, taylor = [], [], [], []
    gathered: list[Contributions | None] = []
    fitted = 0
    for own in (*statistics.consumers.values(), *statistics.readings.values()):
        channels = local[own.linear.features]
        if (channels < 0).all():
            continue
        fitted += isinstance(own.linear, Linear)
        moments.append(own.moments)
        if own.gathered is None:
            consumers.append(_of_features(layers.get(own.linear.path), own, channels))
            activations.append(activation_statistics(own.moments, channels))
            gathered.append(None)
        else:
            consumer = _of_contributions(own, local[np.unique(own.linear.features)])
            consumers.append(consumer)
            placed = _relative(own).scattered(consumer.channels, group.size)
            gram = None if placed.alone else placed.total().gram[0]
            reach = int(channels.max()) + 1
            activations.append(
                activation_statistics(
                    own.moments, channels, None if gram is None else gram[:reach, :reach]
                )
            )
            gathered.append(placed)
        if own.taylor is not None:
            taylor.append(
                _by_channel(own.taylor, local[np.unique(own.linear.features)], group.size)
            )
    filters, scales = [], []
    for axis in graph.axes:
        channels = local[axis.channels]
        layer = layers[axis.path]
        variable = _keras.layer_variables(layer)[axis.variable]
        if isinstance(layer, keras.layers.BatchNormalization) and variable is layer.gamma:
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
        fitted=fitted,
        moments=tuple(moments),
        gathered=tuple(gathered),
        filters=tuple(filters),
        activations=tuple(activations),
        scales=tuple(scales),
        growth=growth_rates(graph, group),
        taylor=tuple(taylor),
    )


def _by_channel(values: Array, channels: npt.NDArray[np.int64], size: int) -> Array:
    """Sums what belongs to each channel of a group, `(size, …)`; -1 belongs to none."""
    whole = np.zeros((size, *values.shape[1:]))
    np.add.at(whole, channels[channels >= 0], values[channels >= 0])
    return whole


def _of_features(
    layer: object, statistics: ConsumerStatistics, channels: npt.NDArray[np.int64]
) -> Consumer:
    """A consumer by the moments of its features."""
    kernel = kernel_matrix(statistics.linear, layer)
    total = statistics.moments.total()
    second = total.second[0] / max(float(total.count[0]), 1.0)
    weights = weighted_kernel(kernel, statistics.sensitivity)
    if statistics.sensitivity is None:
        power = float(np.einsum("io,ij,jo->", kernel, second, kernel, optimize=True))
        weights = kernel / np.sqrt(scale_of(power))
    return Consumer(second, total.mean[0], weights, channels)


def _of_contributions(statistics: ConsumerStatistics, channels: npt.NDArray[np.int64]) -> Consumer:
    """A consumer whose features are the contributions of whole channels, each with weight 1."""
    total = _relative(statistics).total()
    second = total.gram[0] / max(float(total.count[0]), 1.0)
    return Consumer(second, total.mean[0], np.ones((len(second), 1)), channels)


def _relative(statistics: ConsumerStatistics) -> Contributions:
    """Gathered contributions; without sensitivity relative to the power of all of them."""
    own = statistics.gathered
    assert own is not None
    if statistics.sensitivity is not None:
        return own
    total = own.total()
    power = float(total.gram[0].sum()) / max(float(total.count[0]), 1.0)
    scale = 1 / scale_of(power)
    return Contributions(own.count, own.mean * np.sqrt(scale), own.gram * scale)
