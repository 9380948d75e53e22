"""Attention: heads, key dimensions and value dimensions are channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from sgdap import _keras
from sgdap.channels.labels import MEETS_FIXED, Labels, Symbol, positions
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.model.leaves import is_of_keras


@register_rule(layers.MultiHeadAttention)
def multi_head_attention(layer: Any, call: RuleCall) -> list[Symbol]:
    """Heads leave as a whole; key and value dimensions leave from all heads at once."""
    if (reason := _own_attention(layer)) is not None:
        return call.keep_all(reason)
    heads = call.new_channels(layer.num_heads, "heads")
    keys = call.new_channels(layer.key_dim, "keys")
    values = call.new_channels(layer.value_dim, "values")
    call.resize("num_heads", heads)
    call.resize("key_dim", keys)
    call.resize("value_dim", values)
    outputs = _with_heads(layer, call, heads, heads, keys, values)
    sizes = layer.get_config()["output_shape"]
    units = call.along(outputs[0], -1)
    call.resize("output_shape" if sizes is None else ("output_shape", len(sizes) - 1), units)
    return outputs


@register_rule(layers.GroupQueryAttention)
def grouped_query_attention(layer: Any, call: RuleCall) -> list[Symbol]:
    """A head of keys and values leaves with all its query heads, a lone one stays.

    Query, value and output must be equally wide, so they lose the same channels.
    """
    if (reason := _own_attention(layer)) is not None:
        return call.keep_all(reason)
    if layer.num_key_value_heads == 1:
        shared = call.fixed(1)
        heads = call.new_channels(layer.num_query_heads, "heads")
    else:
        shared = call.new_channels(layer.num_key_value_heads, "heads")
        heads = np.repeat(shared, layer.num_query_heads // layer.num_key_value_heads)
        call.resize("num_key_value_heads", shared)
    dims = call.new_channels(layer.head_dim, "dims")
    call.resize("num_query_heads", heads)
    call.resize("head_dim", dims)
    outputs = _with_heads(layer, call, heads, shared, dims, dims)
    query, value, _ = _arguments(call)
    for symbol in (query, value):
        call.tie(call.along(outputs[0], -1), call.along(symbol, -1))
    return outputs


@register_rule(layers.Attention, layers.AdditiveAttention)
def attention(layer: Any, call: RuleCall) -> list[Symbol]:
    """Query and key meet channel by channel; the output has the channels of the value."""
    if (reason := _own_attention(layer)) is not None:
        return call.keep_all(reason)
    query, value, *rest = given = call.argument("inputs", 0)
    key = rest[0] if rest else value
    _keep_all_but_last(call, given)
    channels = query.axes[-1]
    if channels is not None and key.axes[-1] is not None:
        call.tie(channels, key.axes[-1])
    else:
        for symbol in (query, key):
            call.keep_along(symbol, -1, MEETS_FIXED)
        channels = None
    if isinstance(layer, layers.AdditiveAttention):
        call.weight(layer.scale, channels)
    places = positions(query.shape[1:-1]) * positions(key.shape[1:-1])
    call.work(2 * places, call.along(query, -1))
    call.work(2 * places, call.along(value, -1))
    first, *others = call.outputs()
    return [first.with_axis(-1, value.axes[-1]), *others]


_FOUR = keras.KerasTensor((2, 2, 2, 2))


@register_rule(_keras.operation_class(keras.ops.dot_product_attention, _FOUR, _FOUR, _FOUR))
def dot_product_attention(operation: Any, call: RuleCall) -> Symbol:
    """Heads leave from query, key and value; so do dimensions, where the scale is a number.

    Keras takes the shape of the query for that of the output, so the value's dimensions are tied
    to the others too.
    """
    given = [call.argument(name, place) for place, name in enumerate(("query", "key", "value"))]
    for symbol in call.inputs[3:]:
        call.keep(symbol, f"'{operation.name}' reads them as a bias or mask")
    query, key, _ = given
    output = call.output()
    for axis in range(4):
        met = [c for symbol in given if (c := symbol.axes[axis]) is not None]
        apart = len({symbol.shape[axis] for symbol in given}) > 1 or len(met) < 3
        if axis < 2 or apart or (axis == 3 and call.argument("scale", 5) is None):
            for channels in met:
                call.keep(channels, f"'{operation.name}' mixes them, or needs their number")
            continue
        call.tie(met[0], met[1])
        call.tie(met[0], met[2])
        output = output.with_axis(axis, met[0])
    for _ in ("scores", "values"):
        call.work(
            2 * positions(query.shape[:2]) * positions(key.shape[1:2]),
            call.along(query, 2),
            call.along(query, 3),
        )
    return output


def _own_attention(layer: Any) -> str | None:
    """The reason to leave a subclass of Keras' attention as it is: it may override any step."""
    if is_of_keras(layer):
        return None
    name = type(layer).__name__
    return f"no rule for {name}, an attention of its own; register one with sgdap.register_rule"


def _with_heads(
    layer: Any, call: RuleCall, heads: Labels, shared: Labels, keys: Labels, values: Labels
) -> list[Symbol]:
    """States what all attention layers with heads have in common.

    The layer divides by the root of the number of key dimensions, so the query projection is
    scaled when that number falls.

    Args:
        layer: The layer.
        call: Its call.
        heads: The heads of the query.
        shared: The heads of key and value.
        keys: The dimensions of query and key.
        values: The dimensions of the value.

    Returns:
        The outputs.
    """
    query, value, key = _arguments(call)
    _keep_all_but_last(call, (query, value, key))
    parts = {inner.name: inner for inner in _keras.flatten_layers(layer) if inner is not layer}
    _project(call, parts["query"], query, heads, keys)
    _project(call, parts["key"], key, shared, keys)
    _project(call, parts["value"], value, shared, values)
    if "gate" in parts:
        _project(call, parts["gate"], query, heads, values)
    for variable in (parts["query"].kernel, parts["query"].bias):
        call.scale(variable, 0.5, keys)
    end = parts["attention_output"]
    between = end.kernel.shape[2:-1]
    units = call.new_channels(int(end.kernel.shape[-1]))
    call.weight(end.kernel, heads, values, *[None] * len(between), units)
    call.weight(end.bias, *[None] * len(between), units)
    call.reading(end, -2, heads)
    call.reading(end, -1, values)
    call.reading(parts["query"], -1, keys, made=True)
    call.work(2 * positions(between) * positions(query.shape[1:-1]), heads, values, units)
    axes = getattr(layer, "attention_axes", None) or range(1, value.rank - 1)
    scores = positions(query.shape[1:-1]) * positions([value.shape[axis] for axis in axes])
    call.work(2 * scores, heads, keys)
    call.work(2 * scores, heads, values)
    first, *others = call.outputs()
    if others and others[0].rank == 4:
        others[0] = others[0].with_axis(1, heads)
    elif others:
        call.keep(heads, f"'{layer.name}' returns the scores of each")
    return [first.with_axis(-1, units), *others]


def _arguments(call: RuleCall) -> tuple[Symbol, Symbol, Symbol]:
    """Query, value and key of a call."""
    query, value, key = (call.argument(n, i) for i, n in enumerate(("query", "value", "key")))
    return query, value, value if key is None else key


def _keep_all_but_last(call: RuleCall, given: Sequence[Symbol]) -> None:
    """Protects masks, and all but the last axis of the other inputs."""
    call.keep_masks(given)
    for symbol in given:
        call.keep_positions(-1, symbol)


def _project(call: RuleCall, part: Any, x: Symbol, heads: Labels, dims: Labels) -> None:
    features = call.along(x, -1)
    call.weight(part.kernel, features, heads, dims)
    call.weight(part.bias, heads, dims)
    outputs = np.stack([np.repeat(heads, len(dims)), np.tile(dims, len(heads))])
    call.projection(part, x, part.kernel, part.bias, features, outputs)
    call.work(2 * positions(x.shape[1:-1]), features, heads, dims)
