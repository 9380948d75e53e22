"""A model as a flat list of calls that can be run on data and tapped; plain data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras

Shape = tuple[int | None, ...]

ByNumber = Mapping[int, Any] | Sequence[Any]
"""Something of each tensor, by its number."""


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
        made: The tensors it makes, structured as it returns them.
        in_graph: Whether the graph of a functional model holds the call and its arguments.
        line: The place in the user's own code that made the call; empty where there is none.
        untraced: Why the layer's own code was not followed, and what would be; empty where it
            was, or there is none.
    """

    operation: Any
    path: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Ref, ...]
    made: Any = None
    in_graph: bool = False
    line: str = ""
    untraced: str = ""

    @property
    def inputs(self) -> tuple[Ref, ...]:
        """All tensors it takes, flattened."""
        return refs_of((self.args, dict(self.kwargs)))


@dataclass(frozen=True, eq=False)
class OperationCall:
    """The config of an operation and the arguments of a call of it, wherever it is called.

    Attributes:
        config: The config.
        args: Positional arguments, a `Ref` in the place of each tensor: its number among them.
        kwargs: Keyword arguments, likewise.
    """

    config: Mapping[str, Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, call: Call, config: Mapping[str, Any] | None = None) -> OperationCall:
        """A call of a program as it is; `config` where the operation does not tell its own."""
        numbers = itertools.count()
        args, kwargs = keras.tree.map_structure(
            lambda leaf: Ref(next(numbers)) if isinstance(leaf, Ref) else leaf,
            (call.args, dict(call.kwargs)),
        )
        return cls(call.operation.get_config() if config is None else config, args, kwargs)

    def same_as(self, other: OperationCall) -> bool:
        """Whether config and arguments are the same, whatever name the config has."""
        mine, others = (({**c.config, "name": None}, c.args, c.kwargs) for c in (self, other))
        return _equal(mine, others)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    if hasattr(first, "shape") or hasattr(second, "shape"):
        return np.array_equal(first, second)
    return bool(first == second)


def config_of(operation: Any) -> dict[str, Any] | None:
    """The config of a layer or operation; None where its class tells none.

    Keras' own `get_config` raises a `NotImplementedError` for a class whose `__init__` takes
    arguments that it can't write down. Such operations are used as they are, and never made anew.
    """
    try:
        return dict(operation.get_config())
    except NotImplementedError:  # raised by Keras; nothing of ours is left open here
        return None


def same_calls(first: Sequence[Call], second: Sequence[Call]) -> bool:
    """Whether the same layers and operations are called on the same tensors, one after another.

    What they are told of training may differ. Operations that tell no config are the same if their
    class and arguments are.
    """

    def of(call: Call) -> OperationCall:
        kwargs = {name: value for name, value in call.kwargs.items() if name != "training"}
        config = None if isinstance(call.operation, keras.Layer) else config_of(call.operation)
        return OperationCall(config or {}, call.args, kwargs)

    def alike(one: Call, other: Call) -> bool:
        if isinstance(one.operation, keras.Layer) or isinstance(other.operation, keras.Layer):
            same = one.operation is other.operation
        else:
            same = type(one.operation) is type(other.operation)
        return same and one.outputs == other.outputs and of(one).same_as(of(other))

    return len(first) == len(second) and all(map(alike, first, second))


Taps = Mapping[int, Callable[[Call, Callable[[], Any], list[Any]], Any]]
"""For calls by their number, a function `(call, compute, flat inputs)` that returns the call's
output; `compute()` calls the layer."""


@dataclass(frozen=True, eq=False)
class Unrolled:
    """A model or layer in whose place a program has the calls that it makes.

    Attributes:
        path: Its path; empty for the whole model.
        layer: The model or layer.
        args: Positional arguments, a `Ref` in the place of each tensor.
        kwargs: Keyword arguments, likewise.
        made: What it returns, likewise.
        inputs: What the input tensors of its graph are; empty where it has a `call` of its own.
        start: Number of the first of its calls.
        stop: Number after the last one.
        trains_otherwise: Whether it has a `call` that makes other calls in training.
    """

    path: str
    layer: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    made: Any
    inputs: tuple[Any, ...]
    start: int
    stop: int
    trains_otherwise: bool = False

    @property
    def taken(self) -> tuple[Ref, ...]:
        """All tensors it takes, flattened."""
        return refs_of((self.args, dict(self.kwargs)))


@dataclass(frozen=True, eq=False)
class Program:
    """A model unrolled into calls, in an order in which they can be run.

    Attributes:
        model: The Keras model it was traced from.
        inputs: The model's input tensors, flattened.
        outputs: The model's outputs, flattened.
        calls: Every call, producers before consumers.
        shapes: The symbolic shape of each tensor, batch axis first.
        dtypes: The dtype of each tensor.
        unrolled: The models and layers that were unrolled, each after those in it; the whole model
            is the last one.
        losses: The tensors that a `call` of the user's own gives to `add_loss`.
    """

    model: Any
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    calls: tuple[Call, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    unrolled: tuple[Unrolled, ...]
    losses: tuple[Ref, ...] = ()

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        """The symbolic shapes of the model's inputs."""
        return tuple(self.shapes[ref.index] for ref in self.inputs)

    @property
    def functional(self) -> Any:
        """The model's graph; None where the model has a `call` of its own."""
        return _keras.functional_of(self.model)

    @property
    def codes(self) -> tuple[Unrolled, ...]:
        """What has a `call` of the user's own and is in no other such `call`."""
        found: list[Unrolled] = []
        for part in reversed(self.unrolled):
            outside = not found or part.stop <= found[-1].start
            if outside and _keras.functional_of(part.layer) is None:
                found.append(part)
        return tuple(reversed(found))

    def only_for_losses(self) -> frozenset[int]:
        """The numbers of the calls that losses need and outputs do not."""
        calls = range(len(self.calls))
        return frozenset(self._behind(self.losses, calls) - self._behind(self.outputs, calls))

    def operations_of_losses(self) -> list[int]:
        """The numbers of the operations that make losses of what layers make."""
        calls = enumerate(self.calls)
        own = [n for n, call in calls if not isinstance(call.operation, keras.Layer)]
        return sorted(self._behind(self.losses, own))

    def _behind(self, refs: tuple[Ref, ...], among: Iterable[int]) -> set[int]:
        """The numbers of the calls that some tensors need, followed back through some calls."""
        wanted, found = set(refs), set[int]()
        for number in sorted(among, reverse=True):
            call = self.calls[number]
            if not wanted.isdisjoint(call.outputs):
                found.add(number)
                wanted.update(call.inputs)
        return found

    def layers(self) -> dict[str, Any]:
        """The layers and operations by path, each once, in order of their first call."""
        found: dict[str, Any] = {}
        for call in self.calls:
            found.setdefault(call.path, call.operation)
        return found

    def flat_inputs(self, inputs: Any) -> list[Any]:
        """Returns what the model takes as the flat list of its input tensors."""
        if self.functional is not None:
            return _keras.standardize_inputs(self.functional, inputs)
        dtypes = [self.dtypes[ref.index] for ref in self.inputs]
        return list(map(keras.ops.cast, keras.tree.flatten(inputs), dtypes))

    def run_flat(
        self, inputs: list[Any], taps: Taps | None = None, stop: int | None = None
    ) -> list[Any]:
        """Runs the program on data as `predict` does. No variable of the model changes.

        Args:
            inputs: The model's input tensors, flattened.
            taps: What is called in the place of some calls.
            stop: How many calls are run, the others' outputs are None; None: all.

        Returns:
            The model's outputs, flattened.
        """
        values = dict(zip((ref.index for ref in self.inputs), inputs, strict=True))
        with keras.StatelessScope(collect_losses=True):
            self.advance(values, taps, 0, stop)
        return [values.get(ref.index) for ref in self.outputs]

    def advance(
        self,
        values: dict[int, Any],
        taps: Taps | None,
        start: int,
        stop: int | None = None,
    ) -> None:
        """Runs some of the calls in inference mode, in a `keras.StatelessScope` of the caller's.

        Layers that write variables, as `BatchNormalization` does in a call that was given
        `training=True`, write to that scope.

        Args:
            values: The tensors made before, by number; those that the calls make are added.
            taps: What is called in the place of some calls.
            start: Number of the first call that is run.
            stop: Number after the last one; None: all.
        """
        in_code = {number for code in self.codes for number in range(code.start, code.stop)}
        for number, call in enumerate(self.calls[start:stop], start):
            args, kwargs = inference_arguments(call, values, in_code=number in in_code)

            def compute(call: Call = call, args: Any = args, kwargs: Any = kwargs) -> Any:
                return call.operation(*args, **kwargs)

            tap = (taps or {}).get(number)
            if tap is None:
                result = compute()
            else:
                result = tap(call, compute, [values[ref.index] for ref in call.inputs])
            values.update(zip((ref.index for ref in call.outputs), leaves_of(result), strict=True))

    def needed(self, start: int, stop: int) -> list[int]:
        """Numbers of the tensors made before call `start` that the calls until `stop` take."""
        taken = {ref.index for call in self.calls[start:stop] for ref in call.inputs}
        made = {ref.index for call in self.calls[start:stop] for ref in call.outputs}
        return sorted(taken - made)


def fill(
    call: Call | OperationCall | Unrolled, values: Mapping[int, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a call's arguments with `values` (by number of the tensor) in the place of `Ref`s."""

    def value(leaf: Any) -> Any:
        return values[leaf.index] if isinstance(leaf, Ref) else leaf

    args, kwargs = keras.tree.map_structure(value, (call.args, dict(call.kwargs)))
    return args, kwargs


def symbolic_fill(
    call: Call | Unrolled, shapes: ByNumber, dtypes: ByNumber
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a call's arguments with new symbolic tensors in the place of `Ref`s."""
    refs = refs_of((call.args, dict(call.kwargs)))
    numbers = [ref.index for ref in refs]
    return fill(call, {n: keras.KerasTensor(shapes[n], dtype=dtypes[n]) for n in numbers})


def inference_arguments(
    call: Call, values: Mapping[int, Any], *, in_code: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a call's arguments as `fill` does, in inference mode.

    Args:
        call: The call.
        values: The tensor of each number.
        in_code: Whether a `call` of the user's own makes it. A graph hands its own `training` on to
            all of its calls, such a `call` only where it says so.
    """
    args, kwargs = fill(call, values)
    takes_training = "training" in getattr(call.operation, "call_signature_parameters", ())
    if takes_training and ("training" not in kwargs or not in_code):
        kwargs["training"] = False
    return args, kwargs


def refs_of(structure: Any) -> tuple[Ref, ...]:
    """Returns the tensors' numbers that a nested structure holds, flattened."""
    return tuple(leaf for leaf in leaves_of(structure) if isinstance(leaf, Ref))


def leaves_of(structure: Any) -> list[Any]:
    """Returns what a nested structure holds, flattened."""
    return list(keras.tree.flatten(structure))


def arrays_of(structure: Any) -> list[npt.NDArray[Any]]:
    """Returns the tensors that a nested structure holds as arrays, flattened."""
    return [np.asarray(keras.ops.convert_to_numpy(x)) for x in leaves_of(structure)]
