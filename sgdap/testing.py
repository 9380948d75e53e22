"""Checks for those who write channel rules: a rule is tried on its layer, in a model around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap._arguments import check_integer, shown
from sgdap.channels.grouping import channel_graph, untried_channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.labels import Channels, TensorChannels
from sgdap.channels.probing import agree, random_weights
from sgdap.model.copying import made_like
from sgdap.model.generators import global_state_kept
from sgdap.model.leaves import leaf_class
from sgdap.model.program import leaves_of
from sgdap.surgery.apply import copy_model
from sgdap.surgery.prune import prune_in_place

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_SAMPLES = 4


def check_rule(
    layer: Any, input_shape: Sequence[int] | list[Sequence[int]], *, axis: int = -1
) -> None:
    """Checks the rule of a layer's class, as `sgdap.register_rule` registered it.

    A small model is built around a layer like this one. Channels that the rule lets go are removed
    at its input, its output and inside, and what comes out is compared with the layer as it is, the
    same channels zeroed. A rule that keeps channels keeps what it promises.

    Args:
        layer: A layer of the class; it is not changed.
        input_shape: The shape of its input without the batch, or a list of shapes for a layer that
            is called on a list of tensors.
        axis: The axis of the channels in its inputs, the batch being axis 0.

    Raises:
        AssertionError: The rule is wrong, or there is none. The message tells what differs, and
            the weight that it says something else of.
        TypeError: `layer` is no layer, or `input_shape` no shape.
        ValueError: The layer can't be called on such inputs.

    Example:
        >>> sgdap.testing.check_rule(keras.layers.Conv2D(6, 3), (8, 8, 4))
    """
    if not isinstance(layer, keras.Layer):
        raise TypeError(f"check_rule takes a layer and its shape. Received: {shown(layer)}")
    several = isinstance(input_shape, list)
    shapes: list[Any] = [*input_shape] if several else [input_shape]
    for shape in shapes:
        if not isinstance(shape, Sequence):
            raise TypeError(
                "input_shape must be a tuple of sizes without the batch, or a list of such tuples. "
                f"Received: {shown(input_shape)}"
            )
        for size in shape:
            check_integer("each size of input_shape", size, 1)
    if leaf_class(layer) is None:
        raise AssertionError(
            f"No rule is registered for {type(layer).__name__}. Register it before, with "
            f"@sgdap.register_rule({type(layer).__name__})."
        )
    with global_state_kept():
        _check(_model_around(layer, shapes, axis, several))


@dataclass(frozen=True, eq=False)
class _Around:
    """A layer in a small model: each input is made by a layer, each output read by one.

    Attributes:
        model: The whole model.
        layer: The layer.
        before: From the model's inputs to the layer's.
        after: From the layer's outputs to the model's.
        several: Whether the layer is called on a list.
    """

    model: Any
    layer: Any
    before: Any
    after: Any
    several: bool

    @property
    def title(self) -> str:
        """The name of the layer in messages."""
        return f"The rule of '{self.layer.name}' (of class {type(self.layer).__name__})"


def _model_around(layer: Any, shapes: Sequence[Any], axis: int, several: bool) -> _Around:
    """Builds a model around a layer like the given one, with random weights."""
    try:
        new = made_like(layer, {})
    except Exception as error:
        raise AssertionError(
            f"'{layer.name}' (of class {type(layer).__name__}) can't be made again from its "
            f"config, as surgery does it: {error}"
        ) from error
    inputs = [keras.Input(shape) for shape in shapes]
    made = [_made(x, axis, number) for number, x in enumerate(inputs)]
    outputs = leaves_of(new(made if several else made[0]))
    heads = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in outputs]
    reader = [
        (keras.layers.Flatten(name=f"flatten_{n}"), keras.layers.Dense(3, name=f"reader_{n}"))
        for n in range(len(outputs))
    ]

    def read(tensors: Sequence[Any]) -> list[Any]:
        pairs = zip(reader, tensors, strict=True)
        return [dense(flatten(keras.ops.cast(x, "float32"))) for (flatten, dense), x in pairs]

    model = keras.Model(inputs, read(outputs))
    random = np.random.default_rng(0)
    for variable in model.variables:
        if keras.backend.is_float_dtype(variable.dtype):
            variable.assign(random_weights(tuple(variable.shape), random))
    before, after = keras.Model(inputs, made), keras.Model(heads, read(heads))
    return _Around(model, new, before, after, several)


def _made(x: Any, axis: int, number: int) -> Any:
    """A tensor with the shape of an input, its channels along an axis made by a layer."""
    rank = len(x.shape)
    if not 0 < axis % rank:
        raise ValueError(f"axis must be one of the channels, not of the batch. Received: {axis}")
    dense = keras.layers.Dense(x.shape[axis], name=f"made_{number}")
    if axis % rank == rank - 1:
        return dense(x)
    order = list(range(1, rank))
    order[axis % rank - 1], order[-1] = order[-1], order[axis % rank - 1]
    return keras.layers.Permute(order)(dense(keras.layers.Permute(order)(x)))


def _check(around: _Around) -> None:
    try:
        graph = untried_channel_graph(around.model)
    except (TypeError, ValueError) as error:
        raise AssertionError(str(error)) from error
    call = next(c for c in graph.program.calls if c.operation is around.layer)
    places = _Places(
        path=call.path,
        inputs=[graph.tensors[ref.index] for ref in call.inputs],
        outputs=[graph.tensors[ref.index] for ref in call.outputs],
    )
    for kept in _removals(graph, places):
        _compare(around, graph, places, kept)
    removable = _removable(graph)
    for group in channel_graph(around.model).groups:
        if (removable[group.channels] & ~group.removable).any():
            raise AssertionError(f"{around.title} does not hold: {'; '.join(group.reasons)}.")


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the channels of the layer lie.

    Attributes:
        path: The path of the layer.
        inputs: The channels along the axes of its inputs.
        outputs: The channels along the axes of its outputs.
    """

    path: str
    inputs: list[TensorChannels]
    outputs: list[TensorChannels]

    def lines(self, graph: ChannelGraph) -> list[Channels]:
        """The channels of each axis of its tensors and weights."""
        of_tensors = [c for tensor in (*self.inputs, *self.outputs) for c in tensor]
        of_weights = [axis.channels for axis in graph.axes if axis.path == self.path]
        return [line for line in (*of_tensors, *of_weights) if line is not None]


def _removable(graph: ChannelGraph) -> Mask:
    removable = np.zeros(graph.count, bool)
    for group in graph.groups:
        removable[group.channels] = group.removable
    return removable


def _removals(graph: ChannelGraph, places: _Places) -> Iterator[Mask]:
    """Masks of channels that stay: random halves of each line, then of all lines at once."""
    random, removable = np.random.default_rng(1), _removable(graph)
    lines = list({line.tobytes(): line for line in places.lines(graph)}.values())
    for some in (*([line] for line in lines), lines, lines):
        kept = np.ones(graph.count, bool)
        for line in some:
            candidates = np.unique(line[removable[line]])
            kept[random.permutation(candidates)[: math.ceil(len(candidates) / 2)]] = False
        for line in (*lines, *(axis.channels for axis in graph.axes)):
            if len(line) and not kept[line].any():
                kept[line[0]] = True
        if not kept.all():
            yield kept


def _compare(around: _Around, graph: ChannelGraph, places: _Places, kept: Mask) -> None:
    """Raises if the model without some channels differs from the one with these zeroed."""
    random = np.random.default_rng(2)
    x = [
        random.normal(size=(_SAMPLES, *i.shape[1:])).astype("float32") for i in around.model.inputs
    ]
    slim = copy_model(around.model, compiled=False)
    try:
        prune_in_place(untried_channel_graph(slim), kept)
        found = _arrays(slim(list(x), training=False))
    except Exception as error:
        raise AssertionError(f"{around.title} does not hold: {error}") from error
    expected = _arrays(around.after(_zeroed_run(around, graph, places, kept, x)))
    if agree(found, expected):
        return
    blamed = _blamed(around, graph, places, kept, x)
    most = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    why = "no weight by itself tells why: the layer mixes channels that its rule takes to be apart"
    if blamed:
        why = (
            f"what its rule takes from {' and '.join(blamed)} is still needed: that lies along "
            "other channels or another axis than call.weight says"
        )
    raise AssertionError(
        f"{around.title} does not hold. Without {int((~kept).sum())} of its channels the outputs "
        f"of a model around it differ by up to {most:.2g} from those with these channels zeroed, "
        f"and "
        f"{why}, or its output has other channels than the rule returns."
    )


def _zeroed_run(
    around: _Around,
    graph: ChannelGraph,
    places: _Places,
    kept: Mask,
    x: Sequence[Array],
    *,
    kernels: bool = True,
) -> Any:
    """The outputs of the layer as it is, with the channels that leave zeroed where they are read.

    They are read at the layer's inputs and behind its outputs, by kernels inside it (a recurrent
    one), and where channels are only inside the layer by all its weights.

    Args:
        around: The layer in its model.
        graph: The model's channels.
        places: Where those of the layer lie.
        kept: Which channels stay.
        x: The model's inputs.
        kernels: Whether weights that have channels along several axes are zeroed too.
    """
    made = leaves_of(around.before(list(x), training=False))
    inputs = [_zeroed(t, c, kept) for t, c in zip(_arrays(made), places.inputs, strict=True)]
    outside = np.zeros(graph.count, bool)
    for tensor in (*places.inputs, *places.outputs):
        for line in tensor:
            outside[[] if line is None else line] = True
    variables = _keras.layer_variables(around.layer)
    before = [variable.numpy() for variable in variables]
    axes = [axis for axis in graph.axes if axis.path == places.path]
    numbers = [axis.variable for axis in axes]
    try:
        for axis in axes:
            variable = variables[axis.variable]
            inside = ~outside[axis.channels] | (kernels and numbers.count(axis.variable) > 1)
            gone = ~kept[axis.channels] & inside
            variable.assign(_with_zeros(variable.numpy(), axis.axis, gone))
        results = leaves_of(around.layer(inputs if around.several else inputs[0], training=False))
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
    return [_zeroed(t, c, kept) for t, c in zip(_arrays(results), places.outputs, strict=True)]


def _blamed(
    around: _Around, graph: ChannelGraph, places: _Places, kept: Mask, x: Sequence[Array]
) -> list[str]:
    """The weights of which entries still matter that leave by the rule, by name."""
    expected = _zeroed_run(around, graph, places, kept, x, kernels=False)
    blamed = []
    for number, variable in enumerate(_keras.layer_variables(around.layer)):
        value = variable.numpy()
        other = value.copy()
        mine = [a for a in graph.axes if (a.path, a.variable) == (places.path, number)]
        for axis in mine:
            np.moveaxis(other, axis.axis, 0)[~kept[axis.channels]] += 1
        variable.assign(other)
        try:
            if not agree(_zeroed_run(around, graph, places, kept, x, kernels=False), expected):
                axes = " and ".join(f"{axis.axis}" for axis in mine)
                blamed.append(f"'{variable.name}' of shape {value.shape} along axis {axes}")
        finally:
            variable.assign(value)
    return blamed


def _zeroed(array: Array, channels: TensorChannels, kept: Mask) -> Array:
    for axis, line in enumerate(channels):
        if line is not None:
            array = _with_zeros(array, axis, ~kept[line])
    return array


def _with_zeros(array: Array, axis: int, gone: Mask) -> Array:
    """An array with zeros at some indices along an axis."""
    array = array.copy()
    np.moveaxis(array, axis, 0)[gone] = 0
    return array


def _arrays(tensors: Any) -> list[Array]:
    return [np.asarray(keras.ops.convert_to_numpy(tensor)) for tensor in leaves_of(tensors)]
