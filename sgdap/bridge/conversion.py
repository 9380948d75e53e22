"""Converts models of Keras 3 to `tf_keras` and back, layer by layer; changes none given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from sgdap._arguments import shown
from sgdap.bridge import operations
from sgdap.bridge.compiling import compile_alike
from sgdap.bridge.graphs import Graph, Node, graph_of, tf_keras_graph_of
from sgdap.bridge.layers import copy_state, other_layer
from sgdap.bridge.sides import NotConvertibleError, Sides, tf_keras_package
from sgdap.model.functional import functional
from sgdap.model.generators import global_state_kept
from sgdap.model.tracing import check_is_no_tf_keras, trace


def to_tf_keras(model: Any) -> Any:
    """Makes a model of `tf_keras` (Keras 2) of one of Keras 3.

    So a slim model goes into packages that need old Keras, such as
    `tensorflow_model_optimization` with its training for quantized inference.

    Args:
        model: A built `keras.Model`: sequential or functional, also with models nested in it. One
            with a `call` of its own becomes a functional one, as by `sgdap.functional`. It is not
            changed, and no weight is shared.

    Returns:
        A `tf_keras.Model` of layers with the same names, weights and trainable flags; what
        `tf_keras` allows in no name, such as `/` and spaces, becomes `_`. Its outputs are those of
        `model`. If that is compiled, it is compiled in the same way, with a new optimizer, where
        `tf_keras` knows the loss, metrics and optimizer. Otherwise it is not compiled.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: Layers or operations have no equal in `tf_keras`; all of them are named.
        ImportError: `tf_keras` is not installed.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="end")])
        >>> other = sgdap.to_tf_keras(model)
        >>> x = np.ones((1, 4), "float32")
        >>> type(other).__module__.split(".")[0], np.allclose(other(x), model(x), atol=1e-6)
        ('tf_keras', True)
    """
    package = tf_keras_package()
    check_is_no_tf_keras(model)
    if not isinstance(model, keras.Model):
        trace(model)  # which says what is wrong
    with global_state_kept():
        plain = model if graph_of(model) is not None else functional(model)
        made = _Conversion(Sides(keras, package)).of(plain)
    compile_alike(model, made, Sides(keras, package))
    return made


def from_tf_keras(model: Any) -> Any:
    """Makes a model of Keras 3 of one of `tf_keras` (Keras 2).

    Args:
        model: A built `tf_keras.Model`: sequential or functional, also with models nested in it.
            It is not changed, and no weight is shared.

    Returns:
        A `keras.Model` of layers with the same names, weights and trainable flags; a `/` in a name
        becomes `_`. Its outputs are those of `model`. If that is compiled, it is compiled in the
        same way, with a new optimizer, where Keras 3 knows the loss, metrics and optimizer.
        Otherwise it is not compiled.

    Raises:
        TypeError: `model` is no model of `tf_keras`.
        ValueError: It is not built or has a `call` of its own, or layers have no equal in Keras 3;
            all of them are named.
        ImportError: `tf_keras` is not installed.

    Example:
        >>> import tf_keras
        >>> old = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2, name="end")])
        >>> model = sgdap.from_tf_keras(old)
        >>> [layer.name for layer in model.layers], isinstance(model, keras.Model)
        (['end'], True)
    """
    package = tf_keras_package()
    if not isinstance(model, package.Model):
        raise TypeError(
            f"Expected a tf_keras.Model. Received: {shown(model)} (of type {type(model).__name__})."
        )
    if tf_keras_graph_of(model, package) is None:
        raise ValueError(
            f"Model '{model.name}' (of class {type(model).__name__}) is not built, or has a `call` "
            "of its own. Call a sequential one once on a batch of data; write others as a "
            "functional model."
        )
    with global_state_kept():
        made = _Conversion(Sides(package, keras)).of(model)
    compile_alike(model, made, Sides(package, keras))
    return made


_HINT = " sgdap.functional(model) may write layers with a `call` of their own as others."


@dataclass(frozen=True, eq=False)
class _Part:
    """What stands for a layer, model or operation in the new model.

    Attributes:
        call: Makes its outputs of the new arguments.
        in_turn: Returns the one new layer or model that does it in a sequential model; None where
            it takes several.
    """

    call: Callable[..., Any]
    in_turn: Callable[[], Any] | None = None


class _Conversion:
    """One conversion, of a model and all that is nested in it.

    Args:
        sides: Where it comes from and goes.
    """

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._parts: dict[int, _Part] = {}
        self._sources: dict[int, Any] = {}
        self._graphs: dict[int, Graph] = {}
        self._models: dict[int, Any] = {}
        self._pairs: list[tuple[Any, Any]] = []
        self._problems: dict[tuple[str, str], list[str]] = {}

    def of(self, model: Any) -> Any:
        """Converts a model.

        Raises:
            ValueError: Something in it has no equal.
        """
        self._prepare(model, "")
        if self._problems:
            told = [
                f"{', '.join(paths)} (of class {name}: {why})"
                for (name, why), paths in self._problems.items()
            ]
            raise ValueError(
                f"Model '{model.name}' can't be converted to {self._sides.target_name}, because of "
                f"{'; '.join(told)}. Replace or remove these layers, then convert."
                f"{_HINT if self._sides.source is keras else ''}"
            )
        made = self._built(model)
        trained = {id(weight) for weight in model.trainable_weights}
        for key, other in reversed(self._models.items()):  # which sets the flags of all in it
            source = self._sources[key]
            other.trainable = source.trainable or any(id(w) in trained for w in source.weights)
        for source, target in self._pairs:
            copy_state(source, target, trained)
        return made

    # First all parts are made, so that an error can name all that is missing

    def _graph(self, model: Any) -> Graph | None:
        if self._sides.source is keras:
            return graph_of(model)
        return tf_keras_graph_of(model, self._sides.source)

    def _prepare(self, model: Any, prefix: str) -> None:
        graph = self._graph(model)
        if graph is None:
            self._complain(model, prefix.rstrip("/"), "it has a `call` of its own, not a graph")
            return
        self._sources[id(model)], self._graphs[id(model)] = model, graph
        if self._sides.target is keras:
            operations.count_past(node.operation.name for node in graph.nodes)
        valid = valid_names([node.operation.name for node in graph.nodes], self._sides)
        for node in graph.nodes:
            operation = node.operation
            if self._key(node) in self._parts:
                continue
            path = f"{prefix}{operation.name}"
            try:
                part = self._part(node, path, valid[operation.name])
            except NotConvertibleError as error:
                self._complain(operation, path, str(error))
                part = _Part(call=lambda *_, **__: None)
            self._parts[self._key(node)] = part

    def _complain(self, operation: Any, path: str, why: str) -> None:
        paths = self._problems.setdefault((type(operation).__name__, why), [])
        paths += [f"'{path}'"] if f"'{path}'" not in paths else []

    def _count(self) -> int:
        """How many layers and operations have no equal, so far."""
        return sum(map(len, self._problems.values()))

    def _key(self, node: Node) -> int:
        """The number of what one part stands for: a layer, or one call of an operation."""
        return id(node) if self._is_function(node.operation) else id(node.operation)

    def _is_function(self, operation: Any) -> bool:
        """Whether something has no weights and differs from call to call."""
        if self._sides.source is keras:
            return not isinstance(operation, keras.Layer)
        return operations.is_operation(operation)

    def _part(self, node: Node, path: str, name: str) -> _Part:
        operation = node.operation
        if isinstance(operation, self._sides.source.Model):
            self._prepare(operation, f"{path}/")
            return _Part(
                lambda *args, **kwargs: self._built(operation)(*args, **kwargs),
                lambda: self._built(operation),
            )
        if self._is_function(operation):
            known = self._sides.source is keras
            make = operations.tensorflow_function if known else operations.keras_function
            return _Part(make(node))
        made = other_layer(operation, name, self._sides, lambda x: self._inside(x, path))
        self._pairs.append((operation, made.layer))
        if made.tail is None:
            recurrent = self._sides.target is keras and type(operation).__name__ in _RECURRENT
            return _Part(_states_named(made.layer) if recurrent else made.layer, lambda: made.layer)
        tail = made.tail
        return _Part(lambda *args, **kwargs: tail(made.layer(*args, **kwargs)))

    def _inside(self, layer: Any, path: str) -> Any:
        """The equal of a layer inside another one, which copies its weights."""
        if isinstance(layer, self._sides.source.Model):
            before = self._count()
            self._prepare(layer, f"{path}/{layer.name}/")
            if self._count() > before:
                raise NotConvertibleError("what stands in the model inside it")
            return self._built(layer)
        name = layer.name.removeprefix("forward_").removeprefix("backward_")
        made = other_layer(layer, name, self._sides, lambda x: self._inside(x, path))
        if made.tail is not None:
            raise NotConvertibleError(
                f"{self._sides.target_name} has no such activation of '{layer.name}' inside it"
            )
        return made.layer

    # Then they are connected

    def _built(self, model: Any) -> Any:
        """The new model, made once."""
        if id(model) in self._models:
            return self._models[id(model)]
        package, graph = self._sides.target, self._graphs[id(model)]
        (name,) = valid_names([model.name], self._sides).values()
        inputs = self._inputs(model, graph)
        parts = [self._parts[self._key(node)] for node in graph.nodes]
        in_turn = isinstance(model, self._sides.source.Sequential)
        if in_turn and all(part.in_turn is not None for part in parts):
            layers = [part.in_turn() for part in parts if part.in_turn is not None]
            made = package.Sequential([inputs, *layers], name=name)
        else:
            made = package.Model(inputs, self._connected(graph, inputs), name=name)
        self._models[id(model)] = made
        return made

    def _inputs(self, model: Any, graph: Graph) -> Any:
        """New symbolic inputs like those of a graph."""
        flat = tf.nest.flatten(graph.inputs)
        told = [x.name for x in flat] if self._sides.source is keras else model.input_names
        if isinstance(graph.inputs, Mapping):  # Keras 3 wants the keys to be the names
            told = sorted(graph.inputs)
        names = valid_names(told, self._sides)
        made = [
            self._sides.target.Input(
                shape=tuple(tensor.shape)[1:],
                batch_size=tuple(tensor.shape)[0],
                dtype=getattr(tensor.dtype, "name", tensor.dtype),
                sparse=_is_sparse(tensor),
                name=names[name],
            )
            for tensor, name in zip(flat, told, strict=True)
        ]
        return tf.nest.pack_sequence_as(graph.inputs, made)

    def _connected(self, graph: Graph, inputs: Any) -> Any:
        """The outputs of the new layers, called one after another on new inputs."""
        flat = zip(tf.nest.flatten(graph.inputs), tf.nest.flatten(inputs), strict=True)
        tensors = {id(old): new for old, new in flat}

        def renewed(structure: Any) -> Any:
            return tf.nest.map_structure(lambda leaf: tensors.get(id(leaf), leaf), structure)

        for node in graph.nodes:
            args = [renewed(argument) for argument in node.args]
            kwargs = {k: renewed(v) for k, v in node.kwargs.items() if v is not None}
            try:
                made = tf.nest.flatten(self._parts[self._key(node)].call(*args, **kwargs))
            except Exception as error:
                raise ValueError(
                    f"'{node.operation.name}' (of class {type(node.operation).__name__}) can't be "
                    f"called in {self._sides.target_name} as the model calls it: {error}"
                ) from error
            tensors.update(zip(map(id, node.outputs), made, strict=True))
        return renewed(graph.outputs)


_RECURRENT = "Bidirectional ConvLSTM1D ConvLSTM2D ConvLSTM3D GRU LSTM RNN SimpleRNN".split()


def _states_named(layer: Any) -> Callable[..., Any]:
    """A call of a recurrent layer of Keras 3 as `tf_keras` makes it, states behind the input."""

    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(inputs, (list, tuple)):
            inputs, *states = inputs
            kwargs["initial_state"] = [*states]
        return layer(inputs, *args, **kwargs)

    return call


def _is_sparse(tensor: Any) -> bool:
    return bool(getattr(tensor, "sparse", False)) or isinstance(
        getattr(tensor, "type_spec", None), tf.SparseTensorSpec
    )


def valid_names(names: Iterable[str], sides: Sides) -> dict[str, str]:
    """Names that the other package takes, by those there were; different ones stay different."""
    made: dict[str, str] = {}
    for name in dict.fromkeys(names):
        valid = name.replace("/", "_")
        if sides.target is not keras:
            valid = re.sub(r"[^A-Za-z0-9_.\\-]", "_", valid)
            valid = valid if re.match("[A-Za-z0-9.]", valid) else f"layer{valid}"
        while valid in made.values() or (valid != name and valid in names):
            valid += "_1"
        made[name] = valid
    return made
