"""Layers keep their dtype policies, and the optimizer its loss scale, when a model becomes slim."""

import keras
import numpy as np
import pytest

import sgdap
from sgdap.surgery import prune_in_place
from sgdap.surgery.apply import copy_model
from tests.models import convnet, digits_like, outputs
from tests.oracles import masked_outputs, random_removal

POLICIES = ["mixed_float16", "mixed_bfloat16"]
RESOLUTION = {"mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}


@pytest.fixture(params=POLICIES)
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def trained() -> keras.Model:
    model = convnet(optimizer="adam")
    model.fit(*digits_like(32), epochs=1, verbose=0)
    return model


def prune(model: keras.Model) -> None:
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, random_removal(graph))


def dtypes(model: keras.Model) -> list:
    return [
        (layer.dtype_policy.name, layer.compute_dtype, [v.dtype for v in layer.variables])
        for layer in model.layers
    ]


def test_layers_keep_their_policies(policy):
    model = trained()
    before = dtypes(model)
    keras.config.set_dtype_policy("float32")
    prune(model)
    assert dtypes(model) == before
    assert model.get_layer("conv_2").compute_dtype == policy.removeprefix("mixed_")


def test_the_slim_model_computes_what_the_masked_original_does(policy):
    original, x = trained(), digits_like()[0]
    slim = copy_model(original)
    prune(slim)
    expected = masked_outputs(original, slim, x).astype("float32")
    assert slim.count_params() < original.count_params()
    np.testing.assert_allclose(outputs(slim, x), expected, atol=RESOLUTION[policy])


def test_it_trains_on_and_loads_equal_to_the_bit(policy, tmp_path):
    model, (x, y) = trained(), digits_like(32)
    prune(model)
    model.fit(x, y, verbose=0)
    assert all(np.isfinite(weights).all() for weights in model.get_weights())
    model.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras")
    assert dtypes(loaded) == dtypes(model)
    assert np.array_equal(outputs(loaded, x), outputs(model, x))


def test_the_loss_scale_goes_on(policy):
    model = trained()
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    state = [v.numpy() for v in model.optimizer.variables if not v.shape]
    prune(model)
    assert [v.numpy() for v in model.optimizer.variables if not v.shape] == state
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == scaled
