"""Recurrent layers: units are channels, made by every gate and read again at the next step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from sgdap.channels.labels import Labels, Symbol, concatenate, merge, positions
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.channels.rules.activation import is_elementwise

_CELLS = (layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell)


@register_rule(layers.RNN, layers.SimpleRNN, layers.LSTM, layers.GRU)
def recurrent(layer: Any, call: RuleCall) -> list[Symbol]:
    """Units are channels: of every gate, of the state, and read again at the next step."""
    stacked = isinstance(layer.cell, layers.StackedRNNCells)
    cells = layer.cell.cells if stacked else [layer.cell]
    unknown = [type(cell).__name__ for cell in cells if type(cell) not in _CELLS]
    if unknown:
        return call.keep_all(
            f"no rule for the cell {unknown[0]} of '{layer.name}'; units of Keras' own cells may "
            "leave (SimpleRNNCell, GRUCell, LSTMCell)"
        )
    call.keep_positions(-1)
    whole = isinstance(layer, (layers.SimpleRNN, layers.LSTM, layers.GRU))
    features = call.along(call.input, -1)
    of_states: list[Labels] = []
    for number, cell in enumerate(cells):
        units = call.new_channels(cell.units, str(number) if stacked else "")
        gates = _cell_weights(cell, call, features, units)
        if number == 0:  # others read what no one sees between the steps
            call.projection(layer, call.input, cell.kernel, cell.bias, features, gates)
        _keep_unless_elementwise(layer, cell, call, units)
        place = ("cell", "config", "cells", number, "config") if stacked else ("cell", "config")
        call.resize("units" if whole else (*place, "units"), units)
        of_states += [units] * len(keras.tree.flatten(cell.state_size))
        features = units
    _states(layer, call, of_states, -1)
    channels = [features, *of_states]
    return [x.with_axis(-1, own) for x, own in zip(call.outputs(), channels, strict=False)]


def _cell_weights(cell: Any, call: RuleCall, features: Labels, units: Labels) -> Labels:
    """States what lies along a cell's variables; returns the units of all its gates."""
    gates = np.tile(units, cell.recurrent_kernel.shape[1] // cell.units)
    call.weight(cell.kernel, features, gates)
    call.weight(cell.recurrent_kernel, units, gates)
    if cell.bias is not None:  # of two rows where a GRU resets after the product
        call.weight(cell.bias, *[None] * (len(cell.bias.shape) - 1), gates)
    steps = positions(call.input.shape[1:-1])
    call.work(2 * steps, features, gates)
    call.work(2 * steps, units, gates)
    return gates


@register_rule(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def convolutional(layer: Any, call: RuleCall) -> list[Symbol]:
    """Filters are channels: of every gate, of the state, and convolved again at the next step."""
    cell = layer.cell
    first = cell.data_format == "channels_first"
    of_sequence, of_state = (2, 1) if first else (-1, -1)
    call.keep_positions(of_sequence)
    features = call.along(call.input, of_sequence)
    filters = call.new_channels(cell.filters)
    gates = np.tile(filters, 4)
    spatial = [None] * len(cell.kernel_size)
    call.weight(cell.kernel, *spatial, features, gates)
    call.weight(cell.recurrent_kernel, *spatial, filters, gates)
    call.weight(cell.bias, gates)
    call.resize("filters", filters)
    _keep_unless_elementwise(layer, cell, call, filters)
    _states(layer, call, [filters, filters], of_state)
    sequences = len(call.output_shape) == call.input.rank
    places = call.output_shape[2:] if sequences else call.output_shape[1:]
    area = math.prod(cell.kernel_size)
    steps = positions(call.input.shape[1:2]) * positions(places[1:] if first else places[:-1])
    call.work(2 * steps * area, features, gates)
    call.work(2 * steps * area, filters, gates)
    axes = [of_sequence if sequences else of_state, of_state, of_state]
    return [x.with_axis(axis, filters) for x, axis in zip(call.outputs(), axes, strict=False)]


@register_rule(layers.Bidirectional)
def bidirectional(layer: Any, call: RuleCall) -> list[Symbol]:
    """Two recurrent layers; Keras takes their widths to be the same, so their units are tied."""
    x = call.input
    given = keras.tree.flatten(call.argument("initial_state", 1))
    states = [state for state in given if isinstance(state, Symbol)]
    call.keep_masks([x, *states])
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


def _keep_unless_elementwise(layer: Any, cell: Any, call: RuleCall, units: Labels) -> None:
    """Protects the units of a cell where one of its activations mixes them."""
    activations = (cell.activation, getattr(cell, "recurrent_activation", cell.activation))
    if not all(is_elementwise(activation, len(units)) for activation in activations):
        call.keep(units, f"an activation of '{layer.name}' mixes the channels")


def _states(layer: Any, call: RuleCall, of_states: Sequence[Labels], axis: int) -> None:
    """Ties the states that a layer starts from, or keeps between batches, to its units."""
    given = keras.tree.flatten(call.argument("initial_state", 1))
    for state, units in zip(given, of_states, strict=False):
        if isinstance(state, Symbol):
            call.tie(call.along(state, axis), units)
            call.keep_positions(axis, state)
        elif state is not None:
            call.keep(units, f"'{layer.name}' starts from a constant state")
    call.keep_masks([call.input, *given])
    for variable, units in zip(keras.tree.flatten(layer.states), of_states, strict=False):
        if variable is not None:
            axes: list[Labels | None] = [None] * len(variable.shape)
            axes[axis] = units
            call.weight(variable, *axes)
