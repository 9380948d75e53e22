"""Which channels may be scaled, and what is multiplied in return."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.layers.scaling import scalable_channels


def found(model: keras.Model) -> list[set[tuple[str, str, int, int]]]:
    """For each set of channels the layers, variables, axes and powers."""
    graph = sgdap.channel_graph(model)
    layers_ = graph.program.layers()
    return [
        {(a.path, layers_[a.path].weights[a.variable].name, a.axis, a.power) for a in own.axes}
        for own in scalable_channels(graph)
    ]


def chain(*between, first="relu") -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(4, first, name="first"),
            *between,
            layers.Dense(3, name="second"),
        ]
    )


BOTH = {("first", "kernel", 1, 1), ("first", "bias", 0, 1), ("second", "kernel", 0, -1)}


def test_kernel_and_bias_are_multiplied_and_the_reader_divided():
    assert found(chain()) == [BOTH]


def test_slopes_of_prelu_stay():
    assert found(chain(layers.PReLU(alpha_initializer="normal"))) == [BOTH]


@pytest.mark.parametrize("activation", ["relu6", "tanh", "softmax"])
def test_the_activation_of_the_layer_itself_counts(activation):
    assert found(chain(first=activation)) == []


def test_both_sides_of_a_normalisation_have_scales_of_their_own():
    before, after = found(chain(layers.BatchNormalization(name="norm")))
    assert before == {
        ("first", "kernel", 1, 1),
        ("first", "bias", 0, 1),
        ("norm", "gamma", 0, -1),
        ("norm", "moving_mean", 0, 1),
    }
    assert after == {
        ("norm", "gamma", 0, 1),
        ("norm", "beta", 0, 1),
        ("second", "kernel", 0, -1),
    }


def test_values_inside_attention_are_scaled_between_its_kernels():
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layers.MultiHeadAttention(2, 3, name="mha")(inputs, inputs))
    numbers = [
        {(a.variable, a.axis): a.power for a in own.axes}
        for own in scalable_channels(sgdap.channel_graph(model))
    ]
    keys, values = numbers
    assert keys == {(0, 2): 1, (1, 1): 1, (2, 2): -1}  # the bias of keys moves no softmax
    assert values == {(4, 2): 1, (5, 1): 1, (6, 1): -1}


def test_a_recurrent_layer_of_relu_is_scaled_in_itself_too():
    model = keras.Sequential(
        [
            keras.Input((5, 6)),
            layers.SimpleRNN(4, activation="relu", name="rnn"),
            layers.Dense(3, name="end"),
        ]
    )
    assert found(model) == [
        {
            ("rnn", "kernel", 1, 1),
            ("rnn", "recurrent_kernel", 0, -1),
            ("rnn", "recurrent_kernel", 1, 1),
            ("rnn", "bias", 0, 1),
            ("end", "kernel", 0, -1),
        }
    ]


def test_a_sum_ties_what_it_adds_and_an_output_keeps_all():
    inputs = keras.Input((6,))
    first = layers.Dense(4, "relu", name="first")(inputs)
    second = layers.Dense(4, "relu", name="second")(first)
    read = layers.Dense(3, name="read")(layers.Add()([first, second]))
    (own,) = found(keras.Model(inputs, read))
    assert ("first", "kernel", 1, 1) in own and ("read", "kernel", 0, -1) in own
    assert {("second", "kernel", 0, -1), ("second", "kernel", 1, 1)} <= own
    assert found(keras.Model(inputs, [read, first])) == []


def test_each_channel_has_its_number():
    graph = sgdap.channel_graph(chain(layers.Reshape((2, 2)), layers.Flatten()))
    (own,) = scalable_channels(graph)
    for axis in own.axes:
        assert np.isin(axis.channels, np.arange(len(own.channels))).all()


def test_a_weight_that_two_layers_share_stays():
    dense = layers.Dense(4, "relu", name="first")
    one, many = keras.Input((6,)), keras.Input((5, 6))
    made = layers.GlobalAveragePooling1D()(layers.TimeDistributed(dense, name="each")(many))
    both = layers.Add()([dense(one), made])
    assert found(keras.Model([one, many], layers.Dense(3)(both))) == []
