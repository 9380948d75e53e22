"""Attention: heads, key dimensions and value dimensions are channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from sgdap import _keras
from sgdap.channels.labels import Labels, Symbol, plain
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall, positions


@register_rule(layers.MultiHeadAttention)
def multi_head_attention(layer: Any, call: RuleCall) -> list[Symbol]:
    """Heads leave as a whole; key and value dimensions leave from all heads at once.

    The layer divides by the root of the number of key dimensions, so the query projection is
    scaled when that number falls.
    """
    if (reason := _own_attention(layer)) is not None:
        return call.keep_all(reason)
    query, value, key = _arguments(layer, call)
    parts = _projections(layer)
    heads = call.new_channels(layer.num_heads, "heads")
    keys = call.new_channels(layer.key_dim, "keys")
    values = call.new_channels(layer.value_dim, "values")
    call.resize("num_heads", heads)
    call.resize("key_dim", keys)
    call.resize("value_dim", values)
    _project(call, parts["query"], query, heads, keys)
    _project(call, parts["key"], key, heads, keys)
    _project(call, parts["value"], value, heads, values)
    if "gate" in parts:
        _project(call, parts["gate"], query, heads, values)
    for variable in (parts["query"].kernel, parts["query"].bias):
        call.scale(variable, 0.5, keys)
    sizes = layer.get_config()["output_shape"]
    last = 0 if sizes is None else len(sizes) - 1
    end = parts["attention_output"]
    units = call.new_channels(int(end.kernel.shape[-1]))
    call.weight(end.kernel, heads, values, *[None] * last, units)
    call.weight(end.bias, *[None] * last, units)
    call.reading(end, -2, heads)
    call.reading(end, -1, values)
    call.reading(parts["query"], -1, keys, made=True)
    call.resize("output_shape" if sizes is None else ("output_shape", last), units)
    rest = positions([] if sizes is None else sizes[:-1])
    call.work(2 * rest * positions(query.shape[1:-1]), heads, values, units)
    _attend(layer, call, query, value, heads, keys, values)
    return _outputs(layer, call, units, heads)


@register_rule(layers.GroupQueryAttention)
def grouped_query_attention(layer: Any, call: RuleCall) -> list[Symbol]:
    """A head of keys and values leaves with all its query heads, a lone one stays.

    Query, value and output must be equally wide, so they lose the same channels.
    """
    if (reason := _own_attention(layer)) is not None:
        return call.keep_all(reason)
    query, value, key = _arguments(layer, call)
    parts = _projections(layer)
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
    _project(call, parts["query"], query, heads, dims)
    _project(call, parts["key"], key, shared, dims)
    _project(call, parts["value"], value, shared, dims)
    if "gate" in parts:
        _project(call, parts["gate"], query, heads, dims)
    for variable in (parts["query"].kernel, parts["query"].bias):
        call.scale(variable, 0.5, dims)
    end = parts["attention_output"]
    units = call.new_channels(int(end.kernel.shape[-1]))
    call.weight(end.kernel, heads, dims, units)
    call.weight(end.bias, units)
    call.reading(end, -2, heads)
    call.reading(end, -1, dims)
    call.reading(parts["query"], -1, dims, made=True)
    call.tie(units, call.along(query, -1))
    call.tie(units, call.along(value, -1))
    call.work(2 * positions(query.shape[1:-1]), heads, dims, units)
    _attend(layer, call, query, value, heads, dims, dims)
    return _outputs(layer, call, units, heads)


@register_rule(layers.Attention, layers.AdditiveAttention)
def attention(layer: Any, call: RuleCall) -> list[Symbol]:
    """Query and key meet channel by channel; the output has the channels of the value."""
    if (reason := _own_attention(layer)) is not None:
        return call.keep_all(reason)
    query, value, *rest = given = call.argument("inputs", 0)
    key = rest[0] if rest else value
    _keep_all_but_last(layer, call, given)
    channels = _met(call, query.axes[-1], key.axes[-1])
    if isinstance(layer, layers.AdditiveAttention):
        call.weight(layer.scale, channels)
    places = positions(query.shape[1:-1]) * positions(key.shape[1:-1])
    call.work(2 * places, call.along(query, -1))
    call.work(2 * places, call.along(value, -1))
    made = [plain(shape) for shape in call.output_shapes]
    return [made[0].with_axis(-1, value.axes[-1]), *made[1:]]


@register_rule(layers.Dot)
def dot(layer: Any, call: RuleCall) -> Symbol:
    """The channels along the axes that are summed over leave together, all others pass."""
    first, second = call.inputs
    axes = [layer.axes] * 2 if isinstance(layer.axes, int) else list(layer.axes)
    a, b = axes[0] % first.rank, axes[1] % second.rank
    channels = _met(call, first.axes[a], second.axes[b])
    if channels is not None and layer.normalize:
        call.keep(channels, f"'{layer.name}' normalises over them")
    made = [c for axis, c in enumerate(first.axes) if axis != a]
    made += [c for axis, c in enumerate(second.axes) if axis not in (0, b)]
    output = plain(call.output_shape)
    for axis, own in enumerate(made):
        output = output if own is None else output.with_axis(axis, own)
    rest = [size for axis, size in enumerate(first.shape) if axis not in (0, a)]
    rest += [size for axis, size in enumerate(second.shape) if axis not in (0, b)]
    call.work(2 * positions(rest), call.along(first, a))
    return output


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
            2 * positions(query.shape[1:2]) * positions(key.shape[1:2]),
            call.along(query, 2),
            call.along(query, 3),
        )
    return output


def _own_attention(layer: Any) -> str | None:
    """Why a layer may attend otherwise than Keras' do: those invite to override single steps."""
    known = (
        layers.MultiHeadAttention,
        layers.GroupQueryAttention,
        layers.Attention,
        layers.AdditiveAttention,
    )
    name = type(layer).__name__
    if type(layer) in known:
        return None
    return f"no rule for {name}, an attention of its own; register one with sgdap.register_rule"


def _arguments(layer: Any, call: RuleCall) -> tuple[Symbol, Symbol, Symbol]:
    """Query, value and key of a call; all their other axes, and masks, stay."""
    query = call.argument("query", 0)
    value = call.argument("value", 1)
    key = call.argument("key", 2)
    key = value if key is None else key
    _keep_all_but_last(layer, call, (query, value, key))
    return query, value, key


def _keep_all_but_last(layer: Any, call: RuleCall, given: Sequence[Symbol]) -> None:
    for symbol in call.inputs:
        if all(symbol is not one for one in given):
            call.keep(symbol, f"'{layer.name}' reads them as a mask")
    for symbol in given:
        for channels in symbol.axes[:-1]:
            if channels is not None:
                call.keep(channels, f"'{layer.name}' works along their axis")


def _projections(layer: Any) -> dict[str, Any]:
    """The layers in an attention layer: query, key, value, attention_output, gate if any."""
    return {inner.name: inner for inner in _keras.flatten_layers(layer) if inner is not layer}


def _project(call: RuleCall, part: Any, x: Symbol, heads: Labels, dims: Labels) -> None:
    features = call.along(x, -1)
    call.weight(part.kernel, features, heads, dims)
    call.weight(part.bias, heads, dims)
    call.work(2 * positions(x.shape[1:-1]), features, heads, dims)


def _attend(
    layer: Any,
    call: RuleCall,
    query: Symbol,
    value: Symbol,
    heads: Labels,
    keys: Labels,
    values: Labels,
) -> None:
    """What scores and weighted values cost."""
    axes = getattr(layer, "attention_axes", None) or range(1, value.rank - 1)
    places = positions(query.shape[1:-1]) * positions([value.shape[axis] for axis in axes])
    call.work(2 * places, heads, keys)
    call.work(2 * places, heads, values)


def _outputs(layer: Any, call: RuleCall, units: Labels, heads: Labels) -> list[Symbol]:
    made = [plain(shape) for shape in call.output_shapes]
    if len(made) > 1 and made[1].rank == 4:
        made[1] = made[1].with_axis(1, heads)
    elif len(made) > 1:
        call.keep(heads, f"'{layer.name}' returns the scores of each")
    return [made[0].with_axis(-1, units), *made[1:]]


def _met(call: RuleCall, first: Labels | None, second: Labels | None) -> Labels | None:
    """Ties the channels of two axes that are multiplied and summed over."""
    if first is not None and second is not None:
        call.tie(first, second)
        return first
    for channels in (first, second):
        if channels is not None:
            call.keep(channels, "combined with a tensor whose channels can't be removed")
    return None
