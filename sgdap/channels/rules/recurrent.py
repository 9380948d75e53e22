"""Recurrent layers: units are channels, made by every gate and read again at the next step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from sgdap.channels.labels import Channels, Symbol, concatenate, merge, plain
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall, positions
from sgdap.channels.rules.activation import is_elementwise

_CELLS = (layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell)


@register_rule(layers.RNN, layers.SimpleRNN, layers.LSTM, layers.GRU)
def recurrent(layer: Any, call: RuleCall) -> list[Symbol]:
    """Units are channels: of every gate, of the state, and read again at the next step."""
    stacked = isinstance(layer.cell, layers.StackedRNNCells)
    cells = layer.cell.cells if stacked else [layer.cell]
    unknown = [type(cell).__name__ for cell in cells if type(cell) not in _CELLS]
    if unknown:
        return call.keep_all(f"no rule for the cell {unknown[0]} of '{layer.name}'")
    call.keep_positions(-1, layer.name)
    whole = isinstance(layer, (layers.SimpleRNN, layers.LSTM, layers.GRU))
    features = call.along(call.input, -1)
    of_states: list[Channels] = []
    for number, cell in enumerate(cells):
        units = call.new_channels(cell.units, str(number) if stacked else "")
        _cell_weights(cell, call, features, units)
        if not all(is_elementwise(a, cell.units) for a in _activations(cell)):
            call.keep(units, f"an activation of '{layer.name}' mixes the channels")
        place = ("cell", "config", "cells", number, "config") if stacked else ("cell", "config")
        call.resize("units" if whole else (*place, "units"), units)
        of_states += [units] * len(keras.tree.flatten(cell.state_size))
        features = units
    _states(layer, call, of_states, -1)
    channels = [features, *of_states]
    return [
        plain(shape).with_axis(-1, own)
        for shape, own in zip(call.output_shapes, channels, strict=False)
    ]


def _cell_weights(cell: Any, call: RuleCall, features: Channels, units: Channels) -> None:
    gates = np.tile(units, cell.recurrent_kernel.shape[1] // cell.units)
    call.weight(cell.kernel, features, gates)
    call.weight(cell.recurrent_kernel, units, gates)
    if cell.bias is not None:  # of two rows where a GRU resets after the product
        call.weight(cell.bias, *[None] * (len(cell.bias.shape) - 1), gates)
    steps = positions(call.input.shape[1:-1])
    call.work(2 * steps, features, gates)
    call.work(2 * steps, units, gates)


@register_rule(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def convolutional(layer: Any, call: RuleCall) -> list[Symbol]:
    """Filters are channels: of every gate, of the state, and convolved again at the next step."""
    cell = layer.cell
    first = cell.data_format == "channels_first"
    call.keep_positions(2 if first else -1, layer.name)
    features = call.along(call.input, 2 if first else -1)
    filters = call.new_channels(cell.filters)
    gates = np.tile(filters, 4)
    spatial = [None] * len(cell.kernel_size)
    call.weight(cell.kernel, *spatial, features, gates)
    call.weight(cell.recurrent_kernel, *spatial, filters, gates)
    call.weight(cell.bias, gates)
    call.resize("filters", filters)
    if not all(is_elementwise(a, cell.filters) for a in _activations(cell)):
        call.keep(filters, f"an activation of '{layer.name}' mixes the channels")
    _states(layer, call, [filters, filters], 1 if first else -1)
    sequences = len(call.output_shape) == call.input.rank
    made = [plain(shape) for shape in call.output_shapes]
    places = call.output_shape[2:] if sequences else call.output_shape[1:]
    area = math.prod(cell.kernel_size)
    steps = positions(call.input.shape[1:2]) * positions(places[1:] if first else places[:-1])
    call.work(2 * steps * area, features, gates)
    call.work(2 * steps * area, filters, gates)
    axes = [2 if first and sequences else 1 if first else -1] + [1 if first else -1] * 2
    return [x.with_axis(axis, filters) for x, axis in zip(made, axes, strict=False)]


@register_rule(layers.Bidirectional)
def bidirectional(layer: Any, call: RuleCall) -> list[Symbol]:
    """Two recurrent layers; Keras takes their widths to be the same, so their units are tied."""
    x = call.input
    given = keras.tree.flatten(call.argument("initial_state", 1))
    states = [state for state in given if isinstance(state, Symbol)]
    for other in call.inputs[1:]:
        if all(other is not state for state in states):
            call.keep(other, f"'{layer.name}' reads them as a mask")
    apart = layer.merge_mode is None
    shapes = call.output_shapes
    of_states = shapes[2:] if apart else shapes[1:]
    of_sides = shapes[:2] if apart else [shapes[0]] * 2
    if layer.merge_mode == "concat":
        of_sides = [(*shape[:-1], int(shape[-1] or 0) // 2) for shape in of_sides]
    sides = []
    for number, attribute in enumerate(("forward_layer", "backward_layer")):
        own = given[number * len(given) // 2 : (number + 1) * len(given) // 2]
        half = len(of_states) // 2
        sides.append(
            call.inside(
                attribute,
                "backward_layer" if number else "layer",
                [x, *(state for state in own if isinstance(state, Symbol))],
                [of_sides[number], *of_states[number * half : (number + 1) * half]],
                {"initial_state": own or None},
            )
        )
    (forward, *_), (backward, *_) = sides
    ends = [forward.axes[-1], backward.axes[-1]]
    if ends[0] is not None and ends[1] is not None and len(ends[0]) == len(ends[1]):
        call.tie(ends[0], ends[1])
    else:
        for symbol in (forward, backward):
            call.keep(symbol, f"the two directions of '{layer.name}' are not alike")
    if apart:
        outputs = [forward, backward]
    elif layer.merge_mode == "concat":
        outputs = [concatenate([forward, backward], -1, shapes[0], call.ledger)]
    else:
        outputs = [merge([forward, backward], shapes[0], call.ledger)]
    return [*outputs, *sides[0][1:], *sides[1][1:]]


def _activations(cell: Any) -> list[Any]:
    return [cell.activation, getattr(cell, "recurrent_activation", cell.activation)]


def _states(layer: Any, call: RuleCall, of_states: Sequence[Channels], axis: int) -> None:
    """Ties the states that a layer starts from, or keeps between batches, to its units."""
    given = keras.tree.flatten(call.argument("initial_state", 1))
    for state, units in zip(given, of_states, strict=False):
        if isinstance(state, Symbol):
            call.tie(call.along(state, axis), units)
            for other, channels in enumerate(state.axes):
                if other != axis % state.rank and channels is not None:
                    call.keep(channels, f"'{layer.name}' works along their axis")
        elif state is not None:
            call.keep(units, f"'{layer.name}' starts from a constant state")
    for symbol in call.inputs[1:]:
        if all(symbol is not state for state in given):
            call.keep(symbol, f"'{layer.name}' reads them as a mask")
    for variable, units in zip(keras.tree.flatten(layer.states), of_states, strict=False):
        if variable is not None:
            axes: list[Channels | None] = [None] * len(variable.shape)
            axes[axis] = units
            call.weight(variable, *axes)
