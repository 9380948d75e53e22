"""Layers that combine several tensors: elementwise ones tie channels, Concatenate offsets them."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from sgdap import _keras
from sgdap.graph.channels import Symbol, concatenate, merge
from sgdap.graph.registry import RuleCall, register_rule
from sgdap.graph.trace import Ref


@register_rule(
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)
def elementwise(layer: Any, call: RuleCall) -> Symbol:
    """Channels that meet in a sum or product leave together."""
    shape = call.output_shape
    ranks = {symbol.rank for symbol in call.inputs}
    if len(ranks) > 1:  # Keras moves the batch axis of lower ranks; the channels' fate is unclear
        for symbol in call.inputs:
            call.keep(symbol, f"'{layer.name}' combines tensors of different ranks")
        return call.output()
    return merge(call.inputs, shape, call.ledger)


@register_rule(layers.Concatenate)
def concatenation(layer: Any, call: RuleCall) -> Symbol:
    """Channels keep their order, those of each input after the one before."""
    return concatenate(call.inputs, layer.axis, call.output_shape, call.ledger)


def _classes_of(*functions: Any) -> list[type]:
    """The operation classes of functions of two tensors."""
    tensor = keras.KerasTensor((None, 2))
    return [_keras.operation_class(function, tensor, tensor) for function in functions]


@register_rule(
    *_classes_of(
        keras.ops.add,
        keras.ops.subtract,
        keras.ops.multiply,
        keras.ops.divide,
        keras.ops.maximum,
        keras.ops.minimum,
        keras.ops.power,
    )
)
def arithmetic(operation: Any, call: RuleCall) -> Symbol:
    """`x + y` on symbolic tensors: channels that meet leave together; a number changes nothing."""
    if len(call.inputs) == 1:
        constant = next((a for a in call.args if not isinstance(a, Ref)), None)
        if getattr(constant, "shape", None):
            call.keep(call.input, f"'{operation.name}' combines them with a constant array")
    return merge(call.inputs, call.output_shape, call.ledger)
