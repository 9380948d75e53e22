"""Costs are counted exactly for any widths."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.planning.cost import cost_model, work_by_layer
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


class OwnKernel(layers.Layer):
    """A layer of the user's, without a rule, that does most of the work."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 64))

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


def test_the_share_that_is_promised_counts_layers_without_a_rule():
    inputs = keras.Input((8,))
    x = layers.Dense(16, name="before")(OwnKernel(name="own")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    plan = sgdap.plan(model, np.ones((32, 8), "float32"), sgdap.Budget(flops=0.8))
    slim = sgdap.apply(model, plan)
    width = slim.get_layer("before").units
    fixed = 2 * 8 * 64
    assert plan.flops[0] == fixed + 2 * 64 * 16 + 2 * 16 * 2
    assert plan.flops[1] == fixed + 2 * 64 * width + 2 * width * 2 <= 0.8 * plan.flops[0]
    assert sgdap.profile(slim, latency=False).flops == plan.flops[1]


def test_a_spectrogram_counts_with_its_transforms():
    inputs = keras.Input((80,))
    spectrogram = layers.MelSpectrogram(
        fft_length=32, sequence_stride=16, sequence_length=32, num_mel_bins=4, sampling_rate=1000
    )
    x = layers.GlobalAveragePooling1D(data_format="channels_first")(spectrogram(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(6)(x)))
    frames = spectrogram.output.shape[-1]
    transforms = frames * 2.5 * 32 * 5
    mels = 2 * frames * 17 * 4
    assert sgdap.profile(model, latency=False).flops == transforms + mels + 2 * 4 * 6 + 2 * 6 * 2


def test_an_operation_without_a_rule_of_its_own_counts():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1)(inputs)
    x = keras.ops.conv(x, np.ones((3, 3, 4, 5), "float32"), padding="valid")
    x = layers.GlobalAveragePooling2D()(keras.ops.relu(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    by_layer = work_by_layer(sgdap.channel_graph(model))
    assert sum(by_layer.values()) == 2 * 64 * 3 * 4 + 2 * 36 * 9 * 4 * 5 + 2 * 5 * 2


def test_a_layer_inside_one_that_is_left_as_it_is_counts_once():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(6), OwnKernel(), layers.Dense(3)])
    inputs = keras.Input((5, 8))
    x = layers.TimeDistributed(inner, name="each")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    flops = work_by_layer(sgdap.channel_graph(model))
    assert flops["each"] == 5 * 2 * (8 * 6 + 6 * 64 + 64 * 3)


def test_a_rule_that_does_not_say_the_work_leaves_it_counted_and_named():
    class Silent(OwnKernel):
        pass

    @sgdap.register_rule(Silent)
    def silent(layer, call):
        call.keep(call.input, "it has a reason")
        return call.output()

    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2)(Silent(name="silent")(layers.Dense(3)(inputs))))
    found = sgdap.profile(model, latency=False)
    assert found.flops == 2 * 8 * 3 + 2 * 3 * 64 + 2 * 64 * 2
    (note,) = found.notes
    assert note.startswith("FLOPs of 'silent' (384) are taken to stay")


class Sorted(layers.Layer):
    """What TensorFlow can't see into."""

    def build(self, shape):
        self.scale = self.add_weight(shape=())

    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(np.sort, [x * self.scale], x.dtype), x.shape)


def test_what_cannot_be_counted_is_named_in_the_plan_and_in_a_warning():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(6)(Sorted(name="sorted")(inputs))))
    note = "FLOPs of 'sorted' are not counted: no count for PyFunc."
    x = np.ones((32, 8), "float32")
    with pytest.warns(UserWarning, match="leaves more than it says. FLOPs of 'sorted'"):
        plan = sgdap.plan(model, x, sgdap.Budget(flops=0.8))
    assert note in plan.notes
    assert note in str(plan)
    assert note in sgdap.plan(model, x, sgdap.Budget(params=0.8)).notes
