"""Layers are built without drawing numbers, and without a run, where values are set at once."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from sgdap.model.building import only_built, weights_not_drawn

DRAWN = "glorot_uniform he_normal lecun_uniform orthogonal random_normal truncated_normal".split()


@pytest.mark.parametrize("initializer", DRAWN)
def test_weights_that_would_be_drawn_are_zero(initializer):
    layer = layers.Dense(3, kernel_initializer=initializer, bias_initializer="ones")
    with weights_not_drawn():
        layer.build((None, 4))
    assert not layer.kernel.numpy().any()
    assert layer.bias.numpy().all()
    again = type(layer).from_config(layer.get_config())
    again.build((None, 4))
    assert again.kernel.numpy().any()


def test_weights_that_are_made_of_numbers_keep_them():
    layer = layers.Dense(2, kernel_initializer=lambda shape, dtype: ops.full(shape, 2.0, dtype))
    with weights_not_drawn():
        layer.build((None, 4))
    np.testing.assert_array_equal(layer.kernel, np.full((4, 2), 2.0))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: layers.Dense(3), (2, 4)),
        (lambda: layers.Bidirectional(layers.GRU(3)), (2, 5, 4)),
        (lambda: layers.TimeDistributed(layers.Conv2D(3, 2)), (2, 3, 4, 4, 1)),
        (lambda: layers.RNN([layers.LSTMCell(3), layers.LSTMCell(2)]), (2, 5, 4)),
    ],
)
def test_a_layer_that_is_only_built_has_the_variables_of_its_first_call(make, shape, monkeypatch):
    whole, layer, x = make(), make(), ops.ones(shape)
    made = whole(x)
    with monkeypatch.context() as patch:
        patch.setattr(layer, "call", lambda *_, **__: pytest.fail("it was run"))
        with only_built(layer):
            layer(x)
    assert layer.built
    assert [v.shape for v in layer.variables] == [v.shape for v in whole.variables]
    layer.set_weights(whole.get_weights())
    np.testing.assert_array_equal(layer(x), made)


def test_inner_layers_run_as_ever():
    inner, layer = layers.Dense(3), layers.Dense(2)
    with only_built(layer):
        assert tuple(inner(np.ones((2, 4))).shape) == (2, 3)
    assert isinstance(inner, keras.Layer) and not layer.built
