"""A layer's patches times its kernel are the layer's outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from sgdap.channels import channel_graph
from sgdap.execution.rows import input_rows
from sgdap.execution.taps import kernel_matrix
from tests.models import randomise

CONVOLUTIONS = [
    (rank, stride, dilation, padding)
    for rank in (1, 2, 3)
    for stride, dilation in ((1, 1), (2, 1), (1, 2))
    for padding in ("valid", "same", *(("causal",) if rank == 1 else ()))
    if rank < 3 or dilation == 1  # TensorFlow has no dilated Conv3D on CPUs
]


def rows_times_kernel(model, x):
    (place,) = channel_graph(model).places
    layer = model.layers[-1]
    rows = input_rows(place.patches, tf.constant(x), 10**6, tf.constant([0, 0])).numpy()
    return rows @ kernel_matrix(place, layer) + layer.bias.numpy()


@pytest.mark.parametrize(("rank", "stride", "dilation", "padding"), CONVOLUTIONS)
def test_patches_times_kernel_is_the_convolution(rank, stride, dilation, padding):
    layer = getattr(layers, f"Conv{rank}D")(
        3, (3, 2, 2)[:rank], stride, padding, dilation_rate=dilation
    )
    model = randomise(keras.Sequential([keras.Input(((9, 8, 5)[:rank]) + (2,)), layer]))
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    expected = model(x).numpy().reshape(2, -1, 3)
    np.testing.assert_allclose(rows_times_kernel(model, x), expected, atol=1e-5)


TRANSPOSED = [
    (rank, stride, dilation, padding, size)
    for rank in (1, 2, 3)
    for stride, dilation in ((1, 1), (2, 1), (3, 1), (1, 2))
    for padding in ("valid", "same")
    for size in ((3, 2, 2), (2, 4, 3), (1, 1, 2))
    if rank < 3 or dilation == 1
]


@pytest.mark.parametrize(("rank", "stride", "dilation", "padding", "size"), TRANSPOSED)
def test_patches_times_kernel_is_the_transposed_convolution(rank, stride, dilation, padding, size):
    layer = getattr(layers, f"Conv{rank}DTranspose")(
        3, size[:rank], stride, padding, dilation_rate=dilation
    )
    model = randomise(keras.Sequential([keras.Input(((5, 4, 3)[:rank]) + (2,)), layer]))
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    expected = model(x).numpy().reshape(2, -1, 3)
    np.testing.assert_allclose(rows_times_kernel(model, x), expected, atol=1e-5)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_output_padding_moves_the_patches_of_a_transposed_convolution(padding):
    layer = layers.Conv2DTranspose(3, (3, 4), (2, 3), padding, output_padding=(1, 2))
    model = randomise(keras.Sequential([keras.Input((5, 4, 2)), layer]))
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 2)).astype("float32")
    expected = model(x).numpy().reshape(2, -1, 3)
    np.testing.assert_allclose(rows_times_kernel(model, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((5,), layers.Dense(3)),
        ((4, 5), layers.Dense(3)),
        ((4, 5), layers.EinsumDense("abc,cd->abd", (4, 3), bias_axes="d")),
        ((6, 6, 2), layers.SeparableConv2D(3, 3, 2, "same", depth_multiplier=2)),
        ((7, 2), layers.SeparableConv1D(3, 3, padding="valid")),
    ],
)
def test_patches_times_kernel_is_the_output_of_other_linear_layers(shape, layer):
    model = randomise(keras.Sequential([keras.Input(shape), layer]))
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    expected = model(x).numpy().reshape(2, -1, 3)
    np.testing.assert_allclose(rows_times_kernel(model, x), expected, atol=1e-5)


def test_at_most_so_many_positions_are_read_each_once():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 1)])
    (place,) = channel_graph(model).places
    x = tf.reshape(tf.range(36.0), (1, 6, 6, 1))
    rows = input_rows(place.patches, x, 10, tf.constant([0, 1])).numpy()
    assert rows.shape == (1, 10, 1)
    assert len(np.unique(rows)) == 10
