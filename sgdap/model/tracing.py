"""Reads a model by calling it on symbolic tensors; computes no numbers and changes nothing."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.model.arguments import symbolic_arguments, symbolic_like
from sgdap.model.generators import global_state_kept
from sgdap.model.interception import originals, replaced
from sgdap.model.open_sizes import output_spec, size_functions, sizes_asked
from sgdap.model.program import Call, Program, Ref, Shape, Unrolled, leaves_of, refs_of, same_calls
from sgdap.model.user_code import (
    ONLY_IN_TRAINING,
    has_code,
    takes_training,
    untraceable,
    untraced,
    user_line,
)


def check_is_no_tf_keras(model: Any) -> None:
    """Raises if a model is one of Keras 2, which is another package today.

    Raises:
        TypeError: It is.
    """
    if any(base.__module__.split(".")[0] == "tf_keras" for base in type(model).__mro__):
        raise TypeError(
            f"Received a tf_keras model, '{model.name}', and sgdap needs one of Keras 3: convert "
            "it with sgdap.from_tf_keras(model)."
        )


def trace(model: Any, shapes: Sequence[Shape] | None = None) -> Program:
    """Unrolls a built model, the models nested in it too.

    Its `call` is run once on symbolic tensors; nothing of that stays on the model.

    Args:
        model: A built Keras model.
        shapes: The shapes of the tensors that it is called on; None: those it was built with.

    Returns:
        The model's `Program`.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: It is not built, or its `call` can't be run on symbolic tensors, or on some of
            these shapes.
    """
    check_is_no_tf_keras(model)
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected a keras.Model. Received: {shown(model)} (of type {type(model).__name__})."
        )
    args, kwargs = symbolic_arguments(model, shapes)
    recorder = _Recorder(of_shapes=shapes is not None)
    inputs = tuple(map(recorder.numbered, leaves_of((args, kwargs))))
    with global_state_kept():
        outputs = recorder.run(model, "", args, kwargs)
    leaves = leaves_of(outputs)
    made = [leaf for leaf in leaves if _is_symbolic(leaf)]
    if len(made) < len(leaves) and _keras.functional_of(model) is not None:
        raise ValueError(
            "An output of the model does not depend on its inputs. Leave it away, or make it "
            "in a keras.layers.Layer of its own."
        )
    if not made:
        raise ValueError(
            f"The `call` of model '{model.name}' (of class {type(model).__name__}) returns no "
            f"tensor that depends on its inputs. Received: {shown(outputs)}. Return its outputs."
        )
    return Program(
        model=model,
        inputs=inputs,
        outputs=tuple(map(recorder.ref, made)),
        calls=tuple(recorder.calls),
        shapes=tuple(recorder.shapes),
        dtypes=tuple(recorder.dtypes),
        unrolled=tuple(recorder.unrolled),
        losses=tuple(recorder.losses),
    )


def replayed(program: Program, code: Unrolled, slim: Sequence[Shape]) -> tuple[list[Call], Any]:
    """Runs a `call` of the user's own again, as if its layers were slim.

    Args:
        program: The calls of the model.
        code: What to run again.
        slim: The shapes of all tensors of the program when its layers are slim.

    Returns:
        The calls that were made, to be compared with those of the program, and the shapes of
        their outputs; fewer where an error stopped it.
    """
    recorder = _Recorder(program, code.start, slim)
    args, kwargs = recorder.filled((code.args, dict(code.kwargs)))
    with contextlib.suppress(ValueError, IndexError):
        recorder.run(code.layer, code.path, args, kwargs)
    return recorder.calls[code.start :], recorder.shapes


class _Place:
    """A model or layer that is running.

    Attributes:
        prefix: What the paths of its layers begin with.
        is_code: Whether it has a `call` of the user's own, or is called by one.
    """

    def __init__(self, prefix: str, graph: Any, is_code: bool) -> None:
        self.prefix, self.is_code = prefix, is_code
        nodes = [] if graph is None else _keras.nodes_of(graph)
        self._operations = {id(node.operation) for node in nodes}
        self._to_come = iter(nodes)

    def node(self, operation: Any) -> Any | None:
        """The node of the graph that is called now; None where the operation is in no graph."""
        if id(operation) not in self._operations:
            return None
        return next((node for node in self._to_come if node.operation is operation), None)


class _Recorder:
    """Takes down what a model calls.

    Where it gets slim shapes, it begins in the middle of a program: layers answer as they did
    before, with slim shapes, and only operations of a `call` of the user's own compute theirs.

    Args:
        program: A program whose first calls were made already; None: nothing was.
        start: How many of its calls were made.
        slim: The shapes of its tensors when its layers are slim.
        of_shapes: Whether every call must tell its outputs' shapes for those of its inputs.
            Otherwise the shapes that it had when its model was made will do.
    """

    def __init__(
        self,
        program: Program | None = None,
        start: int = 0,
        slim: Sequence[Shape] = (),
        *,
        of_shapes: bool = False,
    ) -> None:
        self._program, self._slim, self._of_shapes = program, slim, of_shapes
        self.calls: list[Call] = list(program.calls[:start]) if program else []
        made = sum(len(call.outputs) for call in self.calls)
        known = made + len(program.inputs) if program else 0
        self.shapes: list[Shape] = list(slim[:known])
        self.dtypes: list[str] = list(program.dtypes[:known]) if program else []
        self.unrolled: list[Unrolled] = []
        self.losses: list[Ref] = []
        self._places: list[_Place] = []
        self._refs: dict[int, tuple[Any, Ref]] = {}
        self._masked: set[Ref] = set()
        self._paths: dict[int, str] = {}
        self._counts: Counter[str] = Counter()
        self._whole: set[int] = set()
        self._in_training = False

    def run(self, layer: Any, path: str, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Runs a model or layer and takes down what it calls; returns what it makes."""
        functions = {
            (keras.Layer, "__call__"): self._layer_called,
            (keras.Layer, "add_loss"): self._loss_added,
            (keras.Operation, "symbolic_call"): self._operation_called,
            **size_functions(self._reshaped),
        }
        with replaced(functions), keras.StatelessScope():  # no variable changes
            try:
                return self._entered(layer, path, args, kwargs)
            except Exception as error:
                if _keras.functional_of(layer) is not None:
                    raise
                raise untraceable(layer, path, error) from error

    # Tensors and their numbers

    def numbered(self, tensor: Any) -> Ref:
        """Numbers a new symbolic tensor."""
        ref = Ref(len(self.shapes))
        self.shapes.append(tuple(tensor.shape))
        self.dtypes.append(tensor.dtype)
        self._refs[id(tensor)] = (tensor, ref)
        return ref

    def ref(self, tensor: Any) -> Ref:
        """The number of a tensor."""
        if id(tensor) not in self._refs:
            name = getattr(tensor, "name", "") if _is_symbolic(tensor) else type(tensor).__name__
            raise ValueError(
                f"The tensor '{name}' of shape {tensor.shape} is made by no layer and no "
                "operation of keras.ops that was called on the inputs."
            )
        return self._refs[id(tensor)][1]

    def filled(self, structure: Any) -> Any:
        """A structure with new symbolic tensors in the place of their numbers."""
        return keras.tree.map_structure(
            lambda leaf: self._tensor(leaf) if isinstance(leaf, Ref) else leaf, structure
        )

    def _tensor(self, ref: Ref) -> Any:
        tensor = keras.KerasTensor(self.shapes[ref.index], dtype=self.dtypes[ref.index])
        self._refs[id(tensor)] = (tensor, ref)
        return tensor

    def _numbers(self, structure: Any) -> Any:
        """A structure with their numbers in the place of symbolic tensors."""
        return keras.tree.map_structure(
            lambda leaf: self.ref(leaf) if _is_symbolic(leaf) else leaf, structure
        )

    # Models and layers that are unrolled

    def _entered(self, layer: Any, path: str, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Runs the `call` of a model or layer."""
        start, graph = len(self.calls), _keras.functional_of(layer)
        twin = self._twin(layer, graph, kwargs)
        is_code = graph is None or any(place.is_code for place in self._places)
        given, named = self._numbers((args, dict(kwargs)))
        self._places.append(_Place(f"{path}/" if path else "", graph, is_code))
        inputs: list[Any] = []
        try:
            if graph is None:
                made = layer.call(*args, **_without_training(layer, kwargs))
            else:
                x, *_ = args or (kwargs["inputs"],)
                inputs = _keras.standardize_inputs(graph, x)
                made = graph.call(
                    keras.tree.pack_sequence_as(graph.input, inputs),
                    **{name: value for name, value in kwargs.items() if name != "inputs"},
                )
        finally:
            self._places.pop()
        begun, result = self._numbers((tuple(inputs), made))
        stop = len(self.calls)
        otherwise = twin is not None and not twin.makes_in_training(
            layer, path, args, kwargs, self.calls[start:], result
        )
        self.unrolled.append(
            Unrolled(path, layer, given, named, result, begun, start, stop, otherwise)
        )
        return made

    def _twin(self, layer: Any, graph: Any, kwargs: Any) -> _Recorder | None:
        """A recorder that stands where this one does, to run a `call` in training.

        None where the `call` is of Keras, is not told of training, or told by what is around it.
        """
        told = kwargs.get("training") is not None or not takes_training(layer)
        if graph is not None or told or self._program or self._in_training:
            return None
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if name != "_whole":
                setattr(twin, name, copy.copy(value))
        return twin

    def makes_in_training(
        self, layer: Any, path: str, args: Any, kwargs: Any, calls: Sequence[Call], result: Any
    ) -> bool:
        """Whether a `call` in training makes some calls, and the same of them."""
        start, self._in_training = len(self.calls), True
        try:
            with keras.StatelessScope():
                made = self.run(layer, path, args, {**kwargs, "training": True})
            found = self._numbers(made)
        except Exception:  # it draws random numbers of a size that is not known, say
            return False
        return same_calls(self.calls[start:], calls) and found == result

    def _is_unrolled(self, layer: Any, args: Any, kwargs: Any) -> bool:
        """Whether the calls inside a layer stand in for its own.

        A layer behind one that makes masks is not unrolled: its `call` may read a mask that Keras
        hands on. Nor is one without weights that does something else in training: a copy of its
        calls would not.
        """
        if self._program and self._program.calls[len(self.calls)].operation is layer:
            return False
        if _keras.functional_of(layer) is not None:
            return not any(map(_is_symbolic, leaves_of(kwargs.get("mask"))))
        if not has_code(layer) or id(layer) in self._whole:
            return False
        given = filter(_is_symbolic, leaves_of((args, kwargs)))
        return self._masked.isdisjoint(map(self.ref, given))

    # Calls

    def _taken_down(self) -> tuple[list[Any], ...]:
        """The lists that grow with each call."""
        return self.calls, self.shapes, self.dtypes, self.unrolled, self.losses

    def _layer_called(self, original: Any, layer: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Takes down a layer's call without making it, or the calls that it makes inside."""
        if not any(map(_is_symbolic, leaves_of((args, kwargs)))):
            return original(layer, *args, **kwargs)
        place = self._places[-1]
        node = place.node(layer)
        kwargs = {k: v for k, v in kwargs.items() if k != "training" or v is not None}
        path = self._paths.setdefault(id(layer), place.prefix + layer.name)
        error: Exception | None = None
        if self._is_unrolled(layer, args, kwargs):
            before = [len(part) for part in self._taken_down()]
            try:
                made = self._entered(layer, path, args, kwargs)
            except Exception as stopped:
                # A second run stops where it differs from the first.
                if self._program or _keras.functional_of(layer) is not None:
                    raise
                error = stopped  # what can't be traced is one layer without a rule
            else:
                if layer.weights or not self.unrolled[-1].trains_otherwise:
                    return made
                self._whole.add(id(layer))
            for part, length in zip(self._taken_down(), before, strict=True):
                del part[length:]
            self._masked = {ref for ref in self._masked if ref.index < len(self.shapes)}
        if not layer.built and not _has_nothing_to_build(layer):
            raise ValueError(
                f"Layer '{path}' is not built. Make layers in `__init__`, and call the model "
                "once on a batch of data."
            )
        why = ONLY_IN_TRAINING if id(layer) in self._whole else untraced(layer, error)
        return self._take_down(layer, path, args, kwargs, node, why=why)

    def _loss_added(self, _: Any, layer: Any, /, loss: Any) -> None:
        """Takes down what a layer adds to the losses; one of numbers alone is not of this run."""
        self.losses += [self.ref(leaf) for leaf in leaves_of(loss) if _is_symbolic(leaf)]

    def _operation_called(self, _: Any, operation: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Takes down the call of an operation of `keras.ops`, which leaves no node on it."""
        place = self._places[-1]
        node = place.node(operation)
        if node is not None:
            path = self._paths.setdefault(id(operation), place.prefix + operation.name)
            return self._take_down(operation, path, args, kwargs, node)
        if _keras.changes_nothing(operation, *args):
            return args[0]
        operation = sizes_asked(operation, *args)
        path = self._path_of(type(operation).__name__.lower())
        return self._take_down(operation, path, args, kwargs)

    def _take_down(
        self,
        operation: Any,
        path: str,
        args: Any,
        kwargs: Any,
        node: Any = None,
        specs: Any = None,
        why: str = "",
    ) -> Any:
        """Takes down one call; returns new symbolic tensors, like `specs` where they are given."""
        given, named = self._numbers((args, dict(kwargs)))
        taken = refs_of((given, named))
        if specs is None:
            specs = self._specs(operation, args, kwargs, taken, node)
        made = keras.tree.map_structure(
            lambda leaf: symbolic_like(leaf) if _is_symbolic(leaf) else leaf, specs
        )
        outputs = tuple(self.numbered(leaf) for leaf in leaves_of(made) if _is_symbolic(leaf))
        line = user_line(None) if self._places[-1].is_code else ""
        structure, in_graph = self._numbers(made), node is not None
        made_of = (operation, path, given, named, outputs, structure, in_graph, line, why)
        self.calls.append(Call(*made_of))
        makes_masks = isinstance(operation, keras.layers.Masking)
        if makes_masks or getattr(operation, "mask_zero", False) or self._masked & {*taken}:
            self._masked.update(outputs)
        return made

    def _specs(
        self, operation: Any, args: Any, kwargs: Any, taken: Sequence[Ref], node: Any
    ) -> Any:
        """Symbolic tensors like those that a call makes, structured as it returns them."""
        if self._program and (node is not None or isinstance(operation, keras.Layer)):
            return self._as_before(operation)
        if node is not None and not isinstance(operation, keras.layers.EinsumDense):
            shapes = [self.shapes[ref.index] for ref in taken]
            if shapes == [tuple(tensor.shape) for tensor in node.input_tensors]:
                return node.outputs
        try:
            with originals():
                return output_spec(operation, args, kwargs)
        except Exception:
            if node is None or self._of_shapes:
                raise
            return node.outputs  # it takes no tensors of these sizes

    def _as_before(self, operation: Any) -> Any:
        """The slim outputs of what was called at this place before."""
        assert self._program is not None
        before = self._program.calls[len(self.calls)]
        if before.operation is not operation:
            raise ValueError(f"'{before.path}' was called before, now it is '{operation.name}'.")
        dtypes = self._program.dtypes
        return keras.tree.map_structure(
            lambda leaf: (
                keras.KerasTensor(self._slim[leaf.index], dtype=dtypes[leaf.index])
                if isinstance(leaf, Ref)
                else leaf
            ),
            before.made,
        )

    def _path_of(self, kind: str) -> str:
        """A path for an operation; Keras numbers them over all models, this is always the same."""
        base = f"{self._places[-1].prefix}ops.{kind}"
        self._counts[base] += 1
        return base if self._counts[base] == 1 else f"{base}_{self._counts[base] - 1}"

    # Sizes that aren't known

    def _reshaped(self, x: Any, target: tuple[int, ...]) -> Any:
        """A Reshape layer's output; no operation takes two sizes that aren't known."""
        layer = keras.layers.Reshape(target)
        path = self._path_of("reshape")
        return self._take_down(layer, path, (x,), {}, specs=layer.compute_output_spec(x))


def _has_nothing_to_build(layer: Any) -> bool:
    inside = list(_keras.flatten_layers(layer))
    return len(inside) == 1 and type(layer).build is keras.Layer.build


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, keras.KerasTensor)


def _without_training(layer: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a `call` that decides on training itself: whoever runs it later says."""
    given = {k: v for k, v in kwargs.items() if k != "training"}
    if takes_training(layer):
        given["training"] = kwargs.get("training")
    return given
