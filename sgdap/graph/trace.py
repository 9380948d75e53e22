"""A model as a flat list of calls, nested models unrolled; it can be run on data and tapped."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from sgdap import _keras
from sgdap.graph.interception import calls_intercepted, has_code, user_line

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
        made: The tensors it makes, structured as it returns them.
    """

    operation: Any
    path: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Ref, ...]
    node: Any = None
    made: Any = None

    @property
    def inputs(self) -> tuple[Ref, ...]:
        """All tensors it takes, flattened."""
        return tuple(
            leaf for leaf in _leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Ref)
        )


@dataclass(frozen=True, eq=False)
class Code:
    """A `call` of the user's own that was traced.

    Attributes:
        path: Path of the model or layer; empty for the whole model.
        layer: The model or layer.
        args: Positional arguments, a `Ref` in the place of each tensor.
        kwargs: Keyword arguments, likewise.
        start: Number of the first of its calls.
        stop: Number after the last one.
        lines: For each of its calls the place in the user's code that made it.
    """

    path: str
    layer: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    start: int
    stop: int
    lines: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A model unrolled into calls, in an order in which they can be run.

    Attributes:
        model: The Keras model it was traced from.
        functional: The graph that standardises the model's inputs; None where the model has a
            `call` of its own.
        inputs: The model's input tensors, flattened.
        outputs: The model's outputs, flattened.
        calls: Every call, producers before consumers.
        shapes: The symbolic shape of each tensor, batch axis first.
        dtypes: The dtype of each tensor.
        symbols: The model's own symbolic tensors and the `Ref` that each is.
        codes: What was traced through a `call` of the user's own, outermost ones only.
        structure: The arguments and outputs of a model with a `call` of its own.
    """

    model: Any
    functional: Any
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    calls: tuple[Call, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    symbols: tuple[tuple[keras.KerasTensor, Ref], ...]
    codes: tuple[Code, ...] = ()
    structure: tuple[Any, Any] | None = None

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
        if self.functional is not None:
            flat = _keras.standardize_inputs(self.functional, inputs)
        else:
            dtypes = [self.dtypes[ref.index] for ref in self.inputs]
            flat = list(map(keras.ops.cast, keras.tree.flatten(inputs), dtypes))
        return self.run_flat(flat, taps)

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
    """Unrolls a built model, the models nested in it too.

    A `call` of the user's own is run once on symbolic tensors; nothing of that stays on the
    model.

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
        return _trace_own(model)
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
        codes=tuple(tracer.codes),
    )


def _trace_own(model: Any) -> Program:
    tracer = _Tracer()
    args, kwargs = _keras_inputs(model)
    leaves = _leaves((args, kwargs))
    inputs = tuple(tracer.new(tensor) for tensor in leaves)
    tracer.bind(leaves, inputs)
    outputs = tracer.code(model, "", args, kwargs)
    flat = [leaf for leaf in _leaves(outputs) if isinstance(leaf, keras.KerasTensor)]
    return Program(
        model=model,
        functional=None,
        inputs=inputs,
        outputs=tuple(tracer.ref(tensor) for tensor in flat),
        calls=tuple(tracer.calls),
        shapes=tuple(tracer.shapes),
        dtypes=tuple(tracer.dtypes),
        symbols=tuple(tracer.symbols),
        codes=tuple(tracer.codes),
        structure=tracer.substituted(((args, kwargs), outputs)),
    )


def _keras_inputs(model: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Symbolic arguments for a model with a `call` of its own, of the shapes it was built with."""
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"": config.get("input_shape")}
    if None in shapes.values():
        raise ValueError(
            f"Model '{model.name}' is not built, so its widths are not known yet. Call it once on "
            "a batch of data; where that does not help, give its class a "
            "`build(self, input_shape)`."
        )

    def tensor(shape: Any) -> keras.KerasTensor:
        return keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype or "float32")

    made = {
        name.removesuffix("_shape"): keras.tree.map_shape_structure(tensor, _plain(shape))
        for name, shape in shapes.items()
    }
    return ((made[""],), {}) if "" in made else ((), made)


def _plain(shapes: Any) -> Any:
    """Shapes in the containers that a user would pass; Keras keeps them in ones of its own."""
    if isinstance(shapes, Mapping):
        return {key: _plain(shape) for key, shape in shapes.items()}
    if isinstance(shapes, (list, tuple)):
        kind = tuple if isinstance(shapes, tuple) else list
        return kind(_plain(shape) for shape in shapes)
    return shapes


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
        self.codes: list[Code] = []
        self.slim: tuple[Sequence[Shape], Sequence[str]] | None = None
        self._before: Sequence[Call] = ()
        self._known: dict[int, tuple[keras.KerasTensor, Ref]] = {}
        self._lines: list[str] = []
        self._start = 0
        self._counts: Counter[str] = Counter()
        self._paths: dict[int, str] = {}
        self._prefixes: list[str] = []

    def again(self, before: Sequence[Call], slim: Sequence[Shape], dtypes: Sequence[str]) -> None:
        """Makes layers answer as in `before`, with slim shapes."""
        self._before, self.slim = before, (slim, dtypes)

    def bind(self, tensors: Sequence[Any], refs: Sequence[Ref]) -> None:
        """Remembers which number each tensor of a `call` has."""
        for tensor, ref in zip(tensors, refs, strict=True):
            self._known[id(tensor)] = (tensor, ref)

    def ref(self, tensor: Any) -> Ref:
        """The number of a tensor of a `call`."""
        return self._known[id(tensor)][1]

    def substituted(self, structure: Any) -> Any:
        """A structure with the numbers in the place of the tensors of a `call`."""
        return keras.tree.map_structure(
            lambda leaf: self.ref(leaf) if isinstance(leaf, keras.KerasTensor) else leaf, structure
        )

    def new(self, tensor: keras.KerasTensor, own: bool = True) -> Ref:
        """Numbers a symbolic tensor; `own`: one that belongs to the model."""
        ref = Ref(len(self.shapes))
        slim = own and self.slim is not None
        self.shapes.append(self.slim[0][ref.index] if slim and self.slim else tuple(tensor.shape))
        self.dtypes.append(tensor.dtype)
        if own:
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
        enters = inner is None and has_code(operation) and not self._masks()
        if enters and self._prefixes:
            given, named = self._tensors((args, kwargs))
            made = _leaves(self._layer_with_code(operation, path, given, named))
            for tensor, part in zip(node.outputs, made, strict=True):
                known[id(tensor)] = self.ref(part)
                self.symbols.append((tensor, self.ref(part)))
            return
        if enters:
            start = len(self.calls)
            try:
                made = self._outputs_of_code(operation, path, args, kwargs)
            except ValueError:  # what can't be traced is one layer without a rule
                del self.calls[start:]
            else:
                for tensor, ref in zip(node.outputs, made, strict=True):
                    known[id(tensor)] = ref
                    self.symbols.append((tensor, ref))
                return
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

    def _outputs_of_code(
        self, layer: Any, path: str, args: tuple[Any, ...], kwargs: Any
    ) -> list[Ref]:
        given, named = self._tensors((args, kwargs))
        return [self.ref(leaf) for leaf in _leaves(self.code(layer, path, given, named))]

    def _tensors(self, arguments: tuple[tuple[Any, ...], Any]) -> Any:
        """Arguments with new symbolic tensors in the place of their numbers."""

        def tensor(leaf: Any) -> Any:
            if not isinstance(leaf, Ref):
                return leaf
            made = self._tensor(leaf)
            self.bind([made], [leaf])
            return made

        args, kwargs = arguments
        return keras.tree.map_structure(tensor, (args, dict(kwargs)))

    def code(self, layer: Any, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Runs a `call` of the user's own on symbolic tensors and takes down what it calls."""
        start = self._start = len(self.calls)
        self._lines, self._prefixes = [], [f"{path}/" if path else ""]
        try:
            with calls_intercepted(self._layer_called, self._operation_called):
                made = layer.call(*args, **_without_training(layer, kwargs))
        except Exception as error:
            raise ValueError(
                f"The `call` of {'layer' if path else 'model'} '{path or layer.name}' (of class "
                f"{type(layer).__name__}) can't be traced with symbolic tensors: it stopped at "
                f"{user_line(error.__traceback__)} with {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''} Use keras.layers and "
                "keras.ops there, and no `if` or loop on the values of tensors."
            ) from error
        finally:
            self._prefixes = []
        given, named = self.substituted((args, dict(kwargs)))
        stop, lines = len(self.calls), tuple(self._lines)
        self.codes.append(Code(path, layer, given, named, start, stop, lines))
        return made

    def _layer_called(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Takes down a layer's call without making it; goes into one without a rule."""
        kwargs = {k: v for k, v in kwargs.items() if k != "training" or v is not None}
        path = self._paths.setdefault(id(layer), self._prefixes[-1] + layer.name)
        inner = _keras.functional_of(layer) if isinstance(layer, keras.Model) else None
        if inner is not None:
            given = [self.ref(t) for t in _leaves((args, kwargs)) if _is_symbolic(t)]
            self.symbols.extend(zip(inner.inputs, given, strict=True))
            bound = dict(zip(map(id, inner.inputs), given, strict=True))
            refs = self.graph(inner.outputs, bound, f"{path}/")
            self._note_lines()
            made = [self._tensor(ref) for ref in refs]
            self.bind(made, refs)
            return keras.tree.pack_sequence_as(inner.output, made)
        if has_code(layer) and not self._masks():
            return self._layer_with_code(layer, path, args, kwargs)
        return self._leaf_called(layer, path, args, kwargs)

    def _layer_with_code(
        self, layer: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        calls, shapes = len(self.calls), len(self.shapes)
        self._prefixes.append(f"{path}/")
        try:
            return layer.call(*args, **_without_training(layer, kwargs))
        except Exception:  # what can't be traced is one layer without a rule
            del self.calls[calls:], self._lines[calls - self._start :]
            del self.shapes[shapes:], self.dtypes[shapes:]
            return self._leaf_called(layer, path, args, kwargs)
        finally:
            self._prefixes.pop()

    def _leaf_called(
        self, layer: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not layer.built:
            raise ValueError(
                f"Layer '{path}' is not built. Call the model once on a batch of data before."
            )
        if self.slim is not None:
            return self._as_before(layer, path, args, kwargs)
        specs = layer.compute_output_spec(*args, **kwargs)
        return self._take_down(layer, path, args, kwargs, specs)

    def _operation_called(
        self, operation: Any, args: tuple[Any, ...], kwargs: Any, made: Any
    ) -> Any:
        newshape = getattr(operation, "newshape", ())
        if isinstance(newshape, tuple) and None in newshape:  # `ops.shape(x)[0]`, say
            sizes = tuple(-1 if size is None else size for size in made.shape)
            operation = type(operation)(sizes, name=operation.name)
        # Keras numbers operations over all models; a path must be the same at each trace.
        base = f"{self._prefixes[-1]}ops.{type(operation).__name__.lower()}"
        self._counts[base] += 1
        path = base if self._counts[base] == 1 else f"{base}_{self._counts[base] - 1}"
        return self._take_down(operation, path, args, kwargs, made)

    def _as_before(self, layer: Any, path: str, args: Any, kwargs: Any) -> Any:
        """The slim outputs of a layer that was called at this place before."""
        before = self._before[len(self.calls)]
        if before.operation is not layer:
            raise ValueError(f"'{before.path}' was called before, now it is '{path}'.")
        specs = keras.tree.map_structure(self._tensor, before.made)
        return self._take_down(layer, path, args, kwargs, specs)

    def _take_down(self, operation: Any, path: str, args: Any, kwargs: Any, specs: Any) -> Any:
        flat = _leaves(specs)
        refs = tuple(self.new(tensor, own=False) for tensor in flat)
        given, named = self.substituted((args, dict(kwargs)))
        structure = keras.tree.pack_sequence_as(specs, refs)
        self.calls.append(Call(operation, path, given, named, refs, made=structure))
        self._note_lines()
        made = flat
        if isinstance(operation, keras.Layer):
            made = [self._tensor(ref) for ref in refs]
        self.bind(made, refs)
        return keras.tree.pack_sequence_as(specs, made)

    def _masks(self) -> bool:
        """Whether a layer so far hands masks on, which a `call` may read unseen."""
        return any(
            getattr(call.operation, "mask_zero", False)
            or isinstance(call.operation, keras.layers.Masking)
            for call in self.calls
        )

    def _note_lines(self) -> None:
        new = len(self.calls) - self._start - len(self._lines)
        self._lines += [user_line(None)] * new

    def _tensor(self, ref: Ref) -> Any:
        shapes, dtypes = (self.shapes, self.dtypes) if self.slim is None else self.slim
        return keras.KerasTensor(shapes[ref.index], dtype=dtypes[ref.index])


def replayed(program: Program, code: Code, slim: Sequence[Shape]) -> tuple[list[Call], Any]:
    """Runs a `call` of the user's own again, as if its layers were slim.

    Args:
        program: The calls of the model.
        code: What to run again.
        slim: The shapes of all tensors of the program when its layers are slim.

    Returns:
        The calls that were made, to be compared with those of the program, and the shapes of
        their outputs; fewer where an error stopped it.
    """
    tracer = _Tracer()
    tracer.again(program.calls[code.start : code.stop], slim, program.dtypes)
    first = program.calls[code.start].outputs[0].index if code.stop > code.start else 0
    tracer.shapes, tracer.dtypes = list(slim[:first]), list(program.dtypes[:first])

    def tensor(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        made = keras.KerasTensor(slim[leaf.index], dtype=program.dtypes[leaf.index])
        tracer.bind([made], [leaf])
        return made

    args, kwargs = keras.tree.map_structure(tensor, (code.args, dict(code.kwargs)))
    with contextlib.suppress(ValueError, IndexError):
        tracer.code(code.layer, code.path, args, kwargs)
    return tracer.calls, tracer.shapes


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, keras.KerasTensor)


def _without_training(layer: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a `call` that decides on training itself: whoever runs it later says."""
    given = {k: v for k, v in kwargs.items() if k != "training"}
    if "training" in inspect.signature(layer.call).parameters:
        given["training"] = kwargs.get("training")
    return given


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
