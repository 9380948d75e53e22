import keras
import numpy as np
import pytest

import sgdap
from sgdap import _keras
from sgdap.bridge.layers import SAME
from tests.bridge.cases import CASES
from tests.bridge.comparing import assert_same_outputs, inputs_of
from tests.models import all_layers, randomise

pytestmark = pytest.mark.filterwarnings(
    "ignore:The structure of `inputs` doesn't match:UserWarning"
)


def adapted(model: keras.Model) -> keras.Model:
    """Random weights, known to Normalization too."""
    randomise(model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.finalize_state()
    return model


@pytest.mark.parametrize("name", CASES)
def test_a_layer_goes_over_and_comes_back(name: str):
    model = adapted(CASES[name]())
    before = model.get_weights()
    x = inputs_of(model)
    there = sgdap.to_tf_keras(model)
    assert_same_outputs(model, there, x)
    back = sgdap.from_tf_keras(there)
    assert type(back) is type(model) or "hard" in name
    assert_same_outputs(model, back, x)
    np.testing.assert_equal(model.get_weights(), before)


def test_every_class_of_the_table_is_tried():
    tried = {
        type(inner).__name__
        for make in CASES.values()
        for layer in all_layers(make())
        for inner in _keras.flatten_layers(layer)
    }
    assert SAME - tried - {"Activation"} == set()
