"""Normalisations: they follow their producer."""

from __future__ import annotations

from typing import Any

from keras import layers

from sgdap.graph.channels import Symbol
from sgdap.graph.registry import RuleCall, register_rule


@register_rule(layers.BatchNormalization)
def batch_normalization(layer: Any, call: RuleCall) -> Symbol:
    """Scale, offset and moving statistics lie along the channels of its axis."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    for axis in axes:
        channels = call.input.axes[axis]
        if channels is None:
            continue
        if len(axes) > 1:
            call.keep(channels, f"'{layer.name}' normalises over several axes")
            continue
        for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
            call.weight(variable, channels)
    return call.input
