"""Costs are counted exactly for any widths."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.planning.cost import cost_model
from sgdap.planning.work import work_by_layer
from sgdap.surgery import prune_in_place
from tests.models import convnet
from tests.oracles import random_removal


def bytes_by_hand(model: keras.Model) -> int:
    return sum(weight.numpy().nbytes for weight in model.weights)


def flops_by_hand(model: keras.Model) -> int:
    """Two for each multiply-add of convolutions and dense layers."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, (layers.Conv2D, layers.Dense)):
            places = int(np.prod(layer.output.shape[1:-1]))
            total += 2 * places * int(np.prod(layer.kernel.shape))
    return total


@pytest.mark.parametrize("seed", range(3))
def test_predicted_costs_are_those_of_the_slim_model(seed):
    model = convnet()
    graph = sgdap.channel_graph(model)
    costs = cost_model(graph)
    kept = random_removal(graph, seed)
    predicted = costs.cost(costs.lengths(kept))
    prune_in_place(graph, kept)
    assert predicted.tolist() == [
        model.count_params(),
        flops_by_hand(model),
        bytes_by_hand(model),
    ]


def test_with_all_channels_the_costs_are_the_models():
    model = convnet()
    graph = sgdap.channel_graph(model)
    costs = cost_model(graph)
    everything = costs.lengths(np.ones(graph.count, bool))
    assert costs.cost(everything).tolist() == [
        model.count_params(),
        flops_by_hand(model),
        bytes_by_hand(model),
    ]
    assert sum(work_by_layer(graph).values()) == flops_by_hand(model)


def test_a_layer_called_twice_computes_twice_and_has_its_weights_once():
    inputs = keras.Input((4,))
    shared = layers.Dense(4)
    model = keras.Model(inputs, shared(shared(inputs)))
    graph = sgdap.channel_graph(model)
    costs = cost_model(graph)
    params, flops, _ = costs.cost(costs.lengths(np.ones(graph.count, bool)))
    assert (params, flops) == (20, 2 * 2 * 16)


def test_bytes_are_those_of_the_types_that_weights_have():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, dtype="float16"), layers.Dense(3, dtype="float64")]
    )
    graph = sgdap.channel_graph(model)
    costs = cost_model(graph)
    kept = random_removal(graph, 0)
    predicted = costs.cost(costs.lengths(kept))[2]
    prune_in_place(graph, kept)
    assert predicted == bytes_by_hand(model) < 4 * 6 * 2 + 6 * 2 + 6 * 3 * 8 + 3 * 8


def test_weights_of_the_model_itself_are_counted():
    class Scaled(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.end = layers.Dense(8, name="hidden"), layers.Dense(2)

        def build(self, input_shape):
            self.scale = self.add_weight(shape=(2,), name="scale")
            self.built = True

        def call(self, x):
            return self.end(self.hidden(x)) * self.scale

    model = Scaled()
    model(np.ones((3, 5), "float32"))
    graph = sgdap.channel_graph(model)
    costs, kept = cost_model(graph), random_removal(graph)
    assert costs.cost(costs.lengths(np.ones_like(kept)))[0] == model.count_params()
    promised = costs.cost(costs.lengths(kept))[0]
    assert sgdap.profile(model, latency=False).params == model.count_params()
    prune_in_place(graph, kept)
    assert promised == model.count_params()


@pytest.mark.parametrize("groups", [6, 2])
def test_the_work_of_slim_groups_is_what_was_promised(groups):
    x = keras.Input((5, 5, 2))
    y = layers.Conv2D(6, 1, name="first")(x)
    y = layers.Conv2D(12, 3, groups=groups, name="grouped")(y)
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(y)))
    graph = sgdap.channel_graph(model)
    costs, kept = cost_model(graph), random_removal(graph)
    promised = costs.cost(costs.lengths(kept))[1]
    prune_in_place(graph, kept)
    kernel = model.get_layer("grouped").kernel
    assert kernel.shape[-1] == 6
    dense = 2 * 6 * 2
    first = 2 * 25 * 2 * model.get_layer("first").filters
    assert promised == first + 2 * 9 * int(np.prod(kernel.shape)) + dense
    assert sgdap.profile(model, latency=False).flops == promised
