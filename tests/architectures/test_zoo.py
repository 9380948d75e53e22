"""The proof on architectures that users write themselves."""

import keras
import numpy as np
import pytest

import sgdap
from sgdap.surgery import prune_in_place
from sgdap.surgery.apply import copy_model
from tests.architectures.proof import TOLERANCE, largest_difference
from tests.architectures.zoo import ZOO
from tests.models import randomise
from tests.oracles import random_removal

pytestmark = [pytest.mark.architectures, pytest.mark.compiled]


def inputs(model: keras.Model):
    """A batch of random numbers, or of tokens, for each input of a model."""
    random = np.random.default_rng(0)
    made = [
        random.integers(1, 20, (4, *x.shape[1:]), "int32")
        if x.dtype == "int32"
        else random.normal(size=(4, *x.shape[1:])).astype("float32")
        for x in model.inputs
    ]
    return made if len(made) > 1 else made[0]


@pytest.mark.parametrize("name", ZOO)
def test_an_architecture_pruned_at_random_passes_the_proof(name, tmp_path, tabulated):
    model = ZOO[name]()
    evidence = tabulated(name.replace("_", " "), model, inputs(model), tmp_path)
    assert evidence.params[1] < evidence.params[0]


@pytest.mark.parametrize("name", ["res_next", "text_transformer"])
def test_the_proof_sees_one_wrong_number_in_any_bias(name):
    model = randomise(ZOO[name]())
    slim = copy_model(model)
    graph = sgdap.channel_graph(slim)
    prune_in_place(graph, random_removal(graph))
    x = inputs(model)
    assert largest_difference(model, slim, x) <= TOLERANCE
    for layer in slim.layers:
        if isinstance(layer, keras.layers.Dense | keras.layers.Conv2D) and layer.use_bias:
            bias = layer.bias.numpy()
            layer.bias.assign(bias + np.eye(len(bias))[0] * 5)
            assert largest_difference(model, slim, x) > TOLERANCE
            layer.bias.assign(bias)
