"""Convolutions: filters are channels, the kernel's input axis is consumed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers

from sgdap.graph.channels import Symbol, plain
from sgdap.graph.patches import Patches
from sgdap.graph.registry import RuleCall, positions, register_rule
from sgdap.graph.rules.activation import keep_unless_elementwise


def channel_axis(layer: Any) -> int:
    """The axis of the channels in the layer's data format."""
    return 1 if layer.data_format == "channels_first" else -1


@register_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(layer: Any, call: RuleCall) -> Symbol:
    """Each filter reads every input channel at every kernel position."""
    axis = channel_axis(layer)
    features = call.along(call.input, axis)
    filters = call.new_channels(layer.filters)
    spatial = [None] * len(layer.kernel_size)
    if layer.groups > 1:
        call.keep(features, f"'{layer.name}' convolves in groups")
        call.keep(filters, f"'{layer.name}' convolves in groups")
    call.weight(layer.kernel, *spatial, None if layer.groups > 1 else features, filters)
    call.weight(layer.bias, filters)
    call.resize("filters", filters)
    if layer.groups == 1:
        call.linear(
            layer.kernel,
            layer.bias,
            Patches(
                tuple(layer.kernel_size),
                tuple(layer.strides),
                tuple(layer.dilation_rate),
                layer.padding,
                axis == 1,
            ),
            np.tile(features, math.prod(layer.kernel_size)),
            filters,
        )
    output = plain(call.output_shape).with_axis(axis, filters)
    places = [size for i, size in enumerate(output.shape) if i not in (0, axis % output.rank)]
    factor = 2 * positions(places) * math.prod(layer.kernel_size) / layer.groups
    call.work(factor, features, filters)
    keep_unless_elementwise(layer, call, filters)
    return output
