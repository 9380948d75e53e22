"""Layers that combine several tensors: elementwise ones tie channels, Concatenate offsets them."""

from __future__ import annotations

from typing import Any

from keras import layers

from sgdap import _keras
from sgdap.channels.labels import Symbol, concatenate, merge
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall

_SCALED_SUM = _keras.application_layers()[2]


@register_rule(
    _SCALED_SUM,
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)
def elementwise(layer: Any, call: RuleCall) -> Symbol:
    """Labels that meet in a sum or product leave together."""
    if len({symbol.rank for symbol in call.inputs}) > 1:
        # Keras moves the batch axis of lower ranks, so channels can't be followed.
        for symbol in call.inputs:
            call.keep(symbol, f"'{layer.name}' combines tensors of different ranks")
        return call.output()
    return merge(call.inputs, call.output_shape, call.ledger)


@register_rule(layers.Concatenate)
def concatenation(layer: Any, call: RuleCall) -> Symbol:
    """Labels keep their order, those of each input after the one before."""
    return concatenate(call.inputs, layer.axis, call.output_shape, call.ledger)
