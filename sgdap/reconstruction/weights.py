"""The slim weights of consumers, each fitted by itself to the channels that stay."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.groups import ChannelGraph
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
    """The slim kernels and biases of all consumers that lose features, fitted to the others.

    Args:
        graph: The model's channels.
        statistics: The result of a calibration pass over the same model.
        kept: Which channels stay, `(channels,)`.

    Returns:
        New values by path of the layer and number of the variable.
    """
    updates: Weights = {}
    layers = graph.program.layers()
    for path, own in statistics.consumers.items():
        place = own.place
        stays = kept[place.features]
        if place.kernel is None or not place.refittable or stays.all():
            continue
        kernel = kernel_matrix(place, layers[path])[:, kept[place.outputs]]
        if own.gathered is None:
            total = own.moments.total()
            mean = total.mean[0]
            second = total.about(0 * mean if place.bias is None else mean) / total.rows
            fitted, offset = reconstruct(second, mean, kernel, stays)
        else:
            fitted, offset = _rescaled(own, own.gathered.total(), kernel, kept)
        variables = _keras.layer_variables(layers[path])
        spatial = tuple(variables[place.kernel].shape[:-2])
        shape = (*spatial, len(fitted) // int(np.prod(spatial, initial=1)), fitted.shape[1])
        updates[(path, place.kernel)] = fitted.reshape(shape).astype(np.float32)
        if place.bias is not None:
            bias = variables[place.bias].numpy()[kept[place.outputs]]
            updates[(path, place.bias)] = (bias + offset).astype(np.float32)
    return updates


def _rescaled(
    statistics: ConsumerStatistics, gathered: Moments, kernel: Array, kept: Mask
) -> tuple[Array, Array]:
    """The kernel on the kept features with a factor for each channel, and what the bias gains.

    The factors are the least squares optimum on the contributions of whole channels. They are 1
    where only each channel's own power is known.
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
