"""Convolutions: filters are channels, the kernel's input axis is consumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from sgdap.channels.labels import Labels, Symbol, plain
from sgdap.channels.patches import Patches
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall, positions
from sgdap.channels.rules.activation import keep_unless_elementwise


def channel_axis(layer: Any) -> int:
    """The axis of the channels in the layer's data format."""
    return 1 if layer.data_format == "channels_first" else -1


@register_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(layer: Any, call: RuleCall) -> Symbol:
    """Each filter reads every input channel at every kernel position."""
    axis = channel_axis(layer)
    call.keep_positions(axis, layer.name)
    features = call.along(call.input, axis)
    filters = call.new_channels(layer.filters)
    spatial = [None] * len(layer.kernel_size)
    read = features
    if layer.groups > 1:
        read = _in_groups(layer, call, features, filters)
        call.weight(layer.kernel, *spatial, read, filters)
    else:
        call.weight(layer.kernel, *spatial, features, filters)
        call.linear(
            layer.kernel,
            layer.bias,
            _patches(layer),
            np.tile(features, math.prod(layer.kernel_size)),
            filters,
        )
    call.weight(layer.bias, filters)
    call.resize("filters", filters)
    area = math.prod(layer.kernel_size)
    call.work(2 * _places(call.output_shape, axis) * area, read, filters)
    keep_unless_elementwise(layer, call, filters)
    return plain(call.output_shape).with_axis(axis, filters)


@register_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise(layer: Any, call: RuleCall) -> Symbol:
    """Each channel has filters of its own, `depth_multiplier` of them side by side."""
    axis = channel_axis(layer)
    call.keep_positions(axis, layer.name)
    channels = call.along(call.input, axis)
    made = np.repeat(channels, layer.depth_multiplier)
    call.weight(layer.kernel, *[None] * len(layer.kernel_size), channels, None)
    call.weight(layer.bias, made)
    call.work(2 * _places(call.output_shape, axis) * math.prod(layer.kernel_size), made)
    keep_unless_elementwise(layer, call, made)
    return plain(call.output_shape).with_axis(axis, made)


@register_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable(layer: Any, call: RuleCall) -> Symbol:
    """A depthwise convolution, then a kernel of size 1 that reads what it made."""
    axis = channel_axis(layer)
    call.keep_positions(axis, layer.name)
    channels = call.along(call.input, axis)
    between = np.repeat(channels, layer.depth_multiplier)
    filters = call.new_channels(layer.filters)
    spatial = [None] * len(layer.kernel_size)
    call.weight(layer.depthwise_kernel, *spatial, channels, None)
    call.weight(layer.pointwise_kernel, *spatial, between, filters)
    call.weight(layer.bias, filters)
    call.resize("filters", filters)
    call.linear(layer.pointwise_kernel, layer.bias, _patches(layer).after(layer), between, filters)
    places = _places(call.output_shape, axis)
    call.work(2 * places * math.prod(layer.kernel_size), between)
    call.work(2 * places, between, filters)
    keep_unless_elementwise(layer, call, filters)
    return plain(call.output_shape).with_axis(axis, filters)


@register_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed(layer: Any, call: RuleCall) -> Symbol:
    """A convolution read backwards: the kernel's last axis is the input."""
    axis = channel_axis(layer)
    call.keep_positions(axis, layer.name)
    features = call.along(call.input, axis)
    filters = call.new_channels(layer.filters)
    call.weight(layer.kernel, *[None] * len(layer.kernel_size), filters, features)
    call.weight(layer.bias, filters)
    call.resize("filters", filters)
    area = math.prod(layer.kernel_size)
    call.work(2 * _places(call.input.shape, axis) * area, features, filters)
    keep_unless_elementwise(layer, call, filters)
    return plain(call.output_shape).with_axis(axis, filters)


def _in_groups(layer: Any, call: RuleCall, features: Labels, filters: Labels) -> Labels:
    """Ties the channels of a grouped convolution so that its groups stay even.

    Returns:
        The channels along the kernel's input axis, which is as long as one group.
    """
    inputs = features.reshape(layer.groups, -1)
    outputs = filters.reshape(layer.groups, -1)
    if inputs.shape[1] == 1:  # one channel a group: a whole group leaves with its channel
        call.tie(outputs, inputs)
        call.resize("groups", features)
        return call.fixed(1)
    call.tie(inputs[1:], inputs[:1])
    call.tie(outputs[1:], outputs[:1])
    return np.array(inputs[0])


def _patches(layer: Any) -> Patches:
    return Patches(
        tuple(layer.kernel_size),
        tuple(layer.strides),
        tuple(layer.dilation_rate),
        layer.padding,
        channel_axis(layer) == 1,
    )


def _places(shape: Sequence[int | None], axis: int) -> float:
    """The number of places in the spatial axes of a shape."""
    return positions([size for i, size in enumerate(shape) if i not in (0, axis % len(shape))])
