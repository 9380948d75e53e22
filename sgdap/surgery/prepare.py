"""Prepares the change of a model whose layers are rebuilt; never touches the model itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap._keras.optimizers import optimizers_of
from sgdap._keras.variables import with_value
from sgdap.channels.resizing import called, check_variables, resized
from sgdap.model.building import weights_not_drawn
from sgdap.model.generators import global_state_kept
from sgdap.model.program import Call, OperationCall, Program, Ref, Shape, fill
from sgdap.model.symbolic_graph import symbolic_graph
from sgdap.surgery.adopt import Change
from sgdap.surgery.optimizer import Replaced, rebuild_optimizer

Updates = Mapping[tuple[str, int], npt.NDArray[Any]]
"""New values of variables, by the path of the layer and the number of the variable."""

Slices = Mapping[tuple[str, int], list[npt.NDArray[np.int64] | None]]
"""For variables that shrink, the indices that stay along each axis."""


def prepare(
    program: Program,
    configs: Mapping[str, Mapping[str, Any]],
    operations: Mapping[str, OperationCall],
    values: Updates,
    slices: Slices,
    *,
    others: Sequence[tuple[Any, npt.NDArray[Any]]] = (),
    slots: Sequence[tuple[Any, Sequence[npt.NDArray[Any] | None]]] = (),
    optimizers: Sequence[Any] = (),
) -> Change:
    """Prepares a change of a model. Neither the model nor Keras' global state changes.

    Args:
        program: The calls of the model.
        configs: The entries of layers' configs that change, by path.
        operations: The new form of operations (not layers) that change, by path.
        values: The values of layers' variables that change.
        slices: For variables that shrink, the indices that stay along each axis.
        others: Variables of the model that are in no layer of its graph, and their new values.
        slots: Optimizers and the new values of all their variables. None keeps the old value; of
            a slot, the entries that stay.
        optimizers: Optimizers that follow besides those that the model holds.

    Returns:
        The prepared change.

    Raises:
        ValueError: A layer or an optimizer can't be rebuilt from its config.
    """
    model, layers = program.model, program.layers()
    tensors, nodes = symbolic_graph(program)
    with _keras.scope_of(model), global_state_kept():
        rebuilt, shapes, new_operations = _rebuild_layers(program, configs, operations, values)
        replaced = {
            id(change.old): change
            for changes in (
                _variables_of_rebuilt(rebuilt, values, slices),
                _variables_with_values(layers, rebuilt, values, others),
            )
            for change in changes
        }
        new_slots = {id(optimizer): new for optimizer, new in slots}
        following = {id(optimizer): optimizer for optimizer in optimizers}
        following |= {id(optimizer): optimizer for optimizer in optimizers_of(model)}
        rebuilt_optimizers = [
            pair
            for optimizer in following.values()
            for pair in rebuild_optimizer(optimizer, replaced, new_slots.get(id(optimizer)))
        ]
    variables = [(x.old, x.new) for x in replaced.values() if x.held is x.old]
    exchanged_operations = [(layers[path], new) for path, new in new_operations.items()]
    insides = (*rebuilt.values(), *exchanged_operations, *variables, *rebuilt_optimizers)
    return Change(
        insides=insides,
        arguments=tuple(_new_arguments(nodes, operations)),
        shapes=tuple(_new_shapes(program, tensors, shapes)),
        composites=tuple(_composites(program)),
        leaving=tuple(_leaving(model, insides)),
    )


def _variables_of_rebuilt(
    rebuilt: Mapping[str, tuple[Any, Any]], values: Updates, slices: Slices
) -> Iterator[Replaced]:
    """Fills the variables of rebuilt layers, which replace the old ones."""
    for path, (old, new) in rebuilt.items():
        _keras.copy_trainable(old, new)
        pairs = zip(_keras.layer_variables(old), _keras.layer_variables(new), strict=True)
        for number, (before, after) in enumerate(pairs):
            _keras.keep_variable_path(before, after)
            after.assign(values.get((path, number), before))
            yield Replaced(before, after, after, slices.get((path, number), []))


def _variables_with_values(
    layers: Mapping[str, Any],
    rebuilt: Mapping[str, Any],
    values: Updates,
    others: Sequence[tuple[Any, npt.NDArray[Any]]],
) -> Iterator[Replaced]:
    """Makes new variables for layers that stay; the old variables take over their attributes."""
    pairs = [
        (_keras.layer_variables(layers[path])[number], value)
        for (path, number), value in values.items()
        if path not in rebuilt
    ]
    for variable, value in (*pairs, *others):
        yield Replaced(variable, with_value(variable, value), variable)


def _new_arguments(
    nodes: Sequence[tuple[Any, Call]], operations: Mapping[str, OperationCall]
) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Keras' nodes of calls, and the new arguments of the operations that they call."""
    for node, call in nodes:
        if call.path not in operations:
            continue
        before = keras.tree.flatten(_keras.node_arguments(node))
        given = [leaf for leaf in before if isinstance(leaf, keras.KerasTensor)]
        yield node, *fill(operations[call.path], dict(enumerate(given)))


def _new_shapes(
    program: Program, tensors: Sequence[tuple[keras.KerasTensor, Ref]], shapes: Sequence[Shape]
) -> Iterator[tuple[keras.KerasTensor, Shape]]:
    """The model's symbolic tensors and their new shapes."""
    known: dict[int, Shape] = {}
    for symbol, ref in tensors:
        # A model inside the model may leave sizes open that are known where it is called.
        whole = known.get(id(symbol), tuple(symbol.shape))
        sizes = zip(whole, program.shapes[ref.index], shapes[ref.index], strict=True)
        shape = tuple(own if own is None or old == new else new for own, old, new in sizes)
        known[id(symbol)] = shape
        yield symbol, shape


def _leaving(model: Any, insides: Sequence[tuple[Any, Any]]) -> Iterator[Any]:
    """The backend's variables that neither the changed parts nor other layers will have."""
    olds, news = ([pair[side] for pair in insides] for side in (0, 1))
    changed = {id(x) for old in olds for x in (old, *_layers_in(old))}
    others = [x for x in _layers_in(model) if changed.isdisjoint(map(id, _layers_in(x)))]
    held = [v for v in _variables(others) if id(v) not in changed]
    stay = {id(variable.value) for variable in (*held, *_variables(news))}
    values = (variable.value for variable in _variables(olds))
    return (value for value in values if id(value) not in stay)


def _layers_in(part: Any) -> Iterator[Any]:
    return _keras.flatten_layers(part) if isinstance(part, keras.Layer) else iter(())


def _variables(parts: Iterable[Any]) -> Iterator[Any]:
    """The variables of layers and optimizers, and variables themselves."""
    for part in parts:
        if isinstance(part, keras.Variable):
            yield part
        elif isinstance(part, keras.Layer):
            yield from _keras.layer_variables(part)
        elif isinstance(part, keras.optimizers.Optimizer):
            yield from part.variables


def _composites(program: Program) -> list[Any]:
    """The models inside a model, and the layers whose `call` the user wrote."""
    inside = [x for x in _keras.flatten_layers(program.model) if isinstance(x, keras.Model)]
    found = {id(x): x for x in (*inside, *(code.layer for code in program.codes))}
    return [x for x in found.values() if x is not program.model]


def _rebuild_layers(
    program: Program,
    configs: Mapping[str, Mapping[str, Any]],
    operations: Mapping[str, OperationCall],
    values: Updates,
) -> tuple[dict[str, tuple[Any, Any]], list[Shape], dict[str, Any]]:
    """Builds new layers where a config or an input shape changed, following the graph."""
    shapes = list(program.shapes)
    layers = program.layers()
    touched = {*configs}
    for (path, number), value in values.items():
        if tuple(_keras.layer_variables(layers[path])[number].shape) != value.shape:
            touched.add(path)
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
        operation = call.operation
        if call.path in operations:
            config = dict(operations[call.path].config)
            operation = rewritten_ones.setdefault(call.path, type(operation).from_config(config))
        given = dict(enumerate(tensor(ref.index) for ref in call.inputs))
        args, kwargs = fill(operations.get(call.path) or OperationCall.of(call, {}), given)
        if not is_layer:
            results = operation.compute_output_spec(*args, **kwargs)
        else:
            if call.path not in rebuilt:
                new = resized(operation, call.path, configs.get(call.path, {}))
                rebuilt[call.path] = (operation, new)
            with weights_not_drawn():
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
