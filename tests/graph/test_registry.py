"""Rules of one's own, and for which classes a rule holds."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.graph.registry import find_rule
from sgdap.surgery import prune_in_place
from tests.models import outputs, randomise, samples
from tests.oracles import random_removal


class Scale(layers.Layer):
    """Multiplies every channel with a factor of its own."""

    def build(self, shape):
        self.factors = self.add_weight(shape=(shape[-1],), name="factors")

    def call(self, x):
        return x * self.factors


@pytest.fixture
def scale_has_a_rule():
    @sgdap.register_rule(Scale)
    def scale(layer, call):
        call.weight(layer.factors, call.input.axes[-1])
        return call.input


def network() -> keras.Model:
    return randomise(
        keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(6, name="first"),
                Scale(name="scale"),
                layers.Dense(2, name="end"),
            ]
        )
    )


def test_a_layer_of_ones_own_shrinks_by_its_rule(scale_has_a_rule):
    model = network()
    graph = sgdap.channel_graph(model)
    assert graph.group("first").followers == ("scale",)
    kept = random_removal(graph)
    stays = kept[graph.group("first").channels]
    kernel, bias, factors, end, end_bias = model.get_weights()
    prune_in_place(graph, kept)
    x = samples(model)
    expected = ((x @ kernel + bias) * factors)[:, stays] @ end[stays] + end_bias
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)
    assert model.get_layer("scale").factors.shape == (3,)


def test_a_rule_holds_for_a_subclass_that_computes_the_same():
    class Named(layers.Dense):
        purpose = "named"

    class Doubled(layers.Dense):
        def call(self, x):
            return 2 * super().call(x)

    assert find_rule(Named(3)) is find_rule(layers.Dense(3)) is not None
    assert find_rule(Doubled(3)) is None


def test_registering_again_replaces_the_rule(scale_has_a_rule):
    model = network()
    assert sgdap.channel_graph(model).group("first").prunable

    @sgdap.register_rule(Scale)
    def keep(layer, call):
        call.keep(call.input, "for a reason")
        return call.input

    assert sgdap.channel_graph(model).group("first").reasons == ("for a reason",)


def test_what_is_no_class_is_refused():
    with pytest.raises(TypeError, match=r"takes layer classes.*Received: <Dense"):
        sgdap.register_rule(layers.Dense(3))
