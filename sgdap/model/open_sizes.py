"""Sizes known only when a model runs, where a `call` of the user's own computes with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from sgdap.model.program import Shape

Reshaped = Callable[[Any, tuple[int, ...]], Any]
"""Reshapes a symbolic tensor to a shape without the batch axis, an unknown size in it as -1."""


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


def size_functions(reshaped: Reshaped) -> dict[tuple[Any, str], Any]:
    """Functions of `keras.ops` that tell of sizes that aren't known, and that take them.

    Plain operations stand in for those that Keras can make only of numbers: `ops.arange(size)`
    counts along the tensor that has the size, `ops.broadcast_to(x, (size, 3))` adds zeros.

    Args:
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
            raise ValueError(
                "ops.arange takes a size that is not known before the model runs only without "
                "`start` and `step`: add to, or multiply, what it makes"
            )
        numbers = ops.cumsum(ops.ones_like(_counted(size))) - 1
        return ops.cast(numbers, dtype or "int32")

    def broadcast_to(original: Any, x: Any, shape: Any) -> Any:
        return spread(x, shape) if _has_unknown(shape) else original(x, shape)

    def spread(x: Any, shape: Any) -> Any:
        sizes = (1,) * (len(shape) - len(x.shape)) + tuple(x.shape)
        zeros = ops.zeros(_with_ones(shape), "int32")
        for axis, size in enumerate(shape):
            if _is_unknown(size) and sizes[axis] is not None:
                along = [-1 if other == axis else 1 for other in range(len(shape))]
                zeros = zeros + ops.reshape(_counted(size), along)
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
            raise ValueError(
                "a number of times that is not known before the model runs repeats axes of size 1 "
                "only: add such an axis, and reshape"
            )
        sizes = [times.get(a, UnknownSize(x, a) if s is None else s) for a, s in enumerate(x.shape)]
        return spread(x, sizes)

    functions: dict[str, Any] = {"zeros": filled, "ones": filled, "full": filled}
    for function in (shape, reshape, arange, broadcast_to, tile, repeat):
        functions[function.__name__] = function
    return {(ops, name): function for name, function in functions.items()}


def _counted(size: UnknownSize) -> Any:
    """As many zeros as a size, made from the tensor that has it."""
    if size.tensor is None:
        raise ValueError(
            "its size is not known before the model runs, and it is computed from another one: "
            "take one that a tensor has, as ops.shape(x)[1]"
        )
    others = [axis for axis in range(len(size.tensor.shape)) if axis != size.axis]
    return ops.sum(ops.zeros_like(size.tensor, "int32"), others)


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
        raise ValueError(
            "ops.reshape can't tell two sizes that are not known before the model runs: give one "
            "as a number"
        )
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
