"""Operations of `keras.ops` as functions of TensorFlow and back; knows no layers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from sgdap.bridge.graphs import Node
from sgdap.bridge.sides import NotConvertibleError

Function = Callable[..., Any]

_MOST_NUMBERED = 10_000
"""A layer whose name ends in a greater number was not numbered by counting."""


def tensorflow_function(node: Node) -> Function:
    """What computes, on symbolic tensors of `tf_keras`, the same as an operation of Keras 3.

    Args:
        node: A call of the operation.

    Returns:
        A function of the call's arguments.

    Raises:
        NotConvertibleError: There is none in our table.
    """
    operation = node.operation
    name = type(operation).__name__
    function = _OF_KERAS.get(name) if type(operation).__module__.startswith("keras.") else None
    if function is None:
        raise NotConvertibleError("this operation has no equal in our table")
    entries = {
        k: v for k, v in operation.get_config().items() if k not in ("name", "dtype", "ragged")
    }
    if name == "Cast":
        entries["dtype"] = keras.backend.standardize_dtype(node.outputs[0].dtype)
    elif name in _ARITHMETIC:
        entries["dtype"] = keras.backend.standardize_dtype(node.outputs[0].dtype)
    return _bound(function, node, entries)


def keras_function(node: Node) -> Function:
    """What computes, on symbolic tensors of Keras 3, the same as a function of TensorFlow.

    Args:
        node: A call of a `TFOpLambda` or `SlicingOpLambda` of `tf_keras`.

    Raises:
        NotConvertibleError: There is none in our table.
    """
    symbol = str(node.operation.get_config()["function"])
    function = _OF_TENSORFLOW.get(symbol.split(".")[-1])
    if function is None:
        raise NotConvertibleError(f"tf.{symbol} has no equal in our table")
    return _bound(function, node, {})


def is_operation(layer: Any) -> bool:
    """Whether a layer of `tf_keras` is a function of TensorFlow."""
    return type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda")


def count_past(names: Iterable[str]) -> None:
    """Lets Keras number the operations that it names past some names of layers.

    In a model no two names are equal, and operations get theirs by counting.

    Args:
        names: The names.
    """
    last: dict[str, int] = {}
    for name in names:
        kind, number = re.fullmatch(r"(.+?)(?:_(\d+))?", name, re.DOTALL).groups("0")  # type: ignore[union-attr]
        last[kind] = max(last.get(kind, 0), int(number))
    for name in _OF_KERAS:
        counted = type(name, (keras.Operation,), {})
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        for _ in range(min(last.get(kind, -1) + 1, _MOST_NUMBERED)):
            if int(counted().name.removeprefix(kind).strip("_") or 0) >= last[kind]:
                break


def _bound(function: Function, node: Node, entries: dict[str, Any]) -> Function:
    """The function with further arguments; refuses a call that it can't be made with."""

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("name", None)
        return function(*args, **{**entries, **kwargs})

    named = {**entries, **{k: v for k, v in node.kwargs.items() if k != "name"}}
    try:
        inspect.signature(function).bind(*node.args, **named)
    except TypeError as error:
        raise NotConvertibleError(f"it can't be called in the same way: {error}") from error
    return call


# Keras 3 → TensorFlow. Arguments are named as those of the classes of operations.


def _arithmetic(function: Function) -> Function:
    def call(x1: Any, x2: Any, dtype: str) -> Any:
        return function(_cast(x1, dtype), _cast(x2, dtype))

    return call


def _cast(x: Any, dtype: str) -> Any:
    """Keras 3 computes with tensors of several dtypes, TensorFlow doesn't."""
    if not hasattr(x, "dtype"):
        return x
    return x if x.dtype == dtype else tf.cast(x, dtype)


def _elementwise(function: Function) -> Function:
    return lambda x: function(x)


def _reduction(function: Function) -> Function:
    return lambda x, axis=None, keepdims=False: function(x, axis=axis, keepdims=keepdims)


def _transposed(x: Any, axes: Sequence[int] | None = None) -> Any:
    return tf.transpose(x, axes)


def _swapped(x: Any, first: int, second: int) -> list[int]:
    """The order of a tensor's axes with two of them exchanged."""
    axes = list(range(len(x.shape)))
    axes[first], axes[second] = axes[second], axes[first]
    return axes


def _moved(x: Any, source: Any, destination: Any) -> list[int]:
    """The order of a tensor's axes with some of them moved."""
    rank = len(x.shape)
    given, wanted = ([axis % rank for axis in np.ravel(axes)] for axes in (source, destination))
    order = [axis for axis in range(rank) if axis not in given]
    for place, axis in sorted(zip(wanted, given, strict=True)):
        order.insert(place, axis)
    return [int(axis) for axis in order]


def _squeezed(x: Any, axis: Any = None) -> Any:
    return tf.squeeze(x, [axis] if isinstance(axis, int) else axis)


def _split(x: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    if isinstance(indices_or_sections, int):
        return tf.split(x, indices_or_sections, axis)
    bounds = [0, *indices_or_sections]
    sizes = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
    return tf.split(x, [*sizes, x.shape[axis] - bounds[-1]], axis)


def _expanded(x: Any, axis: Any) -> Any:
    for one in [axis] if isinstance(axis, int) else sorted(axis):
        x = tf.expand_dims(x, one)
    return x


def _clipped(x: Any, x_min: Any, x_max: Any) -> Any:
    return tf.clip_by_value(x, x_min, x_max)


def _padded(x: Any, pad_width: Any, mode: str = "constant", constant_values: Any = None) -> Any:
    return tf.pad(x, pad_width, mode, constant_values or 0)


def _hard_sigmoid(x: Any) -> Any:
    return tf.nn.relu6(x + 3.0) * (1 / 6)


_ARITHMETIC = {
    "Add": _arithmetic(lambda a, b: a + b),
    "Subtract": _arithmetic(lambda a, b: a - b),
    "Multiply": _arithmetic(lambda a, b: a * b),
    "Divide": _arithmetic(lambda a, b: a / b),
    "TrueDivide": _arithmetic(lambda a, b: a / b),
    "FloorDivide": _arithmetic(lambda a, b: a // b),
    "Power": _arithmetic(lambda a, b: a**b),
    "Maximum": _arithmetic(tf.maximum),
    "Minimum": _arithmetic(tf.minimum),
}
"""Operations on two tensors, which are first cast to the dtype of the result."""

_OF_KERAS: dict[str, Function] = {
    **_ARITHMETIC,
    "Equal": lambda x1, x2: tf.equal(x1, x2),
    "NotEqual": lambda x1, x2: tf.not_equal(x1, x2),
    "Any": _reduction(tf.reduce_any),
    "All": _reduction(tf.reduce_all),
    "LogicalAnd": lambda x1, x2: tf.logical_and(x1, x2),
    "LogicalOr": lambda x1, x2: tf.logical_or(x1, x2),
    "LogicalNot": _elementwise(tf.logical_not),
    "Greater": lambda x1, x2: x1 > x2,
    "GreaterEqual": lambda x1, x2: x1 >= x2,
    "Less": lambda x1, x2: x1 < x2,
    "LessEqual": lambda x1, x2: x1 <= x2,
    "Where": lambda condition, x1, x2: tf.where(condition, x1, x2),
    "Absolute": _elementwise(tf.abs),
    "Negative": _elementwise(lambda x: -x),
    "Square": _elementwise(tf.square),
    "Sqrt": _elementwise(tf.sqrt),
    "Rsqrt": _elementwise(tf.math.rsqrt),
    "Log1p": _elementwise(tf.math.log1p),
    "Expm1": _elementwise(tf.math.expm1),
    "Sign": _elementwise(tf.sign),
    "Exp": _elementwise(tf.exp),
    "Log": _elementwise(tf.math.log),
    "Sin": _elementwise(tf.sin),
    "Cos": _elementwise(tf.cos),
    "Tanh": _elementwise(tf.tanh),
    "Sigmoid": _elementwise(tf.sigmoid),
    "Relu": _elementwise(tf.nn.relu),
    "Relu6": _elementwise(tf.nn.relu6),
    "Silu": _elementwise(lambda x: x * tf.sigmoid(x)),
    "Softplus": _elementwise(tf.nn.softplus),
    "LogSigmoid": _elementwise(tf.math.log_sigmoid),
    "Elu": lambda x, alpha=1.0: tf.where(x > 0, x, alpha * (tf.exp(tf.minimum(x, 0.0)) - 1.0)),
    "Selu": _elementwise(tf.nn.selu),
    "LeakyRelu": lambda x, negative_slope=0.2: tf.nn.leaky_relu(x, negative_slope),
    "Gelu": lambda x, approximate=True: tf.nn.gelu(x, approximate),
    "HardSigmoid": _hard_sigmoid,
    "HardSilu": lambda x: x * _hard_sigmoid(x),
    "Softmax": lambda x, axis=-1: tf.nn.softmax(x, axis),
    "LogSoftmax": lambda x, axis=-1: tf.nn.log_softmax(x, axis),
    "Mean": _reduction(tf.reduce_mean),
    "Sum": _reduction(tf.reduce_sum),
    "Max": lambda x, axis=None, keepdims=False, initial=None: tf.reduce_max(x, axis, keepdims),
    "Min": lambda x, axis=None, keepdims=False, initial=None: tf.reduce_min(x, axis, keepdims),
    "Prod": lambda x, axis=None, keepdims=False: tf.reduce_prod(x, axis, keepdims),
    "Var": _reduction(tf.math.reduce_variance),
    "Std": _reduction(tf.math.reduce_std),
    "Reshape": lambda x, newshape: tf.reshape(x, [-1 if n is None else n for n in newshape]),
    "Transpose": _transposed,
    "Moveaxis": lambda x, source, destination: tf.transpose(x, _moved(x, source, destination)),
    "Swapaxes": lambda x, axis1, axis2: tf.transpose(x, _swapped(x, axis1, axis2)),
    "Squeeze": _squeezed,
    "ExpandDims": _expanded,
    "Concatenate": lambda xs, axis=0: tf.concat(xs, axis),
    "Stack": lambda x, axis=0: tf.stack(x, axis),
    "Split": _split,
    "Flip": lambda x, axis: tf.reverse(x, [axis] if isinstance(axis, int) else axis),
    "Tile": lambda x, repeats: tf.tile(x, repeats),
    "Pad": _padded,
    "Clip": _clipped,
    "GetItem": lambda x, key: x[key],
    "Matmul": lambda x1, x2: tf.matmul(x1, x2),
    "Cast": lambda x, dtype: tf.cast(x, dtype),
    "ConvertToTensor": lambda x, sparse=None: x,
}


# TensorFlow → Keras 3. Arguments are named and ordered as those of the functions of TensorFlow.


def _bordered(
    tensor: Any,
    paddings: Any,
    mode: str = "CONSTANT",
    name: str | None = None,
    constant_values: Any = 0,
) -> Any:
    values = constant_values if mode.lower() == "constant" else None
    return ops.pad(tensor, [_shape(pair) for pair in paddings], mode.lower(), values)


def _sliced(tensor: Any, slice_spec: Any) -> Any:
    parts = slice_spec if isinstance(slice_spec, (list, tuple)) else (slice_spec,)
    return tensor[tuple(_slice(part) for part in parts)]


def _slice(part: Any) -> Any:
    if isinstance(part, dict):
        return slice(*(_number(part[key]) for key in ("start", "stop", "step")))
    return part if part is None or part is Ellipsis else _number(part)


def _number(value: Any) -> Any:
    return None if value is None else int(value)


def _parts(value: Any, num_or_size_splits: Any, axis: int = 0) -> Any:
    if isinstance(num_or_size_splits, int):
        return ops.split(value, num_or_size_splits, axis)
    sizes = [int(size) for size in num_or_size_splits]
    return ops.split(value, [sum(sizes[:n]) for n in range(1, len(sizes))], axis)


def _multiplied(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    def turned(x: Any) -> Any:
        return ops.transpose(x, _swapped(x, -2, -1))

    return ops.matmul(turned(a) if transpose_a else a, turned(b) if transpose_b else b)


def _shape(shape: Any) -> list[int]:
    return [int(size) for size in shape]


def _sum_of(inputs: Sequence[Any]) -> Any:
    total, *others = inputs
    for other in others:
        total = total + other
    return total


def _axes(axis: Any) -> Any:
    return axis if axis is None or isinstance(axis, int) else [int(one) for one in axis]


def _folded(function: Function) -> Function:
    return lambda input_tensor, axis=None, keepdims=False: function(
        input_tensor, axis=_axes(axis), keepdims=keepdims
    )


def _of_one(function: Function) -> Function:
    return lambda x: function(x)


def _of_two(function: Function) -> Function:
    return lambda x, y: function(x, y)


def _of_features(function: Function) -> Function:
    return lambda features: function(features)


_OF_TENSORFLOW: dict[str, Function] = {
    "add": _of_two(lambda x, y: x + y),
    "subtract": _of_two(lambda x, y: x - y),
    "multiply": _of_two(lambda x, y: x * y),
    "truediv": _of_two(lambda x, y: x / y),
    "divide": _of_two(lambda x, y: x / y),
    "floordiv": _of_two(lambda x, y: x // y),
    "floor_div": _of_two(lambda x, y: x // y),
    "pow": _of_two(ops.power),
    "maximum": _of_two(ops.maximum),
    "minimum": _of_two(ops.minimum),
    "equal": _of_two(ops.equal),
    "not_equal": _of_two(ops.not_equal),
    "reduce_any": _folded(ops.any),
    "reduce_all": _folded(ops.all),
    "logical_and": _of_two(ops.logical_and),
    "logical_or": _of_two(ops.logical_or),
    "logical_not": _of_one(ops.logical_not),
    "log_sigmoid": _of_one(ops.log_sigmoid),
    "greater": _of_two(ops.greater),
    "greater_equal": _of_two(ops.greater_equal),
    "less": _of_two(ops.less),
    "less_equal": _of_two(ops.less_equal),
    "where": lambda condition, x, y: ops.where(condition, x, y),
    "where_v2": lambda condition, x, y: ops.where(condition, x, y),
    "add_n": _sum_of,
    "abs": _of_one(ops.absolute),
    "negative": _of_one(ops.negative),
    "square": _of_one(ops.square),
    "sqrt": _of_one(ops.sqrt),
    "rsqrt": _of_one(ops.rsqrt),
    "log1p": _of_one(ops.log1p),
    "expm1": _of_one(ops.expm1),
    "sign": _of_one(ops.sign),
    "exp": _of_one(ops.exp),
    "log": _of_one(ops.log),
    "sin": _of_one(ops.sin),
    "cos": _of_one(ops.cos),
    "tanh": _of_one(ops.tanh),
    "sigmoid": _of_one(ops.sigmoid),
    "relu": _of_features(ops.relu),
    "relu6": _of_features(ops.relu6),
    "softplus": _of_features(ops.softplus),
    "elu": _of_features(ops.elu),
    "selu": _of_features(ops.selu),
    "leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "softmax": lambda logits, axis=-1: ops.softmax(logits, axis),
    "log_softmax": lambda logits, axis=-1: ops.log_softmax(logits, axis),
    "reduce_mean": _folded(ops.mean),
    "reduce_sum": _folded(ops.sum),
    "reduce_max": _folded(ops.max),
    "reduce_min": _folded(ops.min),
    "reduce_prod": _folded(ops.prod),
    "reduce_variance": _folded(ops.var),
    "reduce_std": _folded(ops.std),
    "reshape": lambda tensor, shape: ops.reshape(tensor, _shape(shape)),
    "transpose": lambda a, perm=None, conjugate=False: ops.transpose(a, _axes(perm)),
    "squeeze": lambda input, axis=None, name=None, squeeze_dims=None: ops.squeeze(
        input, _axes(axis if squeeze_dims is None else squeeze_dims)
    ),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "stack": lambda values, axis=0: ops.stack(values, axis),
    "split": _parts,
    "reverse": lambda tensor, axis: ops.flip(tensor, _axes(axis)),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "tile": lambda input, multiples: ops.tile(input, _shape(multiples)),
    "pad": _bordered,
    "getitem": _sliced,
    "matmul": _multiplied,
    "cast": lambda x, dtype: ops.cast(x, tf.as_dtype(dtype).name),
    "convert_to_tensor": lambda value, dtype=None: value,
    "identity": lambda input: input,
}
