"""Sizes known only when a model runs, where a `call` of the user's own computes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from sgdap.model.program import Call, Ref, Shape

Counted = Callable[["UnknownSize"], Any]
"""Makes a symbolic int32 tensor of zeros, as long as a size, from the model's inputs."""

Reshaped = Callable[[Any, tuple[int, ...]], Any]
"""Reshapes a symbolic tensor to a shape without the batch axis, an unknown size in it as -1."""

Place = tuple[int, int]
"""The number of a tensor, and one of its axes."""


class UnknownSize:
    """Stands where a symbolic tensor's shape has None; what is computed from one is another one.

    Attributes:
        tensor: The tensor that has the size, None where it is computed from others.
        axis: Its axis there.
    """

    def __init__(self, tensor: Any = None, axis: int = 0) -> None:
        self.tensor, self.axis = tensor, axis

    @property
    def is_batch(self) -> bool:
        """Whether it is the number of samples."""
        return self.tensor is not None and self.axis == 0

    def _computed(self, *_: Any) -> UnknownSize:
        return UnknownSize()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _computed
    __floordiv__ = __rfloordiv__ = __mod__ = __neg__ = _computed

    def __bool__(self) -> bool:
        return False


def size_functions(counted: Counted, reshaped: Reshaped) -> dict[tuple[Any, str], Any]:
    """Functions of `keras.ops` that tell of sizes that aren't known, and that take them.

    Plain operations stand in for those that Keras can make only of numbers: `ops.arange(size)`
    counts along one of the model's inputs, `ops.broadcast_to(x, (size, 3))` adds zeros.

    Args:
        counted: Makes zeros, as many as a size.
        reshaped: Reshapes where two sizes aren't known, that of the batch and another one.

    Returns:
        What to call in the place of Keras' functions; each takes the original first.
    """

    def shape(original: Any, x: Any) -> Any:
        sizes = original(x)
        if not isinstance(x, keras.KerasTensor):
            return sizes
        return tuple(UnknownSize(x, a) if s is None else s for a, s in enumerate(sizes))

    def reshape(original: Any, x: Any, newshape: Any) -> Any:
        if not _has_unknown(newshape):
            return original(x, newshape)
        sizes = tuple(None if _is_unknown(size) else size for size in newshape)
        if isinstance(x, keras.KerasTensor) and tuple(x.shape).count(None) == 2:
            batch = newshape[0]
            if x.shape[0] is None and _is_unknown(batch) and batch.is_batch:
                return reshaped(x, _minus_one(_without_rest(x.shape[1:], sizes[1:])))
        return original(x, sizes)

    def arange(
        original: Any, start: Any, stop: Any = None, step: Any = None, dtype: Any = None
    ) -> Any:
        size = start if stop is None else stop
        if not _is_unknown(size):
            return original(start, stop, step, dtype)
        if (start not in (0, size)) or step not in (None, 1):
            raise ValueError("ops.arange takes an unknown size only without `start` and `step`")
        numbers = ops.cumsum(ops.ones_like(counted(size))) - 1
        return ops.cast(numbers, dtype or "int32")

    def broadcast_to(original: Any, x: Any, shape: Any) -> Any:
        return spread(x, shape) if _has_unknown(shape) else original(x, shape)

    def spread(x: Any, shape: Any) -> Any:
        missing = len(shape) - len(x.shape)
        sizes = (None,) * missing + tuple(x.shape)
        given = (False,) * missing + tuple(size != 1 for size in x.shape)
        zeros = ops.zeros(_with_ones(shape), "int32")
        for axis, size in enumerate(shape):
            if _is_unknown(size) and not (given[axis] and sizes[axis] is None):
                along = [-1 if other == axis else 1 for other in range(len(shape))]
                zeros = zeros + ops.reshape(counted(size), along)
        dtype = keras.backend.standardize_dtype(x.dtype)
        combined = ops.logical_or if dtype == "bool" else ops.add
        return combined(x, ops.cast(zeros, dtype))

    def filled(original: Any, shape: Any, *args: Any, **kwargs: Any) -> Any:
        if not _has_unknown(shape):
            return original(shape, *args, **kwargs)
        return spread(original(_with_ones(shape), *args, **kwargs), shape)

    def tile(original: Any, x: Any, repeats: Any) -> Any:
        if not _has_unknown(repeats):
            return original(x, repeats)
        made = original(x, _with_ones(repeats))
        return repeated(made, dict(enumerate(repeats, len(made.shape) - len(repeats))))

    def repeat(original: Any, x: Any, repeats: Any, axis: Any = None) -> Any:
        if not _is_unknown(repeats):
            return original(x, repeats, axis)
        return repeated(x, {axis % len(x.shape): repeats})

    def repeated(x: Any, repeats: dict[int, Any]) -> Any:
        times = {axis: size for axis, size in repeats.items() if _is_unknown(size)}
        if any(x.shape[axis] != 1 for axis in times):
            raise ValueError("only an axis of size 1 can be repeated an unknown number of times")
        sizes = [times.get(a, UnknownSize(x, a) if s is None else s) for a, s in enumerate(x.shape)]
        return spread(x, sizes)

    functions: dict[str, Any] = {"zeros": filled, "ones": filled, "full": filled}
    for function in (shape, reshape, arange, broadcast_to, tile, repeat):
        functions[function.__name__] = function
    return {(ops, name): function for name, function in functions.items()}


def _is_unknown(size: Any) -> bool:
    return isinstance(size, UnknownSize)


def _has_unknown(sizes: Any) -> bool:
    return isinstance(sizes, (list, tuple)) and any(map(_is_unknown, sizes))


def _with_ones(sizes: Any) -> list[Any]:
    return [1 if _is_unknown(size) else size for size in sizes]


def sizes_asked(operation: Any, *args: Any) -> Any:
    """Returns an operation with numbers where `ops.reshape` is given sizes that aren't known.

    Args:
        operation: The operation.
        *args: What it is called with.

    Raises:
        ValueError: Two sizes are not known.
    """
    new = getattr(operation, "newshape", ())
    if not isinstance(new, tuple) or None not in new:
        return operation
    old, made = tuple(args[0].shape), tuple(operation.compute_output_spec(*args).shape)
    if new.count(-1) + new.count(None) > 1 and old.count(None) > 1:
        raise ValueError("ops.reshape can't tell two sizes that are not known")
    if -1 in new and new.count(None) == old.count(None) == 1:
        made = _without_rest(old, new)
    return type(operation)(_minus_one(made), name=operation.name)


def _minus_one(sizes: Shape) -> tuple[int, ...]:
    return tuple(-1 if size is None else size for size in sizes)


def _without_rest(old: Shape, new: Shape) -> Shape:
    """A shape with a number in the place of -1, where None is asked for besides it."""
    if None not in new or -1 not in new:
        return new
    known = math.prod(size for size in new if size is not None and size != -1)
    rest = math.prod(size for size in old if size is not None) // max(known, 1)
    return tuple(rest if size == -1 else size for size in new)


def output_spec(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What Keras knows of a call's outputs; of an EinsumDense the sizes of its input too.

    Args:
        operation: The layer or operation.
        args: Positional arguments, symbolic tensors among them.
        kwargs: Keyword arguments, likewise.
    """
    spec = operation.compute_output_spec(*args, **kwargs)
    if not isinstance(operation, keras.layers.EinsumDense):
        return spec
    given = args[0] if args else kwargs["inputs"]
    read, _, made = operation.equation.replace(" ", "").partition("->")
    sizes = dict(zip(read.split(",")[0], given.shape, strict=False))
    if "." in sizes or "." in made:
        return spec
    shape = [
        sizes.get(letter) if size is None else size
        for letter, size in zip(made, spec.shape, strict=True)
    ]
    return keras.KerasTensor(shape, dtype=spec.dtype)


class Origins:
    """Which axis of the model's inputs is as long as an axis of another tensor.

    Each call is told sizes that stand for those of its inputs; what its outputs are as long as
    tells which of them it is.

    Args:
        inputs: The model's inputs.
    """

    def __init__(self, inputs: tuple[Ref, ...]) -> None:
        self.inputs = inputs
        self._known: dict[Place, Place] = {}
        self._followed = 0

    def of(
        self,
        place: Place,
        calls: Sequence[Call],
        shapes: Sequence[Shape],
        dtypes: Sequence[str],
    ) -> Place:
        """The number and axis of the input that is as long as an axis of a tensor.

        Args:
            place: The number of the tensor and the axis.
            calls: The calls up to the one that made the tensor.
            shapes: The shape of each tensor.
            dtypes: The dtype of each tensor.

        Raises:
            ValueError: There is none.
        """
        for ref in self.inputs:
            for axis in range(len(shapes[ref.index])):
                own = (ref.index, axis)
                self._known.setdefault(own, (self.inputs[0].index, 0) if axis == 0 else own)
        for call in calls[self._followed :]:
            self._follow(call, shapes, dtypes)
        self._followed = len(calls)
        if place not in self._known:
            raise ValueError("no input of the model has an axis that is as long")
        return self._known[place]

    def _follow(
        self, call: Call, shapes: Sequence[Shape], dtypes: Sequence[str], alike: bool = False
    ) -> None:
        """Finds out about a call's outputs; `alike`: all its unknown sizes but batches are one."""
        marks: dict[Place, int] = {}

        def mark(origin: Place) -> int:
            first = next((m for place, m in marks.items() if place[1] and origin[1]), None)
            new = first if alike and first is not None else _MARKS[len(marks)]
            return marks.setdefault(origin, new)

        def marked(leaf: Any) -> Any:
            if not isinstance(leaf, Ref):
                return leaf
            places = [(leaf.index, axis) for axis in range(len(shapes[leaf.index]))]
            origins = [self._known.get(place, place) for place in places]
            sizes = [
                mark(origin) if size is None else size
                for size, origin in zip(shapes[leaf.index], origins, strict=True)
            ]
            return keras.KerasTensor(sizes, dtype=dtypes[leaf.index])

        try:
            args, kwargs = keras.tree.map_structure(marked, (call.args, dict(call.kwargs)))
            made = keras.tree.flatten(output_spec(call.operation, args, kwargs))
            made = [part for part in made if isinstance(part, keras.KerasTensor)]
        except Exception:  # it takes no tensors of these sizes
            if alike or isinstance(call.operation, keras.Layer):
                self._follow_batches(call, shapes)
            else:  # two inputs are equally long, to all appearance
                self._follow(call, shapes, dtypes, alike=True)
            return
        origins = {size: origin for origin, size in reversed(marks.items())}
        for ref, tensor in zip(call.outputs, made, strict=True):
            for axis, size in enumerate(tensor.shape):
                if size in origins:
                    self._known[ref.index, axis] = origins[size]

    def _follow_batches(self, call: Call, shapes: Sequence[Shape]) -> None:
        """A layer makes as many samples as it is given."""
        given = [self._known.get((ref.index, 0)) for ref in call.inputs]
        batch = next((place for place in given if place is not None), None)
        if batch is not None and isinstance(call.operation, keras.Layer):
            for ref in call.outputs:
                if shapes[ref.index][:1] == (None,):
                    self._known[ref.index, 0] = batch


_MARKS = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069, 1087, 1091)
"""Sizes that stand for unknown ones; primes, so that no product of others is one."""
