"""Consumers' kernels are fitted in the geometry in which they read."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.reconstruction import reconstructed_weights
from sgdap.statistics.collect import collect_statistics
from tests.models import outputs, randomise, samples


def basis(layer: layers.Layer, x: np.ndarray) -> np.ndarray:
    """What a layer with one filter makes for each entry of its kernel alone, `(rows, entries)`."""
    single = type(layer).from_config({**layer.get_config(), "filters": 1, "use_bias": False})
    single.build(x.shape)
    made = []
    for entry in range(single.kernel.numpy().size):
        kernel = np.zeros(single.kernel.shape, "float32")
        kernel.flat[entry] = 1
        single.kernel.assign(kernel)
        made.append(np.ravel(single(x)))
    return np.stack(made, axis=1)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(3, 2, name="end"),
        layers.Conv2DTranspose(3, 2, 2, name="end"),
        layers.Conv2DTranspose(3, (3, 2), 2, "same", name="end"),
        layers.Conv2DTranspose(2, 3, padding="same", dilation_rate=2, name="end"),
    ],
)
def test_the_fitted_kernel_of_a_convolution_is_the_least_squares_optimum(layer):
    layer = type(layer).from_config(layer.get_config())
    inputs = keras.Input((5, 4, 2))
    hidden = layers.Conv2D(6, 2, activation="relu", name="hidden")(inputs)
    model = randomise(keras.Model(inputs, layer(hidden)))
    x = samples(model, 48)
    graph = sgdap.channel_graph(model)
    kept = np.ones(graph.count, bool)
    kept[graph.groups[0].channels[[1, 4]]] = False
    statistics = collect_statistics(graph, x, positions=10**4)
    fitted = reconstructed_weights(graph, statistics, kept)
    made = outputs(keras.Model(inputs, hidden), x)[..., [0, 2, 3, 5]]
    slim = type(layer).from_config(layer.get_config())
    slim.build(made.shape)
    slim.set_weights([fitted["end", 0], fitted["end", 1]])
    wanted = outputs(model, x)
    design = np.column_stack([basis(layer, made), np.ones(wanted[..., 0].size)])
    for output in range(layer.filters):
        target = np.ravel(wanted[..., output])
        (least,) = np.linalg.lstsq(design, target, rcond=None)[1]
        lacking = target - np.ravel(np.array(slim(made))[..., output])
        assert (lacking**2).sum() <= 1.001 * least
