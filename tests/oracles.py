"""What a slim model must compute, found by watching the original; imports nothing of sgdap."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import keras
import numpy as np
from keras import layers

from sgdap import _keras
from tests.models import all_layers, outputs

CELLS = (layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell)
CONVOLVING = (layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN, *CONVOLVING)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
LINEAR = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.EinsumDense,
    layers.Embedding,
    layers.ReversibleEmbedding,
    *RECURRENT,
    *TRANSPOSED,
    *SEPARABLE,
)
"""What makes channels or reads them."""

HEADED = (layers.MultiHeadAttention, layers.GroupQueryAttention)
"""Its projections are layers in it."""

MEETING = (layers.Attention, layers.AdditiveAttention, layers.Dot)
"""What reads the channels of two tensors against each other."""


def every_layer(model: keras.Model) -> Iterator[layers.Layer]:
    """All layers, those in wrappers and attention layers too, in a fixed order."""
    for layer in all_layers(model):
        yield from _keras.flatten_layers(layer)


def _product_classes() -> tuple[type, ...]:
    x = keras.Input(batch_shape=(2, 2))
    calls = (keras.ops.matmul, keras.ops.dot, lambda a, b: keras.ops.tensordot(a, b, 1))
    made = [call(x, x) for call in calls] + [keras.ops.einsum("ab,bc->ac", x, x)]
    x = keras.Input(batch_shape=(2, 2, 2, 2))
    made.append(keras.ops.dot_product_attention(x, x, x))
    return tuple(
        type(keras.Model(keras.utils.get_source_inputs(y), y).operations[-1]) for y in made
    )


PRODUCTS = _product_classes()
"""Operations that contract axes of two tensors; the last one attends."""

ATTENDED = [(-1, -1)]
"""The axes of query and key that meet in `ops.dot_product_attention`."""


SUM = type(keras.Model(x := keras.Input((2,)), keras.ops.sum(x, -1)).operations[-1])
"""Sums over axes of one tensor: as if it met another one of 1 there."""


@contextmanager
def each_product(watch: Callable, *, sums: bool = False) -> Iterator[None]:
    """Within, `watch(x, y, pairs of axes that meet, compute)` stands in for each contraction.

    With `sums`, for each sum over axes of a tensor too, which then is x and y.
    """

    def watched(original: Callable) -> Callable:
        def call(self, *operands, **kwargs):
            if isinstance(self, SUM):
                (x,) = operands
                over = range(x.ndim) if self.axis is None else np.atleast_1d(self.axis)
                axes = [(int(axis), int(axis)) for axis in over]
                return watch(x, x, axes, lambda x, _: original(self, x))
            names = [name for name in ("query", "key", "value") if name in kwargs]
            first, second, *rest = (*operands, *(kwargs.pop(name) for name in names))
            axes = contracted_axes(self, first, second)
            return watch(first, second, axes, lambda x, y: original(self, x, y, *rest, **kwargs))

        return call

    with ExitStack() as stack:
        for operation_class in (*PRODUCTS, SUM) if sums else PRODUCTS:
            stack.enter_context(
                mock.patch.object(operation_class, "call", watched(operation_class.call))
            )
        yield


def contracted_axes(operation, x, y) -> list[tuple[int, int]]:
    """The axes of two tensors that an operation multiplies and sums over."""
    if isinstance(operation, PRODUCTS[-1]):
        return ATTENDED
    equation = getattr(operation, "subscripts", None)
    if equation is not None:
        read, made = equation.replace(" ", "").split("->")
        first, second = (
            term.replace("...", "ABCDEF"[: one.ndim - len(term.replace("...", ""))])
            for term, one in zip(read.split(","), (np.asarray(x), np.asarray(y)), strict=True)
        )
        return [(first.index(a), second.index(a)) for a in first if a in second and a not in made]
    axes = getattr(operation, "axes", None)
    if isinstance(axes, (list, tuple)):
        mine, theirs = ([a] if isinstance(a, int) else a for a in axes)
        return list(zip(mine, theirs, strict=True))
    return [(len(x.shape) - 1, 0 if axes == 1 else max(len(y.shape) - 2, 0))]


def along(mask: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """A mask in the shape that broadcasts along one axis of a tensor."""
    shape = [1] * rank
    shape[axis] = len(mask)
    return mask.reshape(shape)


@contextmanager
def each_call(watch: Callable) -> Iterator[None]:
    """Within, `watch(layer, inputs, compute, kwargs)` stands in for calls of these layers."""
    running: list[int] = []

    def watched(original: Callable) -> Callable:
        first = next(name for name in inspect.signature(original).parameters if name != "self")

        @functools.wraps(original)  # Keras reads the names of its arguments
        def call(self, *args, **kwargs):
            inputs, *args = args or [kwargs.pop(first)]
            if id(self) in running:  # a class that calls the one it is derived from
                return original(self, inputs, *args, **kwargs)
            running.append(id(self))
            try:
                return watch(self, inputs, lambda x: original(self, x, *args, **kwargs), kwargs)
            finally:
                running.pop()

        return call

    with ExitStack() as stack:
        originals = {layer_class: layer_class.call for layer_class in (*LINEAR, *MEETING, *HEADED)}
        for layer_class, original in originals.items():
            stack.enter_context(mock.patch.object(layer_class, "call", watched(original)))
        yield


def masked_outputs(model: keras.Model, slim: keras.Model, x: np.ndarray) -> np.ndarray:
    """What `model` predicts with 0 wherever a layer reads one of the channels that `slim` lacks.

    Which filters are gone is seen in the kernels; what reads them, by disturbing them and watching
    which inputs of the other layers change.
    """
    lost, inner = lost_channels(model, slim)
    clean: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
    products: list[tuple[np.ndarray, np.ndarray]] = []

    def record(layer, inputs, compute, kwargs):
        result = compute(inputs)
        if isinstance(layer, HEADED):
            return result
        clean.append((arrays(inputs), arrays(result)))
        return result

    def record_product(first, second, axis, compute):
        products.append((np.array(first), np.array(second)))
        return compute(first, second)

    with each_call(record), each_product(record_product, sums=True):
        expected = outputs(model, x)

    def touched_by(disturbance: Callable) -> tuple[list[np.ndarray], list[np.ndarray]]:
        touched: list[np.ndarray] = []
        contracted: list[list[np.ndarray]] = []

        def disturb(layer, inputs, compute, kwargs):
            if isinstance(layer, HEADED):
                result = compute(inputs)
                if not kwargs.get("return_attention_scores"):
                    return result
                scores, heads = result[1], lost[id(layer)][:, None, None]
                return result[0], keras.ops.where(heads, disturbance(scores.numpy()), scores)
            before, results = clean[len(touched)]
            axes = read_axes(layer, before)
            # Along an axis of positions, a channel that is lost changes a part of each index.
            whole = np.all if isinstance(layer, layers.Dot) else np.any
            changed = [
                whole(one != other, axis=others(axis, one.ndim))
                for one, other, axis in zip(before, arrays(inputs), axes, strict=True)
                if axis is not None
            ]
            touched.append(np.logical_or.reduce(changed))
            if isinstance(layer, MEETING):
                return compute(
                    [
                        y if axis is None else replaced(y, one, touched[-1], axis)
                        for y, one, axis in met(layer, inputs, before)
                    ]
                )
            masks = lost_of_results(layer, lost, results, kwargs)
            disturbed = [
                keras.ops.where(mask, disturbance(y), y)
                for mask, y in zip(masks, results, strict=True)
            ]
            return disturbed[0] if len(disturbed) == 1 else tuple(disturbed)

        def disturb_product(first, second, axes, compute):
            before = products[len(contracted)]
            changed = before[0] != np.array(first)
            contracted.append([changed.all(axis=others(axis, changed.ndim)) for axis, _ in axes])
            for gone, (mine, theirs) in zip(contracted[-1], axes, strict=True):
                first = replaced(first, before[0], gone, mine)
                second = replaced(second, before[1], gone, theirs)
            return compute(first, second)

        with each_call(disturb), each_product(disturb_product, sums=True):
            found = outputs(model, x)
        np.testing.assert_array_equal(found, expected, "a removed channel is an output")
        return touched, contracted

    # Noise does not show behind a unit that is dead, NaN not behind a maximum.
    by_noise, by_nan = touched_by(noisy), touched_by(lambda y: y * np.nan)
    touched = list(map(np.logical_or, by_noise[0], by_nan[0]))
    contracted = [
        list(map(np.logical_or, one, other))
        for one, other in zip(by_noise[1], by_nan[1], strict=True)
    ]

    def mask(layer, inputs, compute, kwargs):
        if isinstance(layer, HEADED):
            return compute(inputs)
        gone = touched.pop(0)
        if isinstance(layer, MEETING):
            before = arrays(inputs)
            return compute(
                [
                    y if axis is None else replaced(y, np.zeros_like(one), gone, axis)
                    for y, one, axis in met(layer, inputs, before)
                ]
            )
        before_it, after_it = inner.get(id(layer), (None, None))
        if before_it is not None:
            inputs = inputs * ~before_it
        elif not isinstance(layer, layers.Embedding) or kwargs.get("reverse"):
            inputs = inputs * (~gone).astype("float32")
        with state_masked(layer, lost):
            result = compute(inputs)
        return result if after_it is None else result * ~after_it

    def mask_product(first, second, axes, compute):
        for gone, (mine, _) in zip(contracted.pop(0), axes, strict=True):
            first = replaced(first, np.zeros_like(first), gone, mine)
        return compute(first, second)

    with each_call(mask), each_product(mask_product, sums=True):
        return outputs(model, x)


def arrays(tensors) -> list[np.ndarray]:
    return [np.asarray(tensor) for tensor in keras.tree.flatten(tensors)]


def others(axis: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    """All axes but one or some."""
    axes = [a % rank for a in np.atleast_1d(axis)]
    return tuple(a for a in range(rank) if a not in axes)


def read_axes(layer: layers.Layer, inputs: list) -> list[int | tuple[int, ...] | None]:
    """The axis, or last axes, of each input that the layer sums over; None: it passes."""
    if isinstance(layer, layers.EinsumDense):
        read, kernel, made = re.split(",|->", layer.equation.replace(" ", ""))
        summed = [letter for letter in read if letter in kernel and letter not in made]
        assert read.endswith("".join(summed))
        return [tuple(range(-len(summed), 0))]
    if isinstance(layer, layers.Dot):
        return [layer.axes] * 2 if isinstance(layer.axes, int) else list(layer.axes)
    if isinstance(layer, MEETING):  # query, value and key; a value alone is the key too
        return [-1, -1] if len(inputs) == 2 else [-1, None, -1]
    return [-1] * len(inputs)


def met(layer: layers.Layer, inputs: list, before: list) -> list[tuple]:
    """The inputs with what they were and the axes that are summed over, value and key apart."""
    if isinstance(layer, layers.Dot):
        return list(zip(inputs, before, read_axes(layer, inputs), strict=True))
    query, value, *key = zip(inputs, before, strict=True)
    return [(*query, -1), (*value, None), (*(key[0] if key else value), -1)]


def replaced(tensor, other: np.ndarray, where: np.ndarray, axis: int) -> np.ndarray:
    """A tensor with the values of another one at some indices along an axis."""
    return keras.ops.where(along(where, axis, other.ndim), other, tensor)


def lost_channels(model: keras.Model, slim: keras.Model) -> tuple[dict, dict]:
    """What `slim` lacks: channels by id of the layer, and what is lost inside attention layers.

    For a projection inside an attention layer, the second holds what to mask of its input and of
    its output.
    """
    lost: dict[int, np.ndarray] = {}
    inner: dict[int, tuple] = {}
    for old, new in zip(every_layer(model), every_layer(slim), strict=True):
        if isinstance(old, HEADED):
            mine, other = ({x.name: x for x in _keras.flatten_layers(y)} for y in (old, new))
            # The query's weights are scaled where key dimensions left, so the key's tell.
            keys = lost_along(mine["key"].kernel, other["key"].kernel, -1)
            values = lost_along(mine["value"].kernel, other["value"].kernel, -1)
            heads = lost_along(mine["attention_output"].kernel, other["attention_output"].kernel, 0)
            for name in {"query", "key", "value", "gate"} & set(mine):
                lost[id(mine[name])] = np.zeros(1, bool)
            lost[id(old)] = heads
            inner[id(mine["query"])] = (None, keys)
            inner[id(mine["attention_output"])] = (heads[:, None] | values, None)
        elif isinstance(old, (*LINEAR, *CELLS)) and id(old) not in lost and not is_stack(old):
            lost[id(old)] = lost_filters(old, new)
    return lost, inner


def is_stack(layer: layers.Layer) -> bool:
    """Whether it is a recurrent layer of several cells, each of which tells for itself."""
    return isinstance(getattr(layer, "cell", None), layers.StackedRNNCells)


def lost_of_results(layer, lost: dict, results: list, kwargs: dict) -> list[np.ndarray]:
    """Which channels, along the last axis, each result of a layer has lost."""
    if kwargs.get("reverse"):
        return [np.zeros(1, bool)]
    if is_stack(layer):
        cells = layer.cell.cells
        states = [lost[id(cell)] for cell in cells for _ in keras.tree.flatten(cell.state_size)]
        return [lost[id(cells[-1])], *states][: len(results)]
    return [lost[id(layer)]] * len(results)


def noisy(result: np.ndarray) -> np.ndarray:
    """An array with large noise, up and down: a ReLU is silent on one side."""
    noise = np.random.default_rng(0).uniform(10, 20, result.shape)
    noise[::2] *= -1
    return (result + noise).astype(result.dtype)


def lost_filters(old: layers.Layer, new: layers.Layer) -> np.ndarray:
    """Which filters of a layer its slim version lacks; each is known by its random weights.

    An EinsumDense may have several axes of them, the last ones of what it makes.
    """
    if isinstance(old, layers.EinsumDense):
        read, kernel, made = re.split(",|->", old.equation.replace(" ", ""))
        own = [letter for letter in kernel if letter not in read]
        assert made.endswith("".join(own))
        masks = [lost_along(old.kernel, new.kernel, kernel.index(letter)) for letter in own]
        spread = [along(mask, axis, len(masks)) for axis, mask in enumerate(masks)]
        return functools.reduce(np.logical_or, spread)
    return lost_along(filters_of(old), filters_of(new), 0)


def lost_along(before, after, axis: int) -> np.ndarray:
    """Which indices along an axis of some weights are not there in the slim weights.

    A row of the slim weights is a row of the old ones without the lost filters. A few rows tell:
    two filters do not share their weights in all of them.
    """
    before, after = (
        np.moveaxis(np.asarray(weights), axis, 0).reshape(weights.shape[axis], -1)
        for weights in (before, after)
    )
    if before.shape == after.shape:
        return np.zeros(len(before), bool)
    stays = np.ones(len(before), bool)
    for row in after.T[:8]:
        candidates = np.unique(np.nonzero(before == row[0])[1])
        found = [np.isin(before[:, n], row) for n in candidates if np.isin(row, before[:, n]).all()]
        stays &= np.any(found, axis=0)
    rows = [n for n in range(before.shape[1]) if np.array_equal(before[stays, n], after[:, 0])]
    assert rows, "filters changed their order or their weights"
    return ~stays


def filters_of(layer: layers.Layer) -> np.ndarray:
    """The weights that make each of a layer's channels, the channels' axis first."""
    if isinstance(layer, (*RECURRENT, *CELLS)):
        cell = getattr(layer, "cell", layer)
        units = cell.filters if isinstance(layer, CONVOLVING) else cell.units
        kernel = cell.kernel.numpy().reshape(-1, cell.kernel.shape[-1])
        return np.moveaxis(kernel.reshape(len(kernel), -1, units), -1, 0)
    if isinstance(layer, TRANSPOSED):
        return np.moveaxis(layer.kernel.numpy(), -2, 0)
    if isinstance(layer, SEPARABLE):
        return np.moveaxis(layer.pointwise_kernel.numpy(), -1, 0)
    weights = layer.embeddings if isinstance(layer, layers.Embedding) else layer.kernel
    return np.moveaxis(weights.numpy(), -1, 0)


@contextmanager
def state_masked(layer: layers.Layer, lost: dict) -> Iterator[None]:
    """Within, a recurrent layer does not read its lost units at the next step."""
    if not isinstance(layer, RECURRENT):
        yield
        return
    cells = layer.cell.cells if is_stack(layer) else [layer.cell]
    gone = [lost[id(cell if is_stack(layer) else layer)] for cell in cells]
    read = [(cell.recurrent_kernel, mask) for cell, mask in zip(cells, gone, strict=True)]
    read += [(cell.kernel, mask) for cell, mask in zip(cells[1:], gone[:-1], strict=True)]
    whole = [kernel.numpy() for kernel, _ in read]
    for (kernel, mask), value in zip(read, whole, strict=True):
        kernel.assign(np.where(mask[:, None], 0, value))
    yield
    for (kernel, _), value in zip(read, whole, strict=True):
        kernel.assign(value)


def random_removal(graph, seed: int = 0) -> np.ndarray:
    """A random choice of channels that stay: about half, and at least one along each axis."""
    random = np.random.default_rng(seed)
    kept = np.ones(graph.count, bool)
    for group in graph.groups:
        removable = random.permutation(group.channels[group.removable])
        kept[removable[: (len(removable) + 1) // 2]] = False
    for axis in graph.axes:
        if not kept[axis.channels].any():
            kept[random.choice(axis.channels)] = True
    return kept
