"""Convolutions: filters are channels, the kernel's input axis is consumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from keras import layers

from sgdap.channels.labels import Labels, Symbol, positions
from sgdap.channels.patches import Patches
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.channels.rules.activation import keep_unless_elementwise


def channel_axis(layer: Any) -> int:
    """The axis of the channels in the layer's data format."""
    return 1 if layer.data_format == "channels_first" else -1


@register_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(layer: Any, call: RuleCall) -> Symbol:
    """Each filter reads every input channel at every kernel position."""
    read, filters = _read(layer, call), _filters(layer, call)
    area = math.prod(layer.kernel_size)
    of_groups = [part.reshape(layer.groups, -1) for part in (read, filters)]
    if layer.groups > 1:
        read = _in_groups(layer, call, *of_groups)
    if layer.groups == 1 or len(of_groups[0][0]) > 1:
        for group, (features, outputs) in enumerate(zip(*of_groups, strict=True)):
            patches = replace(_patches(layer), group=group, groups=layer.groups)
            call.linear(layer.kernel, layer.bias, patches, np.tile(features, area), outputs)
    call.weight(layer.kernel, *[None] * len(layer.kernel_size), read, filters)
    call.work(2 * _places(layer, call.output_shape) * area, read, filters)
    return _made(layer, call, filters)


@register_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise(layer: Any, call: RuleCall) -> Symbol:
    """Each channel has filters of its own, `depth_multiplier` of them side by side."""
    channels = _read(layer, call)
    made = np.repeat(channels, layer.depth_multiplier)
    call.weight(layer.kernel, *[None] * len(layer.kernel_size), channels, None)
    call.work(2 * _places(layer, call.output_shape) * math.prod(layer.kernel_size), made)
    return _made(layer, call, made)


@register_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable(layer: Any, call: RuleCall) -> Symbol:
    """A depthwise convolution, then a kernel of size 1 that reads what it made."""
    channels, filters = _read(layer, call), _filters(layer, call)
    between = np.repeat(channels, layer.depth_multiplier)
    spatial = [None] * len(layer.kernel_size)
    call.weight(layer.depthwise_kernel, *spatial, channels, None)
    call.weight(layer.pointwise_kernel, *spatial, between, filters)
    patches = replace(_patches(layer), depthwise=layer)
    call.linear(layer.pointwise_kernel, layer.bias, patches, between, filters)
    places = _places(layer, call.output_shape)
    call.work(2 * places * math.prod(layer.kernel_size), between)
    call.work(2 * places, between, filters)
    return _made(layer, call, filters)


@register_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed(layer: Any, call: RuleCall) -> Symbol:
    """A convolution read backwards: the kernel's last axis is the input."""
    features, filters = _read(layer, call), _filters(layer, call)
    call.weight(layer.kernel, *[None] * len(layer.kernel_size), filters, features)
    area = math.prod(layer.kernel_size)
    patches = replace(_patches(layer), transposed=layer)
    call.linear(layer.kernel, layer.bias, patches, np.tile(features, area), filters)
    call.work(2 * _places(layer, call.input.shape) * area, features, filters)
    return _made(layer, call, filters)


def _read(layer: Any, call: RuleCall) -> Labels:
    """The channels that a convolution reads; what lies along its spatial axes stays."""
    call.keep_positions(channel_axis(layer))
    return call.along(call.input, channel_axis(layer))


def _filters(layer: Any, call: RuleCall) -> Labels:
    """The channels that a convolution makes, one for each filter."""
    filters = call.new_channels(layer.filters)
    call.resize("filters", filters)
    return filters


def _made(layer: Any, call: RuleCall, channels: Labels) -> Symbol:
    """The output: bias and activation lie along the channels of the convolution."""
    call.weight(layer.bias, channels)
    keep_unless_elementwise(layer, call, channels)
    return call.output().with_axis(channel_axis(layer), channels)


def _in_groups(layer: Any, call: RuleCall, inputs: Labels, outputs: Labels) -> Labels:
    """Ties the channels of a grouped convolution so that its groups stay even.

    Args:
        layer: The layer.
        call: Its call.
        inputs: The channels that it reads, `(groups, each)`.
        outputs: The filters, `(groups, each)`.

    Returns:
        The channels along the kernel's input axis, which is as long as one group.
    """
    if inputs.shape[1] == 1:  # one channel a group: a whole group leaves with its channel
        call.tie(outputs, inputs)
        call.resize("groups", inputs[:, 0])
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


def _places(layer: Any, shape: Sequence[int | None]) -> float:
    """The number of places in the spatial axes of a shape."""
    axis = channel_axis(layer) % len(shape)
    return positions([size for i, size in enumerate(shape) if i not in (0, axis)])
