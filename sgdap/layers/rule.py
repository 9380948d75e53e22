"""The channel rule of the dynamic range activation: α and δ follow the channels; scores nothing."""

from __future__ import annotations

from typing import Any

from sgdap.channels.labels import Symbol
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.channels.rules.activation import is_elementwise
from sgdap.layers.dynamic_range import DynamicRangeActivation


@register_rule(DynamicRangeActivation)
def dynamic_range_activation(layer: Any, call: RuleCall) -> Symbol:
    """Keeps the input's channels; each has a growth rate and an offset."""
    channels = call.input.axes[layer.channel_axis]
    if channels is not None:
        call.weight(layer.growth_rate, channels)
        call.weight(layer.offset, channels)
    widths = {len(channels) for channels in call.input.all_channels()}
    if not all(is_elementwise(layer.activation, width) for width in widths):
        call.keep(call.input, f"'{layer.name}' mixes the channels")
    return call.input
