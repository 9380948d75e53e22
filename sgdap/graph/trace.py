"""A model as a flat list of calls, nested models unrolled; it can be run on data and tapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from sgdap import _keras

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Ref:
    """Stands for one tensor of a `Program`; `index` numbers the tensors in order of creation."""

    index: int


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: The layer or `keras.Operation`.
        path: Its name, with those of the nested models around it: `"encoder/dense"`.
        args: Positional arguments, a `Ref` in the place of each tensor.
        kwargs: Keyword arguments, likewise.
        outputs: The tensors it makes, flattened.
        node: Keras' record of the call.
    """

    operation: Any
    path: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Ref, ...]
    node: Any = None

    @property
    def inputs(self) -> tuple[Ref, ...]:
        """All tensors it takes, flattened."""
        return tuple(
            leaf for leaf in _leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Ref)
        )


@dataclass(frozen=True, eq=False)
class Program:
    """A model unrolled into calls, in an order in which they can be run.

    Attributes:
        model: The Keras model it was traced from.
        functional: The graph that standardises the model's inputs.
        inputs: The model's input tensors, flattened.
        outputs: The model's outputs, flattened.
        calls: Every call, producers before consumers.
        shapes: The symbolic shape of each tensor, batch axis first.
        dtypes: The dtype of each tensor.
        symbols: The model's own symbolic tensors and the `Ref` that each is.
    """

    model: Any
    functional: Any
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    calls: tuple[Call, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    symbols: tuple[tuple[keras.KerasTensor, Ref], ...]

    def layers(self) -> dict[str, Any]:
        """The layers and operations by path, each once, in order of their first call."""
        found: dict[str, Any] = {}
        for call in self.calls:
            found.setdefault(call.path, call.operation)
        return found

    def run(
        self,
        inputs: Any,
        taps: Mapping[int, Callable[[Call, Callable[[], Any], list[Any]], Any]] | None = None,
    ) -> list[Any]:
        """Runs the program on data, in inference mode.

        Args:
            inputs: What the model takes: an array or tensor, or a list or dict of them.
            taps: For calls by their number, a function `(call, compute, flat inputs)` that returns
                the call's output; `compute()` calls the layer.

        Returns:
            The model's outputs, flattened.
        """
        return self.run_flat(_keras.standardize_inputs(self.functional, inputs), taps)

    def run_flat(
        self,
        inputs: list[Any],
        taps: Mapping[int, Callable[[Call, Callable[[], Any], list[Any]], Any]] | None = None,
    ) -> list[Any]:
        """Runs the program as `run` does, on the flat list of its input tensors."""
        values: dict[int, Any] = {}
        for ref, value in zip(self.inputs, inputs, strict=True):
            values[ref.index] = value
        for number, call in enumerate(self.calls):
            args, kwargs = fill(call, values)
            if "training" not in kwargs and "training" in getattr(
                call.operation, "call_signature_parameters", ()
            ):
                kwargs["training"] = False

            def compute(call: Call = call, args: Any = args, kwargs: Any = kwargs) -> Any:
                return call.operation(*args, **kwargs)

            tap = (taps or {}).get(number)
            if tap is None:
                result = compute()
            else:
                result = tap(call, compute, [values[ref.index] for ref in call.inputs])
            for ref, value in zip(call.outputs, _leaves(result), strict=True):
                values[ref.index] = value
        return [values[ref.index] for ref in self.outputs]


def trace(model: Any) -> Program:
    """Unrolls a built `Sequential` or `Functional` model, the models nested in it too.

    Args:
        model: A built Keras model.

    Returns:
        The model's `Program`.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: It is not built, or has no graph of layers that can be read.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected a keras.Model. Received: {model!r} (of type {type(model).__name__})."
        )
    functional = _keras.functional_of(model)
    if functional is None:
        if isinstance(model, keras.Sequential):
            raise ValueError(
                f"Model '{model.name}' is not built, so its widths are not known yet. Add a "
                "keras.Input as its first layer, or call it once on a batch of data."
            )
        raise ValueError(
            f"Model '{model.name}' (of class {type(model).__name__}) has its own `call`, which "
            "sgdap cannot read yet. Write it as a keras.Sequential or with the functional API: "
            "keras.Model(inputs, outputs)."
        )
    tracer = _Tracer()
    inputs = tuple(tracer.new(tensor) for tensor in functional.inputs)
    known = dict(zip(map(id, functional.inputs), inputs, strict=True))
    outputs = tuple(tracer.graph(functional.outputs, known, ""))
    return Program(
        model=model,
        functional=functional,
        inputs=inputs,
        outputs=outputs,
        calls=tuple(tracer.calls),
        shapes=tuple(tracer.shapes),
        dtypes=tuple(tracer.dtypes),
        symbols=tuple(tracer.symbols),
    )


def fill(call: Call, values: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a call's arguments with `values` (by number of the tensor) in the place of `Ref`s."""

    def value(leaf: Any) -> Any:
        return values[leaf.index] if isinstance(leaf, Ref) else leaf

    args, kwargs = keras.tree.map_structure(value, (call.args, dict(call.kwargs)))
    return args, kwargs


def _leaves(structure: Any) -> list[Any]:
    return list(keras.tree.flatten(structure))


class _Tracer:
    """Walks the symbolic graphs of a model and of the models in it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.shapes: list[Shape] = []
        self.dtypes: list[str] = []
        self.symbols: list[tuple[keras.KerasTensor, Ref]] = []
        self._paths: dict[int, str] = {}

    def new(self, tensor: keras.KerasTensor) -> Ref:
        """Numbers a symbolic tensor."""
        ref = Ref(len(self.shapes))
        self.shapes.append(tuple(tensor.shape))
        self.dtypes.append(tensor.dtype)
        self.symbols.append((tensor, ref))
        return ref

    def graph(
        self, outputs: list[keras.KerasTensor], known: dict[int, Ref], prefix: str
    ) -> list[Ref]:
        """Unrolls all calls between the `known` tensors and `outputs`; returns the outputs."""
        for node in _ordered_nodes(outputs, known):
            self._call(node, known, prefix)
        return [known[id(tensor)] for tensor in outputs]

    def _call(self, node: Any, known: dict[int, Ref], prefix: str) -> None:
        def substitute(leaf: Any) -> Any:
            return known[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf

        args, kwargs = keras.tree.map_structure(substitute, _keras.node_arguments(node))
        operation = node.operation
        path = self._paths.setdefault(id(operation), prefix + operation.name)
        inner = _keras.functional_of(operation) if isinstance(operation, keras.Model) else None
        if inner is not None:
            given = _leaves(args[0] if args else kwargs["inputs"])
            bound = dict(zip(map(id, inner.inputs), given, strict=True))
            self.symbols.extend(zip(inner.inputs, given, strict=True))
            made = self.graph(inner.outputs, bound, f"{path}/")
            for tensor, ref in zip(node.outputs, made, strict=True):
                known[id(tensor)] = ref
                self.symbols.append((tensor, ref))
            return
        refs = []
        for tensor in node.outputs:
            known[id(tensor)] = self.new(tensor)
            refs.append(known[id(tensor)])
        self.calls.append(Call(operation, path, args, kwargs, tuple(refs), node))


def _ordered_nodes(outputs: list[keras.KerasTensor], known: Mapping[int, Ref]) -> list[Any]:
    """Returns the nodes that lead from the `known` tensors to `outputs`, parents first."""
    ordered: list[Any] = []
    done: set[int] = set()
    stack: list[tuple[keras.KerasTensor, bool]] = [(t, False) for t in reversed(outputs)]
    while stack:
        tensor, expanded = stack.pop()
        if id(tensor) in known:
            continue
        record = _keras.history(tensor)
        if record is None:
            raise ValueError(
                f"The tensor '{tensor.name}' of shape {tensor.shape} reaches the model's outputs "
                "but is made by none of its layers. Make it an input of the model."
            )
        node = _keras.node_of(*record)
        if id(node) in done:
            continue
        if expanded:
            done.add(id(node))
            ordered.append(node)
            continue
        stack.append((tensor, True))
        stack.extend((parent, False) for parent in reversed(node.input_tensors))
    return ordered
