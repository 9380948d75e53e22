"""Walks symbolic graphs and code of the user's own, and takes down what they call."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.interception import calls_intercepted, has_code, user_line
from sgdap.model.open_sizes import Origins, UnknownSize, known_sizes, output_spec, unknown_sizes
from sgdap.model.own_call import untraceable
from sgdap.model.program import Call, Code, Program, Ref, Shape, leaves_of


class Tracer:
    """Walks the symbolic graphs of a model and of the models in it."""

    def __init__(self) -> None:
        self.inputs: Sequence[Ref] = ()
        self.calls: list[Call] = []
        self.shapes: list[Shape] = []
        self.dtypes: list[str] = []
        self.symbols: list[tuple[keras.KerasTensor, Ref]] = []
        self.codes: list[Code] = []
        self.slim: tuple[Sequence[Shape], Sequence[str]] | None = None
        self._fixed: int | None = None
        self._before: Sequence[Call] = ()
        self._earlier: Sequence[Call] = ()
        self._origins = Origins()
        self._told: set[int] = set()
        self._known: dict[int, tuple[keras.KerasTensor, Ref]] = {}
        self._lines: list[str] = []
        self._start = 0
        self._counts: Counter[str] = Counter()
        self._paths: dict[int, str] = {}
        self._prefixes: list[str] = []

    def again(self, program: Program, code: Code, slim: Sequence[Shape]) -> None:
        """Makes layers answer as they did in a `call` before, with slim shapes."""
        self.inputs, self.slim = program.inputs, (slim, program.dtypes)
        self._earlier = program.calls[: code.start]
        self._before = program.calls[code.start : code.stop]

    def bind(self, tensors: Sequence[Any], refs: Sequence[Ref]) -> None:
        """Remembers which number each tensor of a `call` has."""
        for tensor, ref in zip(tensors, refs, strict=True):
            self._known[id(tensor)] = (tensor, ref)

    def ref(self, tensor: Any) -> Ref:
        """The number of a tensor of a `call`."""
        if id(tensor) not in self._known:
            name = getattr(tensor, "name", "") if _is_symbolic(tensor) else type(tensor).__name__
            raise ValueError(
                f"The tensor '{name}' of shape {tensor.shape} is made by no layer and no "
                "operation of keras.ops that was called on the inputs."
            )
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
        shape = tuple(tensor.shape)
        if own and self._fixed is not None and shape[:1] == (self._fixed,):
            shape = (None, *shape[1:])
        self.shapes.append(self.slim[0][ref.index] if slim and self.slim else shape)
        self.dtypes.append(tensor.dtype)
        if own:
            self.symbols.append((tensor, ref))
        return ref

    def graph(
        self, outputs: list[keras.KerasTensor], known: dict[int, Any], prefix: str
    ) -> list[Ref]:
        """Unrolls all calls between the `known` tensors and `outputs`; returns the outputs."""
        for node in _ordered_nodes(outputs, known):
            self._call(node, known, prefix)
        made = [known[id(tensor)] for tensor in outputs]
        if not all(isinstance(ref, Ref) for ref in made):
            raise ValueError(
                "An output of the model does not depend on its inputs. Leave it away, or make it "
                "in a keras.layers.Layer of its own."
            )
        return made

    def _inner_graph(self, inner: Any, given: list[Ref], prefix: str) -> list[Ref]:
        """Unrolls a model inside the model, whose graph Keras may have made for one batch size.

        Sizes that its inputs leave open are those of the tensors that it is called on.
        """
        bound = dict(zip(map(id, inner.inputs), given, strict=True))
        for tensor, ref in zip(inner.inputs, given, strict=True):
            pairs = zip(tensor.shape[1:], self.shapes[ref.index][1:], strict=True)
            if any(own is None and size is not None for own, size in pairs):
                self._told.add(ref.index)
        self.symbols.extend(zip(inner.inputs, given, strict=True))
        before, sizes = self._fixed, {tensor.shape[0] for tensor in inner.inputs}
        if len(sizes) == 1 and all(self.shapes[ref.index][0] is None for ref in given):
            self._fixed = sizes.pop()
        try:
            return self.graph(inner.outputs, bound, prefix)
        finally:
            self._fixed = before

    def _call(self, node: Any, known: dict[int, Any], prefix: str) -> None:
        def substitute(leaf: Any) -> Any:
            return known[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf

        args, kwargs = keras.tree.map_structure(substitute, _keras.node_arguments(node))
        operation = node.operation
        if node.input_tensors and not any(isinstance(x, Ref) for x in leaves_of((args, kwargs))):
            self._know(node, operation(*args, **kwargs), known)  # constants that a `call` returned
            return
        path = self._paths.setdefault(id(operation), prefix + operation.name)
        inner = _keras.functional_of(operation) if isinstance(operation, keras.Model) else None
        enters = inner is None and has_code(operation) and not self._masks()
        if enters and self._prefixes:
            given, named = self._tensors((args, kwargs))
            self._know(node, self._layer_with_code(operation, path, given, named), known)
            return
        if enters:
            calls, codes = len(self.calls), len(self.codes)
            try:
                given, named = self._tensors((args, kwargs))
                self._know(node, self.code(operation, path, given, named), known)
                return
            except ValueError:  # what can't be traced is one layer without a rule
                del self.calls[calls:], self.codes[codes:]
                self._origins = Origins()
        if inner is not None:
            given = leaves_of(args[0] if args else kwargs["inputs"])
            made = self._inner_graph(inner, given, f"{path}/")
            for tensor, ref in zip(node.outputs, made, strict=True):
                known[id(tensor)] = ref
                self.symbols.append((tensor, ref))
            return
        refs = []
        for tensor in node.outputs:
            known[id(tensor)] = self.new(tensor)
            refs.append(known[id(tensor)])
        self.calls.append(Call(operation, path, args, kwargs, tuple(refs), node))
        self._tell_sizes(self.calls[-1])

    def _tell_sizes(self, call: Call) -> None:
        """Puts sizes in the place of None that Keras does not know, but for an EinsumDense does."""
        told = any(ref.index in self._told for ref in call.inputs)
        unknown = any(None in self.shapes[ref.index][1:] for ref in call.outputs)
        if not unknown or not (told or isinstance(call.operation, keras.layers.EinsumDense)):
            return
        try:
            args, kwargs = self._tensors((call.args, call.kwargs))
            made = leaves_of(output_spec(call.operation, args, kwargs))
        except Exception:  # it takes no tensors of these sizes
            return
        for ref, tensor in zip(call.outputs, made, strict=True):
            if tuple(tensor.shape) != self.shapes[ref.index]:
                self.shapes[ref.index] = tuple(tensor.shape)
                self._told.add(ref.index)

    def _know(self, node: Any, made: Any, known: dict[int, Any]) -> None:
        """Remembers what a `call` made in the place of a node's outputs; constants as they are."""
        leaves = [leaf for leaf in leaves_of(made) if leaf is not None]
        for tensor, leaf in zip(node.outputs, leaves, strict=True):
            known[id(tensor)] = self.ref(leaf) if _is_symbolic(leaf) else leaf
            if _is_symbolic(leaf):
                self.symbols.append((tensor, self.ref(leaf)))

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
            with (
                calls_intercepted(self._layer_called, self._operation_called),
                unknown_sizes(self._counted, self._reshaped),
            ):
                made = layer.call(*args, **_without_training(layer, kwargs))
        except Exception as error:
            raise untraceable(layer, path, error) from error
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
            given = [self.ref(t) for t in leaves_of((args, kwargs)) if _is_symbolic(t)]
            refs = self._inner_graph(inner, given, f"{path}/")
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
            self._origins = Origins()
            return self._leaf_called(layer, path, args, kwargs)
        finally:
            self._prefixes.pop()

    def _leaf_called(
        self, layer: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not layer.built and not _has_nothing_to_build(layer):
            raise ValueError(
                f"Layer '{path}' is not built. Make layers in `__init__`, and call the model "
                "once on a batch of data."
            )
        if self.slim is not None:
            return self._as_before(layer, path, args, kwargs)
        specs = output_spec(layer, args, kwargs)
        return self._take_down(layer, path, args, kwargs, specs)

    def _operation_called(
        self, operation: Any, args: tuple[Any, ...], kwargs: Any, made: Any
    ) -> Any:
        newshape = getattr(operation, "newshape", ())
        if isinstance(newshape, tuple) and None in newshape:  # `ops.shape(x)[0]`, say
            (x,) = args
            sizes = known_sizes(x.shape, newshape, made.shape)
            operation = type(operation)(sizes, name=operation.name)
            made = operation.compute_output_spec(x)
        path = self._path_of(type(operation).__name__.lower())
        return self._take_down(operation, path, args, kwargs, made)

    def _counted(self, size: UnknownSize) -> Any:
        """Zeros, as many as a size that isn't known, made from one of the model's inputs."""
        if size.tensor is None:
            raise ValueError("it is computed from another one")
        shapes, dtypes = (self.shapes, self.dtypes) if self.slim is None else self.slim
        calls = [*self._earlier, *self.calls]
        place = (self.ref(size.tensor).index, size.axis)
        index, axis = self._origins.of(place, self.inputs, calls, shapes, dtypes)
        x = self._tensor(Ref(index))
        self.bind([x], [Ref(index)])
        zeros = keras.ops.cast(keras.ops.zeros_like(x), "int32")
        return keras.ops.sum(zeros, [other for other in range(len(x.shape)) if other != axis])

    def _reshaped(self, x: Any, target: tuple[int, ...]) -> Any:
        """A Reshape layer's output; no operation takes two sizes that aren't known."""
        layer = keras.layers.Reshape(target)
        path = self._path_of("reshape")
        return self._take_down(layer, path, (x,), {}, layer.compute_output_spec(x))

    def _path_of(self, kind: str) -> str:
        """A path for an operation; Keras numbers them over all models, this is always the same."""
        base = f"{self._prefixes[-1]}ops.{kind}"
        self._counts[base] += 1
        return base if self._counts[base] == 1 else f"{base}_{self._counts[base] - 1}"

    def _as_before(self, layer: Any, path: str, args: Any, kwargs: Any) -> Any:
        """The slim outputs of a layer that was called at this place before."""
        before = self._before[len(self.calls)]
        if before.operation is not layer:
            raise ValueError(f"'{before.path}' was called before, now it is '{path}'.")
        specs = keras.tree.map_structure(
            lambda leaf: self._tensor(leaf) if isinstance(leaf, Ref) else leaf, before.made
        )
        return self._take_down(layer, path, args, kwargs, specs)

    def _take_down(self, operation: Any, path: str, args: Any, kwargs: Any, specs: Any) -> Any:
        flat = [leaf for leaf in leaves_of(specs) if _is_symbolic(leaf)]
        refs = tuple(self.new(tensor, own=False) for tensor in flat)
        given, named = self.substituted((args, dict(kwargs)))
        structure = _with_tensors(specs, refs)
        self.calls.append(Call(operation, path, given, named, refs, made=structure))
        self._note_lines()
        made = flat
        if isinstance(operation, keras.Layer):
            made = [self._tensor(ref) for ref in refs]
        self.bind(made, refs)
        return _with_tensors(specs, made)

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


def _with_tensors(structure: Any, tensors: Sequence[Any]) -> Any:
    """A structure with others in the place of its tensors; None, say, stays."""
    rest = list(tensors)
    return keras.tree.map_structure(
        lambda leaf: rest.pop(0) if _is_symbolic(leaf) else leaf, structure
    )


def _has_nothing_to_build(layer: Any) -> bool:
    inside = list(_keras.flatten_layers(layer))
    return len(inside) == 1 and type(layer).build is keras.Layer.build


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
