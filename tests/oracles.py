"""What a slim model must compute, found by watching the original; knows nothing of sgdap.graph."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import keras
import numpy as np
from keras import layers

from tests.models import all_layers, outputs

RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
LINEAR = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.EinsumDense,
    layers.Embedding,
    *RECURRENT,
    *TRANSPOSED,
    *SEPARABLE,
)
"""What makes channels or reads them."""


def _product_classes() -> tuple[type, ...]:
    x = keras.Input(batch_shape=(2, 2))
    calls = (keras.ops.matmul, keras.ops.dot, lambda a, b: keras.ops.tensordot(a, b, 1))
    made = [call(x, x) for call in calls] + [keras.ops.einsum("ab,bc->ac", x, x)]
    return tuple(type(keras.Model(x, y).operations[-1]) for y in made)


PRODUCTS = _product_classes()
"""Operations that contract axes of two tensors."""


@contextmanager
def each_product(watch: Callable) -> Iterator[None]:
    """Within, `watch(x, y, axis of y, compute)` stands in for each contraction of x's last axis."""

    def watched(original: Callable) -> Callable:
        def call(self, *operands):
            second = -1 if "kc->bqk" in getattr(self, "subscripts", "") else -2
            return watch(*operands, second, lambda x, y: original(self, x, y))

        return call

    with ExitStack() as stack:
        for operation_class in PRODUCTS:
            stack.enter_context(
                mock.patch.object(operation_class, "call", watched(operation_class.call))
            )
        yield


@contextmanager
def each_linear_call(watch: Callable) -> Iterator[None]:
    """Within, `watch(layer, x, compute)` stands in for each call of a Dense or convolution."""

    def watched(original: Callable) -> Callable:
        def call(self, inputs, **kwargs):
            return watch(self, inputs, lambda x: original(self, x))

        return call

    with ExitStack() as stack:
        for layer_class in LINEAR:
            stack.enter_context(mock.patch.object(layer_class, "call", watched(layer_class.call)))
        yield


def masked_outputs(model: keras.Model, slim: keras.Model, x: np.ndarray) -> np.ndarray:
    """What `model` predicts with 0 wherever a layer reads one of the channels that `slim` lacks.

    Which filters are gone is seen in the kernels; what reads them, by disturbing them and watching
    which inputs of the other layers change.
    """
    pairs = zip(all_layers(model), all_layers(slim), strict=True)
    lost = {id(old): lost_filters(old, new) for old, new in pairs if isinstance(old, LINEAR)}
    clean: list[tuple[np.ndarray, np.ndarray]] = []
    products: list[tuple[np.ndarray, np.ndarray]] = []

    def record(layer, inputs, compute):
        result = compute(inputs)
        clean.append((inputs.numpy(), result.numpy()))
        return result

    def record_product(first, second, axis, compute):
        products.append((np.array(first), np.array(second)))
        return compute(first, second)

    with each_linear_call(record), each_product(record_product):
        expected = outputs(model, x)

    def touched_by(disturbance: Callable) -> tuple[list[np.ndarray], list[np.ndarray]]:
        touched: list[np.ndarray] = []
        contracted: list[np.ndarray] = []

        def disturb(layer, inputs, compute):
            before, result = clean[len(touched)]
            changed = before != inputs.numpy()
            touched.append(changed.any(axis=tuple(range(changed.ndim - 1))))
            return keras.ops.where(lost[id(layer)], disturbance(result), result)

        def disturb_product(first, second, axis, compute):
            before = products[len(contracted)]
            changed = before[0] != np.array(first)
            gone = changed.all(axis=tuple(range(changed.ndim - 1)))
            contracted.append(gone)
            along = gone if axis == -1 else gone[:, None]
            return compute(
                keras.ops.where(gone, before[0], first), keras.ops.where(along, before[1], second)
            )

        with each_linear_call(disturb), each_product(disturb_product):
            found = outputs(model, x)
        np.testing.assert_array_equal(found, expected, "a removed channel is an output")
        return touched, contracted

    # Noise does not show behind a unit that is dead, NaN not behind a maximum.
    by_noise, by_nan = touched_by(noisy), touched_by(lambda y: y * np.nan)
    touched, contracted = (
        list(map(np.logical_or, one, other)) for one, other in zip(by_noise, by_nan, strict=True)
    )

    def mask(layer, inputs, compute):
        stays = ~touched.pop(0)
        if not isinstance(layer, layers.Embedding):
            inputs = inputs * stays.astype("float32")
        with state_masked(layer, lost[id(layer)]):
            return compute(inputs)

    def mask_product(first, second, axis, compute):
        return compute(first * (~contracted.pop(0)).astype("float32"), second)

    with each_linear_call(mask), each_product(mask_product):
        return outputs(model, x)


def noisy(result: np.ndarray) -> np.ndarray:
    """An array with large noise, up and down: a ReLU is silent on one side."""
    noise = np.random.default_rng(0).uniform(10, 20, result.shape)
    noise[::2] *= -1
    return (result + noise).astype(result.dtype)


def lost_filters(old: layers.Layer, new: layers.Layer) -> np.ndarray:
    """Which filters of a layer its slim version lacks; each is known by its random weights."""
    before, after = filters_of(old), filters_of(new)
    found = [
        next(i for i, whole in enumerate(before) if np.isin(filter, whole).all())
        for filter in after
    ]
    assert sorted(set(found)) == found, "filters changed their order"
    return ~np.isin(np.arange(len(before)), found)


def filters_of(layer: layers.Layer) -> np.ndarray:
    """The weights that make each of a layer's channels, the channels' axis first."""
    if isinstance(layer, RECURRENT):
        kernel = layer.cell.kernel.numpy()
        return np.moveaxis(kernel.reshape(len(kernel), -1, layer.units), -1, 0)
    if isinstance(layer, TRANSPOSED):
        return np.moveaxis(layer.kernel.numpy(), -2, 0)
    if isinstance(layer, SEPARABLE):
        return np.moveaxis(layer.pointwise_kernel.numpy(), -1, 0)
    weights = layer.embeddings if isinstance(layer, layers.Embedding) else layer.kernel
    return np.moveaxis(weights.numpy(), -1, 0)


@contextmanager
def state_masked(layer: layers.Layer, lost: np.ndarray) -> Iterator[None]:
    """Within, a recurrent layer does not read its lost units at the next step."""
    if not isinstance(layer, RECURRENT):
        yield
        return
    whole = layer.cell.recurrent_kernel.numpy()
    layer.cell.recurrent_kernel.assign(np.where(lost[:, None], 0, whole))
    yield
    layer.cell.recurrent_kernel.assign(whole)


def random_removal(graph, seed: int = 0) -> np.ndarray:
    """A random choice of channels that stay: about half, and at least one along each axis."""
    random = np.random.default_rng(seed)
    kept = np.ones(graph.count, bool)
    for group in graph.groups:
        removable = random.permutation(group.channels[group.removable])
        for channel in removable[: (len(removable) + 1) // 2]:
            kept[channel] = False
            if not all(kept[axis.channels].any() for axis in graph.axes):
                kept[channel] = True
    return kept
