"""On models put together at random, every kernel comes to lie on its lattice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sgdap
from sgdap.channels.grouping import channel_graph
from sgdap.weights.kernels import kernels_of
from tests.models import assemble, samples
from tests.test_random_graphs import RECIPES

pytestmark = [
    pytest.mark.compiled,  # grouped convolutions need XLA on CPUs
    pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning"),
]


@pytest.mark.hypothesis
@settings(max_examples=settings.default.max_examples // 10)
@given(st.integers(0, 3), RECIPES, st.sampled_from(["layerwise", False]))
def test_kernels_of_random_models_lie_on_their_lattices(spatial, recipe, compensate):
    model = assemble(spatial, recipe)
    made = sgdap.quantize(model, samples(model, 8), "int3", compensate=compensate)
    found = kernels_of(channel_graph(made).program.layers())
    old = kernels_of(channel_graph(model).program.layers())
    assert len(found) == len(old) > 0
    for kernel, before in zip(found, old, strict=True):
        matrices = kernel.layout.matrices(kernel.variable.numpy())
        for output in matrices.transpose(0, 2, 1).reshape(-1, matrices.shape[1]):
            assert len(np.unique(output)) <= 7
        if not compensate:
            wanted = before.layout.matrices(before.variable.numpy())
            for group, own in zip(wanted, matrices, strict=True):
                scheme = sgdap.quantization.get_scheme("int3")
                np.testing.assert_array_equal(own, scheme.quantize(group).dequantize())
