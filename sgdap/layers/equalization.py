"""Moves scales of channels between neighbouring layers until ranges are even; never trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.channels.grouping import channel_graph
from sgdap.channels.slices import variable_of
from sgdap.layers.scaling import Scalable, ScaledAxis, scalable_channels
from sgdap.model.kernels import is_kernel

Array = npt.NDArray[np.float64]
Key = tuple[str, int]

SWEEPS = 50
"""Times that all channels are looked at, at most."""

ENOUGH = 1e-3
"""A smaller change of the logarithms of all scales ends the search."""

MOST = 2.0**16
"""The largest scale: beyond it float32 would lose small numbers."""


def equalize(model: Any) -> None:
    """Scales the channels of a model, in place, so that it computes the same with even ranges.

    A channel gets the scale `s = √(r₂ / r₁)`, where r₁ is the largest weight that makes it and r₂
    the largest one that reads it: what makes it is multiplied with s, what reads it divided by s,
    and both have the range `√(r₁ r₂)` then. Of several kernels on a side the geometric mean counts.
    Channels are scaled in turn until nothing changes.

    Args:
        model: A Keras model; its weights change.

    Reference:
        Nagel et al. 2019, "Data-free quantization through weight equalization and bias
        correction", arXiv 1906.04721, section 4.1.
    """
    graph = channel_graph(model)
    found = scalable_channels(graph)
    keys = {(axis.path, axis.variable) for own in found for axis in own.axes}
    variables = {key: variable_of(graph.program, key) for key in keys}
    kernels = {key for key, variable in variables.items() if is_kernel(variable)}
    given = {key: np.asarray(v.numpy(), np.float64) for key, v in variables.items()}
    scales = [np.ones(len(own.channels)) for own in found]
    ranges = {key: np.abs(given[key]) for key in kernels}
    for _ in range(SWEEPS):
        largest = 0.0
        for own, scale in zip(found, scales, strict=True):
            wanted = np.clip(scale * even_scales(*_sides(own, ranges)), 1 / MOST, MOST)
            step = wanted / scale
            scale[:] = wanted
            largest = max(largest, float(np.abs(np.log(step)).max(initial=0.0)))
            _multiply(ranges, own, step)
        if largest < ENOUGH:
            break
    for own, scale in zip(found, scales, strict=True):
        _multiply(given, own, scale)
    for key, variable in variables.items():
        variable.assign(given[key])


def even_scales(makes: Array, reads: Array) -> Array:
    """The scales that make ranges as even as they can be.

    Where there are kernels on one side only, they become equal.

    Args:
        makes: For each kernel that makes the channels the largest weight of each,
            `(kernels, channels)`.
        reads: The same for the kernels that read them.

    Returns:
        The scale of each channel, `(channels,)`; 1 where all weights of a kernel are zero.
    """
    whole = np.concatenate([makes, reads])
    there = (whole > 0).all(axis=0)
    if not len(whole) or not there.any():
        return np.ones(whole.shape[1])
    low, high = (np.log(np.where(there, side, 1.0)) for side in (makes, reads))
    if len(makes) and len(reads):
        step = (high.mean(axis=0) - low.mean(axis=0)) / 2
    else:
        step = high.mean(axis=0) if len(reads) else -low.mean(axis=0)
        step = step - step[there].mean()
    made: Array = np.where(there, np.exp(step), 1.0)
    return made


def _sides(own: Scalable, ranges: dict[Key, Array]) -> tuple[Array, Array]:
    """The largest weights of each channel, of the kernels that make it and of those that read."""
    sides: tuple[list[Array], list[Array]] = ([], [])
    for axis in own.axes:
        if (axis.path, axis.variable) in ranges:
            found = _largest(ranges[axis.path, axis.variable], axis, len(own.channels))
            sides[axis.power < 0].append(found)
    empty = np.zeros((0, len(own.channels)))
    makes, reads = (np.stack(side) if side else empty for side in sides)
    return makes, reads


def _largest(weights: Array, axis: ScaledAxis, count: int) -> Array:
    """The largest of the weights at each channel, `(count,)`."""
    lines = np.moveaxis(weights, axis.axis, 0).reshape(weights.shape[axis.axis], -1)
    found = np.zeros(count)
    own = axis.channels >= 0
    np.maximum.at(found, axis.channels[own], lines.max(axis=1)[own])
    return found


def _multiply(values: dict[Key, Array], own: Scalable, scale: Array) -> None:
    """Multiplies variables along the axes of channels, in place."""
    for axis in _known(own.axes, values):
        value = values[axis.path, axis.variable]
        factors = np.where(axis.channels >= 0, scale[axis.channels] ** axis.power, 1.0)
        along = [1] * value.ndim
        along[axis.axis] = -1
        value *= factors.reshape(along)


def _known(axes: Iterable[ScaledAxis], values: dict[Key, Array]) -> Iterable[ScaledAxis]:
    return (axis for axis in axes if (axis.path, axis.variable) in values)
