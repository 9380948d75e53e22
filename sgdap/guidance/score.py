"""Scores the groups of a model: from calibration statistics to an error curve for each group."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from sgdap import _keras
from sgdap.graph.groups import ChannelGraph, ChannelGroup
from sgdap.guidance.base import GroupData, Guidance
from sgdap.guidance.elimination import Consumer, ErrorCurve, eliminate, removal_errors
from sgdap.statistics.activation import activation_statistics
from sgdap.statistics.collect import CalibrationStatistics, ConsumerStatistics

Array = npt.NDArray[np.float64]


def score_groups(
    graph: ChannelGraph,
    statistics: CalibrationStatistics,
    guidance: Guidance,
    *,
    reconstruction: bool = True,
    progress: Callable[[ChannelGroup], None] | None = None,
) -> dict[str, ErrorCurve]:
    """Scores every prunable group of a model.

    Args:
        graph: The model's channels.
        statistics: The result of a calibration pass over the same model.
        guidance: The criterion.
        reconstruction: Whether the consumers' weights will be refitted to the channels that stay.
        progress: Called with each group before it is scored.

    Returns:
        The `ErrorCurve` of each prunable group by name. With sensitivities in the statistics,
        errors are in units of loss and comparable between groups; without, each consumer's error
        is relative to the power of its outputs. A group that no linear layer reads (recurrent or
        grouped layers, say) is scored by the norm of its filters.
    """
    groups = [group for group in graph.groups if group.prunable]

    def curve(group: ChannelGroup) -> ErrorCurve:
        if progress is not None:
            progress(group)
        data = group_data(graph, group, statistics)
        if not data.consumers:
            return filter_norm_curve(data)
        order = guidance.order(data)
        if reconstruction:
            return eliminate(data.consumers, data.candidates, order, guidance.refinement)
        if order is None:
            order = eliminate(data.consumers, data.candidates).order
        return removal_errors(data.consumers, order)

    # Threads of the linear algebra would wait for each other: one each, the groups side by side.
    with threadpool_limits(limits=1, user_api="blas"):
        curves = Parallel(n_jobs=-1, prefer="threads")(delayed(curve)(g) for g in groups)
    return {group.name: found for group, found in zip(groups, curves, strict=True)}


def filter_norm_curve(data: GroupData) -> ErrorCurve:
    """The curve of a group that no linear layer reads: its filters' squared norms.

    They are scaled so that losing the whole group costs a loss of 1.
    """
    norms = sum((f**2).sum(axis=1) for f in data.filters) + np.zeros(data.size)
    order = data.candidates[np.argsort(norms[data.candidates], kind="stable")]
    errors = np.append(0.0, np.cumsum(norms[order]))
    return ErrorCurve(order, errors / max(float(norms.sum()), np.finfo(float).tiny))


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
    for own in statistics.consumers.values():
        channels = local[own.linear.features]
        if (channels < 0).all():
            continue
        kernel = kernel_matrix(layers[own.linear.path], own)
        total = own.moments.total()
        count = max(float(total.count[0]), 1.0)
        second = total.second[0] / count
        consumers.append(Consumer(second, total.mean[0], _weighted(kernel, second, own), channels))
        moments.append(own.moments)
        activations.append(activation_statistics(own.moments, channels))
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
        moments=tuple(moments),
        filters=tuple(filters),
        activations=tuple(activations),
        scales=tuple(scales),
        taylor=tuple(taylor),
    )


def _by_channel(values: Array, channels: npt.NDArray[np.int64], size: int) -> Array:
    """Sums what belongs to each channel of a group, `(size, …)`; -1 belongs to none."""
    whole = np.zeros((size, *values.shape[1:]))
    np.add.at(whole, channels[channels >= 0], values[channels >= 0])
    return whole


def kernel_matrix(layer: object, statistics: ConsumerStatistics) -> Array:
    """A consumer's kernel as a matrix, `(features, outputs)`."""
    kernel = _keras.layer_variables(layer)[statistics.linear.kernel].numpy()
    matrix: Array = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    return matrix


def _weighted(kernel: Array, second: Array, statistics: ConsumerStatistics) -> Array:
    """The kernel times the root of the sensitivity of its outputs."""
    if statistics.sensitivity is None:
        power = float(np.einsum("io,ij,jo->", kernel, second, kernel, optimize=True))
        relative: Array = kernel / np.sqrt(max(power, np.finfo(float).tiny))
        return relative
    values, vectors = np.linalg.eigh(statistics.sensitivity)
    weighted: Array = kernel @ (vectors * np.sqrt(np.maximum(values, 0)))
    return weighted
