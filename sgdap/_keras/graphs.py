"""What is private to the graphs of Keras' functional models: their nodes, and what holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from sgdap._keras import functional_of

Entries = list[tuple[Any, dict[str, Any]]]
"""Objects, and the attributes of each that change."""

_OF_GRAPH = (
    *("_inputs_struct", "_outputs_struct", "_inputs", "_outputs", "output_names"),
    *("_nodes", "_nodes_by_depth", "_operations", "_operations_by_depth"),
)
_OF_OPERATION = ("_inbound_nodes", "_outbound_nodes")


def graph_entries(model: Any, copy: Any, same: Mapping[int, Any]) -> Entries:
    """Returns what changes where a functional model takes over the graph of another one.

    Args:
        model: The model.
        copy: A functional model whose layers and operations stand for some of the model's. It is
            of no use afterwards.
        same: The model's layer or operation that each of the copy stands for, by the id of the
            copy's. Others of the copy come into the model.
    """
    from keras.src.ops.function import make_node_key

    graph: Any = functional_of(model)
    new: Any = functional_of(copy)
    operations = list(new._operations)

    def own(operation: Any) -> Any:
        return same.get(id(operation), operation)

    entries: Entries = []
    for operation in operations:
        attributes = {name: vars(operation)[name] for name in _OF_OPERATION}
        entries.append((own(operation), attributes))
        for node in operation._inbound_nodes:
            entries.append((node, {"operation": own(operation)}))
            for tensor in node.outputs:
                made = tensor._keras_history._replace(operation=own(operation))
                entries.append((tensor, {"_keras_history": made}))
    attributes = {name: vars(new)[name] for name in _OF_GRAPH}
    attributes["_nodes"] = {
        make_node_key(own(operation), number)
        for operation in operations
        for number in range(len(operation._inbound_nodes))
        if make_node_key(operation, number) in new._nodes
    }
    listed = type(new._operations)
    attributes["_operations"] = listed([own(operation) for operation in operations])
    attributes["_operations_by_depth"] = {
        depth: [own(operation) for operation in several]
        for depth, several in new._operations_by_depth.items()
    }
    entries.append((graph, attributes))
    entries += _held(model, graph, attributes["_operations"])
    for holder in {id(part): part for part in (model, graph)}.values():
        changed = {n: x for one, taken in entries if one is holder for n, x in taken.items()}
        entries.append((holder, _tracked_by_tensorflow(holder, changed)))
    return entries


def _held(model: Any, graph: Any, operations: list[Any]) -> Entries:
    """The lists of layers that a model and its graph hold, without those that left."""
    before = {id(operation) for operation in graph._operations}
    after = {id(operation) for operation in operations}
    there = {id(layer) for layer in model._layers}
    came = [x for x in operations if isinstance(x, keras.Layer) and id(x) not in there]

    def stays(layer: Any) -> bool:
        return id(layer) not in before or id(layer) in after

    found: Entries = []
    for holder in {id(part): part for part in (model, graph)}.values():
        layers = [layer for layer in holder._layers if stays(layer)]
        layers += [x for x in came if all(x is not layer for layer in layers)]
        found += _with_layers(holder, layers)
    state = vars(model).get("_compiled_trainable_state")
    if state is not None:
        known = {layer: kept for layer, kept in state.items() if stays(layer)}
        found.append((model, {"_compiled_trainable_state": type(state)(known)}))
    return found


def _tracked_by_tensorflow(holder: Any, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes by which TensorFlow's checkpoints know a model's attributes.

    They would hold on to the layers that left, whose variables are empty.
    """
    names = vars(holder).get("_self_unconditional_dependency_names")
    if names is None:
        return {}
    changed = {name: value for name, value in attributes.items() if name in names}
    references = holder._self_unconditional_checkpoint_dependencies
    return {
        "_self_unconditional_dependency_names": {**names, **changed},
        "_self_unconditional_checkpoint_dependencies": [
            type(own)(own.name, changed.get(own.name, own.ref)) for own in references
        ],
    }


def _with_layers(holder: Any, layers: list[Any]) -> Entries:
    """The attributes by which a model holds its layers, and tracks those that are set later."""
    held, tracker = holder._layers, holder._tracker
    new = type(held)(layers)
    if hasattr(held, "tracker"):
        new.tracker = held.tracker
    is_layer, tracked = tracker.config["layers"]
    kept = new if tracked is held else list(layers)
    ids = {**tracker.stored_ids, "layers": set(map(id, layers))}
    config = {**tracker.config, "layers": (is_layer, kept)}
    return [(holder, {"_layers": new}), (tracker, {"config": config, "stored_ids": ids})]
