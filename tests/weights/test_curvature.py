import keras
import numpy as np
import pytest
from keras import layers

from sgdap.channels.grouping import channel_graph
from sgdap.sparsity.kernels import chosen_kernels
from sgdap.sparsity.patterns import Unstructured
from sgdap.weights.curvature import Calibration, curvatures

GENERATOR = np.random.default_rng(0)


def known_of(layer, shape):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape), layer])
    graph = channel_graph(model)
    kernels = chosen_kernels(graph.program.layers(), Unstructured())
    x = GENERATOR.normal(1.0, 1.0, (600, *shape)).astype("float32")
    reading = Calibration(samples=None, positions=1000)
    return model, kernels, curvatures(graph, kernels, x, reading), x


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(3), (4,)),
        (layers.Dense(3, use_bias=False), (4,)),
        (layers.Conv2D(4, 2, groups=2), (4, 4, 4)),
        (layers.Conv1DTranspose(3, 2), (5, 2)),
        (layers.SeparableConv1D(3, 2), (5, 2)),
    ],
)
def test_moments_tell_what_a_change_of_a_kernel_does_to_the_outputs(layer, shape):
    """The bias takes up the mean of the change; what is left is its variance."""
    model, kernels, known, x = known_of(layer, shape)
    kernel = kernels[-1]
    change = GENERATOR.normal(size=kernel.shape).astype("float32")
    before = model.predict(x, verbose=0)
    kernel.variable.assign_add(change)
    moved = (model.predict(x, verbose=0) - before).reshape(-1, before.shape[-1])
    if layer.bias is not None:
        moved -= moved.mean(axis=0)
    told = [
        np.einsum("io,ij,jo->o", own, curvature.second, own)
        for curvature, own in zip(
            known[kernel.path], kernel.layout.matrices(change.astype(float)), strict=True
        )
    ]
    np.testing.assert_allclose(np.concatenate(told), (moved**2).mean(axis=0), rtol=1e-3)


def test_kernels_whose_inputs_are_not_seen_have_the_power_of_their_gradients():
    _, (depthwise, _), known, _ = known_of(layers.SeparableConv1D(3, 2), (5, 2))
    (first, second) = known[depthwise.path]
    assert first.second is None
    assert first.each.shape == second.each.shape == (2, 1)
    assert (first.each > 0).all()


def test_dense_layers_count_alike_whether_their_outputs_are_seen_or_not():
    """What an output counts is read off the gradients of a recurrent layer's kernel."""
    _, (kernel, _), known, _ = known_of(layers.SimpleRNN(3, activation="linear"), (1, 4))
    _, (dense,), other, _ = known_of(layers.Dense(3), (4,))
    ratio = known[kernel.path][0].powers / other[dense.path][0].powers
    np.testing.assert_allclose(ratio / ratio.mean(), 1.0, rtol=0.6)
