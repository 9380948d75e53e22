"""What no rule counts is counted from its graph, or named."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.planning.work import work_by_layer


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


def test_code_of_tensorflow_in_a_layer_without_weights_counts():
    kernel = tf.ones((4, 5))
    inputs = keras.Input((7, 3))
    x = layers.Lambda(lambda x: tf.matmul(x, kernel), name="own")(layers.Dense(4)(inputs))
    graph = sgdap.channel_graph(keras.Model(inputs, layers.Dense(2)(x)))
    assert work_by_layer(graph)["own"] == 7 * 2 * 4 * 5


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
