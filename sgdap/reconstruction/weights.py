"""The slim weights of consumers, each fitted by itself; never runs or changes the model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import sliced, variable_of, variable_slices
from sgdap.execution.taps import kernel_matrix
from sgdap.reconstruction.closed_form import reconstruct
from sgdap.statistics.collect import CalibrationStatistics, ConsumerStatistics
from sgdap.statistics.moments import Moments

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Weights = dict[tuple[str, int], npt.NDArray[np.float32]]
"""Slim values of variables by path of the layer and number of the variable."""


def reconstructed_weights(
    graph: ChannelGraph, statistics: CalibrationStatistics, kept: Mask
) -> Weights:
    """The slim kernels and biases of all consumers that lose features, fitted to the kept ones.

    Args:
        graph: The model's channels.
        statistics: The result of a calibration pass over the same model.
        kept: A mask of the model's channels, True for those that stay, `(channels,)`.

    Returns:
        The new values, by path of the layer and number of the variable.
    """
    updates: Weights = {}
    slices = variable_slices(graph, kept)
    for own in statistics.consumers.values():
        place = own.place
        stays = kept[place.features]
        if place.kernel is None or not place.refittable or stays.all():
            continue
        call = graph.program.calls[place.call]
        kernel = kernel_matrix(place, call.operation)[:, place.kept_outputs(kept)]
        if own.gathered is None:
            total = own.moments.total()
            mean = total.mean[0]
            second = total.about(0 * mean if place.bias is None else mean) / total.rows
            fitted, offset = reconstruct(second, mean, kernel, stays)
        else:
            fitted, offset = _rescaled(own, own.gathered.total(), kernel, kept)
        for number, made in ((place.kernel, fitted), (place.bias, offset)):
            if number is None:
                continue
            key = (call.path, number)
            if key not in updates:
                updates[key] = sliced(variable_of(graph.program, key).numpy(), slices.get(key, []))
            read = place.patches
            change = read.with_matrix if number == place.kernel else read.with_offset
            updates[key] = change(updates[key], made).astype(np.float32)
    return updates


def _rescaled(
    statistics: ConsumerStatistics, gathered: Moments, kernel: Array, kept: Mask
) -> tuple[Array, Array]:
    """The kernel of the kept features, scaled by one factor per channel, and the bias's change.

    The factors are the least-squares optimum on the contributions of whole channels. They are 1
    if the moments hold only the power of each channel, not products of two channels.
    """
    place = statistics.place
    stays = kept[place.features]
    distinct, number = np.unique(place.features, return_inverse=True)
    point = np.zeros_like(gathered.mean[0]) if place.bias is None else gathered.mean[0]
    second = gathered.about(point) / gathered.rows
    ones = np.ones((len(distinct), 1))
    factors = np.ones(len(distinct))
    refitted, _ = reconstruct(second, np.zeros(len(distinct)), ones, kept[distinct])
    factors[kept[distinct]] = refitted[:, 0]
    fitted = kernel[stays] * factors[number[stays], None]
    mean = statistics.moments.total().mean[0]
    return fitted, mean @ kernel - mean[stays] @ fitted
