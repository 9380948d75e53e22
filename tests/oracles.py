"""What a slim model must compute, found by watching the original; knows nothing of sgdap.graph."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import keras
import numpy as np
from keras import layers

from sgdap import _keras
from tests.models import outputs

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


@contextmanager
def each_linear_call(watch: Callable) -> Iterator[None]:
    """Within, `watch(layer, x, compute)` stands in for each call of a Dense or convolution."""

    def watched(original: Callable) -> Callable:
        def call(self, inputs, *args, **kwargs):
            return watch(self, inputs, lambda x: original(self, x, *args, **kwargs))

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
    pairs = zip(_keras.flatten_layers(model), _keras.flatten_layers(slim), strict=True)
    lost = {id(old): lost_filters(old, new) for old, new in pairs if isinstance(old, LINEAR)}
    clean: list[tuple[np.ndarray, np.ndarray]] = []

    def record(layer, inputs, compute):
        result = compute(inputs)
        clean.append((inputs.numpy(), result.numpy()))
        return result

    with each_linear_call(record):
        expected = outputs(model, x)

    def touched_by(disturbance: Callable) -> list[np.ndarray]:
        touched: list[np.ndarray] = []

        def disturb(layer, inputs, compute):
            before, result = clean[len(touched)]
            changed = before != inputs.numpy()
            touched.append(changed.any(axis=tuple(range(changed.ndim - 1))))
            return keras.ops.where(lost[id(layer)], disturbance(result), result)

        with each_linear_call(disturb):
            found = outputs(model, x)
        np.testing.assert_array_equal(found, expected, "a removed channel is an output")
        return touched

    # Noise does not show behind a unit that is dead, NaN not behind a maximum.
    touched = list(map(np.logical_or, touched_by(noisy), touched_by(lambda y: y * np.nan)))

    def mask(layer, inputs, compute):
        stays = ~touched.pop(0)
        if not isinstance(layer, layers.Embedding):
            inputs = inputs * keras.ops.cast(stays, inputs.dtype)
        with state_masked(layer, lost[id(layer)]):
            return compute(inputs)

    with each_linear_call(mask):
        return outputs(model, x)


def noisy(result: np.ndarray) -> np.ndarray:
    """An array with large noise, up and down: a ReLU is silent on one side."""
    noise = np.random.default_rng(0).uniform(10, 20, result.shape)
    noise[::2] *= -1
    return (result + noise).astype(result.dtype)


def lost_filters(old: layers.Layer, new: layers.Layer) -> np.ndarray:
    """Which filters of a layer its slim version lacks; each is known by its random weights.

    A row of the slim weights is a row of the old ones without the lost filters. A few rows tell:
    two filters do not share their weights in all of them.
    """
    before, after = (filters.reshape(len(filters), -1) for filters in map(filters_of, (old, new)))
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
        kept[removable[: (len(removable) + 1) // 2]] = False
    for axis in graph.axes:
        if not kept[axis.channels].any():
            kept[random.choice(axis.channels)] = True
    return kept
