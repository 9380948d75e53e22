"""Dense: units are channels, the last input axis is consumed."""

from __future__ import annotations

from typing import Any

from keras import layers

from sgdap.channels.labels import Symbol, positions
from sgdap.channels.patches import Patches
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.channels.rules.activation import keep_unless_elementwise


@register_rule(layers.Dense)
def dense(layer: Any, call: RuleCall) -> Symbol:
    """`y = x W + b`: rows of W are the input's channels, columns the units."""
    features = call.along(call.input, -1)
    units = call.new_channels(layer.units)
    call.weight(layer.kernel, features, units)
    call.weight(layer.bias, units)
    call.resize("units", units)
    call.linear(layer.kernel, layer.bias, Patches(), features, units)
    call.work(2 * positions(call.input.shape[1:-1]), features, units)
    keep_unless_elementwise(layer, call, units)
    return call.input.with_axis(-1, units)
