"""Profiles: parameters as Keras counts them, FLOPs as TensorFlow's profiler counts them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from tests.models import convnet

pytestmark = pytest.mark.compiled

MODELS = {
    "dense": ((7,), [layers.Dense(5), layers.Dense(3)]),
    "dense_on_a_sequence": ((4, 7), [layers.Dense(5)]),
    "convolution_1d": ((9, 3), [layers.Conv1D(4, 3, strides=2)]),
    "convolution_2d": ((9, 8, 3), [layers.Conv2D(4, (3, 2), padding="same")]),
    "convolution_3d": ((5, 6, 7, 2), [layers.Conv3D(3, 2)]),
    "depthwise_2d": ((8, 8, 3), [layers.DepthwiseConv2D(3, depth_multiplier=2)]),
    "separable_2d": ((8, 8, 3), [layers.SeparableConv2D(5, 3)]),
    "lenet": (
        (28, 28, 1),
        [layers.Conv2D(6, 5), layers.MaxPooling2D(), layers.Flatten(), layers.Dense(10)],
    ),
}


def profiled_flops(model):
    """What TensorFlow's own profiler counts for one sample, in matrix products and convolutions."""
    function = tf.function(model).get_concrete_function(
        tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
    )
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2_as_graph,
    )

    _, graph_def = convert_variables_to_constants_v2_as_graph(function)
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
        builder = tf.compat.v1.profiler.ProfileOptionBuilder
        options = builder(builder.float_operation()).with_empty_output().build()
        found = tf.compat.v1.profiler.profile(graph, cmd="op", options=options)
    operations = {"Conv2D", "Conv3D", "MatMul", "DepthwiseConv2dNative"}
    return sum(node.float_ops for node in _all_nodes(found) if node.name in operations)


def _all_nodes(node):
    yield node
    for child in node.children:
        yield from _all_nodes(child)


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_tensorflows_profiler(name):
    shape, body = MODELS[name]
    model = keras.Sequential(
        [keras.Input(shape), *[type(x).from_config(x.get_config()) for x in body]]
    )
    assert sgdap.profile(model, latency=False).flops == profiled_flops(model)


def test_parameters_are_those_that_keras_counts_layer_by_layer():
    model = convnet()
    found = sgdap.profile(model, latency=False)
    assert found.params == model.count_params()
    counted = {layer.name: layer.count_params() for layer in model.layers if layer.weights}
    assert {layer.name: layer.params for layer in found.layers} == counted


def test_profile_prints_every_layer_and_the_sums():
    text = str(sgdap.profile(convnet(), batch_size=4, repeats=3))
    assert "conv_1 (Conv2D)" in text
    assert "parameters" in text
    assert "ms for a batch of 4" in text


class Unknown(layers.Layer):
    """A layer without a rule, which may hide its work from TensorFlow."""

    def __init__(self, hidden):
        super().__init__(name="unknown")
        self.hidden = hidden

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5))

    def call(self, x):
        y = keras.ops.matmul(x, self.kernel)
        if self.hidden:
            y = tf.ensure_shape(tf.numpy_function(lambda a: a, [y], y.dtype), y.shape)
        return y


def unknown_network(hidden):
    return keras.Sequential([keras.Input((4,)), Unknown(hidden), layers.Dense(3)])


def test_layers_without_a_rule_are_counted_from_their_graph():
    found = sgdap.profile(unknown_network(False), latency=False)
    assert [layer.flops for layer in found.layers] == [2 * 4 * 5, 2 * 5 * 3]
    assert not found.notes


def test_what_cannot_be_counted_is_named():
    found = sgdap.profile(unknown_network(True), latency=False)
    assert found.notes == ("FLOPs of 'unknown' are not counted in full: no count for PyFunc.",)
    assert found.notes[0] in str(found)


def test_a_layer_of_which_nothing_can_be_counted_has_no_number():
    inputs = keras.Input((4, 4))
    model = keras.Model(inputs, layers.Dense(2)(keras.ops.svd(inputs)[1]))
    found = sgdap.profile(model, latency=False)
    assert [layer.flops for layer in found.layers] == [None, 2 * 4 * 2]
    assert "not counted" in str(found)


def test_sizes_left_open_are_those_of_the_data_and_refused_without():
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match=r"sgdap.profile\(model, data\).*fixed keras.Input shape"):
        sgdap.profile(model)
    found = sgdap.profile(model, np.zeros((2, 6, 7, 3)), repeats=1)
    assert found.flops == 2 * 4 * 5 * 27 * 2
    assert found.layers[0].output_shape == (None, 4, 5, 2)
    assert found.latency > 0
    assert "FLOPs are those of inputs of shape (None, 6, 7, 3)" in str(found)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 1.5}, {"repeats": 0}])
def test_what_cannot_be_timed_is_refused(wrong):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1.*{value}"):
        sgdap.profile(model, **wrong)


def test_parameters_that_are_not_zero_are_counted():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="end")])
    model.layers[0].kernel.assign(np.eye(4, 3))
    found = sgdap.profile(model, latency=False)
    assert (found.params, found.nonzero) == (15, 3)
    assert [layer.nonzero for layer in found.layers] == [3]
    assert "15 parameters, 3 of them not zero" in str(found)
