"""Rebuilds the layers of a model in place with fewer channels; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.facts import Resize
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.channels.replay import rewritten_operations
from sgdap.channels.resizing import called, check_variables, new_entries, resized
from sgdap.channels.rewriting import Written
from sgdap.channels.slices import sliced, variable_of, variable_slices
from sgdap.model.program import Call, Program, fill
from sgdap.planning.widths import WidthRules
from sgdap.surgery.optimizer import rebuild_optimizer, remade

Mask = npt.NDArray[np.bool_]
Updates = Mapping[tuple[str, int], npt.NDArray[np.floating[Any]]]
"""New values of variables (path of the layer, number of the variable), already slim."""

Slices = Mapping[tuple[str, int], list[npt.NDArray[np.int64] | None]]
"""For variables that shrink, the indices that stay along each axis."""


def prune_in_place(graph: ChannelGraph, kept: Mask, updates: Updates | None = None) -> None:
    """Makes a model slim; the model, its layers and its optimizer stay the same objects.

    Everything new is built first, then exchanged, so an error leaves the model as it was.

    Args:
        graph: The model's channels. It describes the model before; trace again afterwards.
        kept: Which channels stay, `(graph.count,)`.
        updates: Values for some variables of the slim model (the reconstruction); all others are
            sliced.

    Raises:
        ValueError: A layer can't be rebuilt from its config.
    """
    rebuild(graph.program, *_changes(graph, kept, updates))


def check_can_be_rebuilt(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], rules: WidthRules
) -> None:
    """Tries whether a model's layers and its optimizer can be made again, one step slimmer.

    Args:
        graph: The model's channels.
        groups: The groups that may shrink.
        rules: The widths that they may have.

    Raises:
        ValueError: One of those that surgery would touch can't.
    """
    model = graph.program.model
    configs, operations, values, _ = _changes(graph, _one_slimmer(graph, groups, rules))
    with _keras.scope_of(model):
        rebuilt, _, _ = _rebuild_layers(graph.program, configs, operations, values)
        variables = {id(v) for old, _ in rebuilt.values() for v in _keras.layer_variables(old)}
        for optimizer in _keras.optimizers_of(model):
            updated = _keras.optimizer_variables(optimizer) if optimizer.built else []
            own = optimizer is getattr(model, "optimizer", None)
            if own or any(id(v) in variables for v in updated):
                remade(optimizer)


def _one_slimmer(graph: ChannelGraph, groups: Sequence[ChannelGroup], rules: WidthRules) -> Mask:
    """Which channels stay where every group gets the next width that it may have."""
    kept = np.ones(graph.count, bool)
    for group in groups:
        removable = group.channels[group.removable]
        widths = [w for w in rules.allowed(group) if group.size - len(removable) <= w < group.size]
        if widths:
            kept[removable[len(removable) - group.size + widths[0] :]] = False
    for axis in graph.axes:
        if not kept[axis.channels].any():
            kept[axis.channels] = True
    return kept


def _changes(
    graph: ChannelGraph, kept: Mask, updates: Updates | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, Written], dict[tuple[str, int], Any], Slices]:
    """What `rebuild` takes: configs, operations and values that change, and what stays."""
    slices = variable_slices(graph, kept)
    values = {
        key: sliced(variable_of(graph.program, key).numpy(), index) for key, index in slices.items()
    }
    values.update(updates or {})
    for scale in graph.scales:
        key = (scale.path, scale.variable)
        factor = kept[scale.channels].mean() ** scale.power
        if factor != 1:
            values[key] = values[key] * np.asarray(factor, values[key].dtype)
    configs = _new_entries(graph, kept, {path for path, _ in slices})
    return configs, rewritten_operations(graph.program, graph.rewrites, kept), values, slices


def _new_entries(graph: ChannelGraph, kept: Mask, shrunk: set[str]) -> dict[str, dict[str, Any]]:
    """The entries of layers' configs that count channels that leave."""
    of_layers: dict[str, list[Resize]] = {}
    for resize in graph.resizes:
        of_layers.setdefault(resize.path, []).append(resize)
    layers = graph.program.layers()
    entries = {
        path: new_entries(layers[path], resizes, kept, shrunk=path in shrunk)
        for path, resizes in of_layers.items()
    }
    return {path: changed for path, changed in entries.items() if changed}


def rebuild(
    program: Program,
    configs: Mapping[str, Mapping[str, Any]],
    operations: Mapping[str, Written],
    values: Updates,
    slices: Slices,
) -> None:
    """Rebuilds layers with other configs and exchanges their inside, the optimizer's too.

    Args:
        program: The calls of the model.
        configs: Entries of layers' configs that change, by path.
        operations: How operations that are no layers are written, where that changes, by path.
        values: Values of variables that change.
        slices: For variables that shrink, the indices that stay along each axis.

    Raises:
        ValueError: A layer can't be rebuilt from its config.
    """
    model = program.model
    with _keras.scope_of(model):
        rebuilt, shapes, new_operations = _rebuild_layers(program, configs, operations, values)
        replaced: dict[int, tuple[Any, list[npt.NDArray[np.int64] | None]]] = {}
        for path, (old, new) in rebuilt.items():
            _keras.copy_trainable(old, new)
            pairs = zip(_keras.layer_variables(old), _keras.layer_variables(new), strict=True)
            for number, (before, after) in enumerate(pairs):
                _keras.keep_variable_path(before, after)
                after.assign(values.get((path, number), before))
                replaced[id(before)] = (after, slices.get((path, number), []))
        optimizers = [
            pair
            for optimizer in _keras.optimizers_of(model)
            for pair in rebuild_optimizer(optimizer, replaced)
        ]
        for old, new in rebuilt.values():
            _keras.exchange_inside(old, new)
        for path, operation in new_operations.items():
            _keras.exchange_inside(program.layers()[path], operation)
        for call in program.calls:
            if call.path in operations and call.node is not None:
                _write_node(call, operations[call.path])
        for symbol, ref in program.symbols:
            # A model inside the model may leave sizes open that are known where it is called.
            sizes = zip(symbol.shape, program.shapes[ref.index], shapes[ref.index], strict=True)
            shape = tuple(own if own is None or old == new else new for own, old, new in sizes)
            _keras.set_shape(symbol, shape)
        for optimizer, new in optimizers:
            _keras.exchange_inside(optimizer, new)
        _keras.forget_build_shapes(model, [code.layer for code in program.codes])
        _keras.refresh_trainable_state(model)
        remake_functions(model)


def remake_functions(model: Any) -> None:
    """Makes the train, test and predict functions anew where they exist.

    Those of models inside the model are dropped; Keras makes them when they are needed.
    """
    for inner in _keras.flatten_layers(model):
        if isinstance(inner, keras.Model) and inner is not model:
            inner.train_function = inner.test_function = inner.predict_function = None
    if model.train_function is not None:
        model.make_train_function(force=True)
    if model.test_function is not None:
        model.make_test_function(force=True)
    if model.predict_function is not None:
        model.make_predict_function(force=True)


def _write_node(call: Call, written: Written) -> None:
    """Gives Keras' record of a call the arguments that the operation is called with now."""
    before = keras.tree.flatten(_keras.node_arguments(call.node))
    tensors = [leaf for leaf in before if isinstance(leaf, keras.KerasTensor)]
    known = {ref.index: tensor for ref, tensor in zip(call.inputs, tensors, strict=True)}
    now = replace(call, args=written.args, kwargs=written.kwargs)
    _keras.write_node_arguments(call.node, *fill(now, known))


def _rebuild_layers(
    program: Program,
    configs: Mapping[str, Mapping[str, Any]],
    operations: Mapping[str, Written],
    values: Updates,
) -> tuple[dict[str, tuple[Any, Any]], list[tuple[int | None, ...]], dict[str, Any]]:
    """Builds new layers where a config or an input shape changed, following the graph."""
    shapes = list(program.shapes)
    touched = {*configs, *(path for path, _ in values)}
    tensors: dict[int, Any] = {}

    def tensor(index: int) -> Any:
        if index not in tensors:
            tensors[index] = keras.KerasTensor(shapes[index], dtype=program.dtypes[index])
        return tensors[index]

    rebuilt: dict[str, tuple[Any, Any]] = {}
    rewritten_ones: dict[str, Any] = {}
    for call in program.calls:
        moved = any(shapes[ref.index] != program.shapes[ref.index] for ref in call.inputs)
        is_layer = isinstance(call.operation, keras.Layer)
        if not moved and call.path not in touched and is_layer:
            continue
        operation, now = call.operation, call
        if call.path in operations:
            written = operations[call.path]
            now = replace(call, args=written.args, kwargs=written.kwargs)
            operation = rewritten_ones.setdefault(
                call.path, type(operation).from_config(dict(written.config))
            )
        args, kwargs = fill(now, {ref.index: tensor(ref.index) for ref in call.inputs})
        if not is_layer:
            results = operation.compute_output_spec(*args, **kwargs)
        else:
            if call.path not in rebuilt:
                new = resized(operation, call.path, configs.get(call.path, {}))
                rebuilt[call.path] = (operation, new)
            results = called(rebuilt[call.path][1], call.path, args, kwargs)
        for ref, result in zip(call.outputs, keras.tree.flatten(results), strict=True):
            known = program.shapes[ref.index]
            shapes[ref.index] = tuple(
                old if new is None else new for old, new in zip(known, result.shape, strict=True)
            )
    for path, (old, new) in rebuilt.items():
        shapes_now = {number: v.shape for (owner, number), v in values.items() if owner == path}
        check_variables(path, old, new, shapes_now)
    return rebuilt, shapes, rewritten_ones
