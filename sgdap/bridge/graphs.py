"""The graphs of functional models of either package in one plain form; makes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from sgdap import _keras


@dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer, a model or an operation.

    Attributes:
        operation: What is called.
        args: Positional arguments, with the symbolic tensors of the graph in them.
        kwargs: Keyword arguments, likewise.
        outputs: The tensors that it makes, flattened.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """What a functional or sequential model computes.

    Attributes:
        inputs: Its symbolic inputs, structured as it takes them.
        outputs: Its symbolic outputs, structured as it returns them.
        nodes: Its calls, producers before consumers.
    """

    inputs: Any
    outputs: Any
    nodes: tuple[Node, ...]


def graph_of(model: Any) -> Graph | None:
    """Reads the graph of a model of Keras 3; None where it has a `call` of its own.

    What Keras hands on by itself is left out: masks with what only they need, and `training`.
    """
    functional = _keras.functional_of(model)
    if functional is None:
        return None
    nodes: list[Node] = []
    needed = set(map(id, tf.nest.flatten(functional.output)))
    for node in reversed(_keras.nodes_of(functional)):
        if needed.isdisjoint(map(id, node.outputs)):
            continue
        args, kwargs = _keras.node_arguments(node)
        kwargs = {
            name: value
            for name, value in kwargs.items()
            if not _is_handed_on(name, value, args) and not _is_default(name, value, node.operation)
        }
        needed.update(map(id, tf.nest.flatten((args, kwargs))))
        nodes.append(Node(node.operation, tuple(args), kwargs, tuple(node.outputs)))
    return Graph(functional.input, functional.output, tuple(reversed(nodes)))


def _is_handed_on(name: str, value: Any, args: Any) -> bool:
    """Whether an argument holds the masks of the positional ones and nothing else."""
    if not name.endswith("mask"):
        return False
    own = {id(_keras.mask_of(x)) for x in tf.nest.flatten(args) if hasattr(x, "shape")}
    masks = {id(mask) for mask in tf.nest.flatten(value) if hasattr(mask, "shape")}
    return bool(masks) and masks <= own


def _is_default(name: str, value: Any, operation: Any) -> bool:
    """Whether an argument `training` may be none of the user's: Keras writes down the default."""
    if name != "training":
        return False
    parameter = inspect.signature(operation.call).parameters.get(name)
    return value is None or (parameter is not None and value is parameter.default)


def tf_keras_graph_of(model: Any, package: Any) -> Graph | None:
    """Reads the graph of a model of `tf_keras`; None where it has a `call` of its own.

    Args:
        model: The model.
        package: `tf_keras`.
    """
    own = package.Sequential if isinstance(model, package.Sequential) else package.Model
    tensor = package.Input((), name="input")  # with names, nothing is counted
    functional = type(package.Model(tensor, tensor, name="identity"))
    graphlike = isinstance(model, (functional, package.Sequential)) and model.inputs
    if not graphlike or type(model).call not in (functional.call, own.call):
        return None
    made = {id(tensor) for tensor in tf.nest.flatten(model.input)}
    nodes: list[Node] = []
    pending = [(tensor, False) for tensor in reversed(tf.nest.flatten(model.output))]
    while pending:
        tensor, ready = pending.pop()
        if id(tensor) in made:
            continue
        node = tensor.node
        if not ready:
            pending.append((tensor, True))
            pending += [(before, False) for before in reversed(node.keras_inputs)]
            continue
        outputs = tuple(tf.nest.flatten(node.outputs))
        made.update(map(id, outputs))
        nodes.append(Node(node.layer, tuple(node.call_args), node.call_kwargs, outputs))
    return Graph(model.input, model.output, tuple(nodes))
