"""Normalisations: they follow their producer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers
from keras.backend import is_float_dtype

from sgdap import _keras
from sgdap.channels.labels import Labels, Symbol
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall


@register_rule(layers.BatchNormalization)
def batch_normalization(layer: Any, call: RuleCall) -> Symbol:
    """Scale, offset and moving statistics lie along the channels of its axis."""
    given = getattr(layer, "axis", -1)
    axes = given if isinstance(given, (list, tuple)) else [given]
    for axis in axes:
        channels = call.input.axes[axis]
        if channels is None:
            continue
        if len(axes) > 1:
            call.keep(channels, f"'{layer.name}' normalises over several axes")
            continue
        _follow(layer, call, channels)
    return call.input


def _follow(layer: Any, call: RuleCall, channels: Labels) -> None:
    """All weights of a layer lie along some channels, but for those that all channels share.

    The names of the weights don't matter, so that the rule holds for layers like this one.
    """
    for variable in _keras.layer_variables(layer):
        shape = tuple(variable.shape)
        if math.prod(shape) == 1 < len(channels) or not is_float_dtype(variable.dtype):
            continue
        if math.prod(shape) != len(channels) or len(channels) not in shape:
            raise ValueError(
                f"each weight must have one number for each of the {len(channels)} channels. "
                f"Received: '{variable.name}' of shape {shape}"
            )
        place = shape.index(len(channels))
        call.weight(variable, *(channels if a == place else None for a in range(len(shape))))


@register_rule(
    layers.LayerNormalization,
    layers.RMSNormalization,
    layers.UnitNormalization,
    layers.Softmax,
)
def over_channels(layer: Any, call: RuleCall) -> Symbol:
    """Each output depends on all channels along the axes that are normalised over, so they stay."""
    for axis in [layer.axis] if isinstance(layer.axis, int) else layer.axis:
        call.keep_along(call.input, axis, f"'{layer.name}' normalises over them")
    return call.input


@register_rule(layers.GroupNormalization)
def group_normalization(layer: Any, call: RuleCall) -> Symbol:
    """A group is normalised by itself, so channels leave by whole groups."""
    axis = getattr(layer, "axis", -1)
    call.keep_positions(axis)
    channels = call.input.axes[axis]
    if channels is None:
        return call.input
    members = channels.reshape(layer.groups, -1)
    call.tie(members[:, 1:], members[:, :1])
    call.resize("groups", np.array(members[:, 0]))
    _follow(layer, call, channels)
    return call.input


@register_rule(layers.Rescaling, layers.Normalization)
def of_inputs(layer: Any, call: RuleCall) -> Symbol:
    """Layers that prepare a model's inputs, whose channels stay."""
    call.keep(call.input, f"'{layer.name}' has constants for them")
    return call.input


_LAYER_SCALE, _, _ = _keras.application_layers()


@register_rule(_LAYER_SCALE)
def layer_scale(layer: Any, call: RuleCall) -> Symbol:
    """A factor for each channel (ConvNeXt)."""
    channels = call.along(call.input, -1)
    call.weight(layer.gamma, channels)
    call.resize("projection_dim", channels)
    return call.input
