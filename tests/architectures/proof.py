"""The proof on a whole model: pruned, it computes, costs, trains and travels as it must."""

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import sgdap
from sgdap import _keras
from sgdap.planning.cost import cost_model
from sgdap.surgery import prune_in_place
from sgdap.surgery.apply import copy_model
from tests.models import outputs, randomise
from tests.oracles import (
    ATTENDED,
    CONVOLVING,
    HEADED,
    MEETING,
    RECURRENT,
    SEPARABLE,
    TRANSPOSED,
    each_call,
    each_product,
    every_layer,
    lost_channels,
    lost_of_results,
    masked_outputs,
    random_removal,
)

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Evidence:
    """What the proof found.

    Attributes:
        name: The architecture.
        layers: Its layers.
        params: Parameters before and after.
        flops: FLOPs of a sample before and after, as counted while the models ran.
        promised: The FLOPs after, as the plan promised them.
        channels: Channels, and how many of them may leave.
        reasons: For each kind of reason how many channels it protects.
        unknown: Layers that no rule covers: path and reason.
        seconds: How long grouping took.
        difference: The largest relative difference to the masked original, at any linear layer.
    """

    name: str
    layers: int
    params: tuple[int, int]
    flops: tuple[int, int]
    promised: int
    channels: tuple[int, int]
    reasons: dict[str, int]
    unknown: tuple[tuple[str, str], ...]
    seconds: float
    difference: float


def prove(model: keras.Model, x, folder: Path, name: str = "") -> Evidence:
    """Prunes half of a copy's removable channels and checks all that a slim model must do.

    Args:
        model: The model, its weights are made random.
        x: A batch of inputs.
        folder: An empty folder for the files of the slim model.
        name: The architecture's name.

    Returns:
        The `Evidence`, all of it checked.
    """
    randomise(model)
    slim = copy_model(model)
    began = time.perf_counter()
    graph = sgdap.channel_graph(slim)
    seconds = time.perf_counter() - began
    kept = random_removal(graph)
    costs = cost_model(graph)
    before, after = costs.cost(costs.lengths(np.ones_like(kept))), costs.cost(costs.lengths(kept))
    prune_in_place(graph, kept)

    assert (model.count_params(), slim.count_params()) == (before[0], after[0])
    flops = counted_flops(model, x), counted_flops(slim, x)
    assert flops == (round(before[1]), round(after[1]))
    difference = largest_difference(model, slim, x)
    assert difference <= TOLERANCE
    train_a_step(slim, x)
    check_travels(slim, x, folder)

    protected = [group for group in graph.groups if not group.removable.all()]
    assert all(group.reasons for group in protected)
    return Evidence(
        name=name or model.name,
        layers=len(graph.program.layers()),
        params=(int(before[0]), int(after[0])),
        flops=flops,
        promised=int(after[1]),
        channels=(
            sum(group.size for group in graph.groups),
            sum(int(group.removable.sum()) for group in graph.groups),
        ),
        reasons=_by_reason(protected),
        unknown=graph.kept,
        seconds=seconds,
        difference=difference,
    )


def _by_reason(groups: list[sgdap.ChannelGroup]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for group in groups:
        kind = kind_of(group.reasons[0])
        counts[kind] = counts.get(kind, 0) + int((~group.removable).sum())
    return counts


def kind_of(reason: str) -> str:
    """A reason without the names of layers and what to do about it."""
    return re.sub(r"(?<!\w)'[^']+'", "a layer", reason).split("; ")[0]


def largest_difference(model: keras.Model, slim: keras.Model, x) -> float:
    """How far a slim model is from the masked original, at its outputs and at all linear layers.

    Each is relative to the largest value there, so that nothing hides behind a layer that shrinks
    or drowns it.
    """
    lost, _ = lost_channels(model, slim)
    inside = {
        id(layer)
        for whole in (model, slim)
        for headed in every_layer(whole)
        if isinstance(headed, HEADED)
        for layer in _keras.flatten_layers(headed)
    }
    of_original: list[tuple] = []
    of_slim: list[tuple] = []

    def recorded_in(record: list) -> object:
        def watch(layer, inputs, compute, kwargs):
            result = compute(inputs)
            if id(layer) not in inside and not isinstance(layer, MEETING):
                record.append((layer, keras.tree.flatten(result), kwargs))
            return result

        return each_call(watch)

    with recorded_in(of_original):
        expected = masked_outputs(model, slim, x)
    with recorded_in(of_slim):
        found = outputs(slim, x)
    assert np.isfinite(expected).all() and expected.std() > 0
    differences = [relative_difference(found, expected)]
    masked_pass = of_original[-len(of_slim) :]
    for (layer, whole, kwargs), (_, part, _) in zip(masked_pass, of_slim, strict=True):
        masks = lost_of_results(layer, lost, whole, kwargs)
        for mine, other, gone in zip(part, whole, masks, strict=True):
            expected = other.numpy() if gone.size == 1 else other.numpy()[..., ~gone]
            differences.append(relative_difference(mine.numpy().reshape(expected.shape), expected))
    return max(differences)


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two arrays as a part of the largest value."""
    assert found.shape == expected.shape
    scale = max(float(np.abs(expected).max(initial=0)), np.finfo(np.float32).tiny)
    return float(np.abs(found - expected).max(initial=0)) / scale


def train_a_step(model: keras.Model, x) -> None:
    """Trains a model on one batch; its weights change and stay finite."""
    model.compile(keras.optimizers.SGD(1e-3, global_clipnorm=1.0), "mse", run_eagerly=True)
    before = [variable.numpy() for variable in model.trainable_variables]
    targets = [np.zeros_like(y.numpy()) for y in keras.tree.flatten(model(x, training=False))]
    model.train_on_batch(x, targets if len(targets) > 1 else targets[0])
    after = [variable.numpy() for variable in model.trainable_variables]
    assert all(np.isfinite(value).all() for value in after)
    assert any((old != new).any() for old, new in zip(before, after, strict=True))


def check_travels(model: keras.Model, x, folder: Path) -> None:
    """Saves and exports a model; what comes back computes the same."""
    expected = outputs(model, x)
    assert np.isfinite(expected).all()
    model.save(folder / "slim.keras")
    loaded = keras.models.load_model(folder / "slim.keras")
    assert relative_difference(outputs(loaded, x), expected) <= 1e-5
    del loaded
    with _quick_export():
        model.export(folder / "served", verbose=False)
    served = tf.saved_model.load(folder / "served")
    result = served.serve(x)
    made = [y.numpy() for y in keras.tree.flatten(result)]
    if len(made) > 1:
        made = [np.hstack([y.reshape(len(y), -1) for y in made])]
    assert relative_difference(made[0], expected) <= 1e-4


@contextmanager
def _quick_export() -> Iterator[None]:
    """Within, exported models come without gradients and the graph functions that restore them.

    Those take more than half of the time to write, and `tf.saved_model.load` reads neither.
    """
    save = tf.saved_model.save
    options = tf.saved_model.SaveOptions(
        experimental_custom_gradients=False, experimental_skip_saver=True
    )

    def to_serve(*args, **kwargs):
        save(*args, **kwargs | {"options": options})

    with mock.patch.object(tf.saved_model, "save", to_serve):
        yield


FFT2 = _keras.operation_class(keras.ops.fft2, 2 * (keras.KerasTensor((2, 2)),))
FFT2_CALL = FFT2.call
"""Fourier transforms along the last two axes, `5 n log2 n` each."""


def counted_flops(model: keras.Model, x) -> int:
    """FLOPs of a sample, counted from the arrays that meet in each layer while the model runs.

    Args:
        model: The model.
        x: A batch of inputs.
    """
    counts: list[int] = []
    transforms: list[float] = []

    def transform(operation, x):
        points = int(np.prod(x[0].shape[-2:]))
        transforms.append(5 * _size(x[0]) * math.log2(points))
        return FFT2_CALL(operation, x)

    def product(first, second, axes, compute):
        made = compute(first, second)
        summed = int(np.prod([first.shape[mine] for mine, _ in axes]))
        scores = 2 * _size(first) * second.shape[1]  # and as much for the values
        counts.append(2 * scores if axes == ATTENDED else 2 * _size(made) * summed)
        return made

    watched = _each_call(lambda layer, given, made: counts.append(_flops(layer, given, made)))
    with watched, each_product(product), mock.patch.object(FFT2, "call", transform):
        outputs(model, x)
    batch = len(keras.tree.flatten(x)[0])
    assert sum(counts) % batch == 0
    return round(sum(counts) // batch + sum(transforms) / batch)


def _flops(layer: layers.Layer, given, made) -> int:
    """Two for each number of a kernel at each place where it is applied."""
    if isinstance(layer, RECURRENT):
        cell = layer.cell
        steps = given.shape[0] * given.shape[1]
        if isinstance(layer, CONVOLVING):
            steps *= int(np.prod(made.shape[2 if layer.return_sequences else 1 : -1]))
        return 2 * steps * (_size(cell.kernel) + _size(cell.recurrent_kernel))
    if isinstance(layer, SEPARABLE):
        places = _size(made) // made.shape[-1]
        return 2 * places * (_size(layer.depthwise_kernel) + _size(layer.pointwise_kernel))
    if isinstance(layer, TRANSPOSED):
        return 2 * (_size(given) // given.shape[-1]) * _size(layer.kernel)
    if isinstance(layer, layers.EinsumDense):
        read, kernel = layer.equation.split("->")[0].split(",")
        extent = dict(zip(read.strip(), given.shape, strict=True))
        extent.update(zip(kernel.strip(), layer.kernel.shape, strict=True))
        return 2 * int(np.prod([int(size) for size in extent.values()]))
    if isinstance(layer, layers.MultiHeadAttention):
        length = given.shape[0] * given.shape[1] * given.shape[1]
        return 2 * length * layer.num_heads * (layer.key_dim + layer.value_dim)
    if isinstance(layer, layers.DepthwiseConv1D | layers.DepthwiseConv2D):
        return 2 * (_size(made) // made.shape[-1]) * _size(layer.kernel)
    if isinstance(layer, layers.Dense | layers.Conv1D | layers.Conv2D | layers.Conv3D):
        return 2 * (_size(made) // made.shape[-1]) * _size(layer.kernel)
    return 0


def _size(array) -> int:
    return int(np.prod(array.shape))


@contextmanager
def _each_call(watch) -> Iterator[None]:
    """Within, `watch(layer, input, output)` sees each call of a layer."""
    original = layers.Layer.__call__

    def call(self, *args, **kwargs):
        made = original(self, *args, **kwargs)
        given = args[0] if args else kwargs.get("query", kwargs)
        watch(self, keras.tree.flatten(given)[0], keras.tree.flatten(made)[0])
        return made

    with mock.patch.object(layers.Layer, "__call__", call):
        yield
