"""`check_rule` believes right rules and tells in words what is wrong with others."""

import random

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.testing import check_rule


class Gated(layers.Layer):
    """A dense layer with a gate for each unit; its rule is given by each test."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        size = (shape[-1], self.units)
        self.values = self.add_weight(shape=size, name="values")
        self.gates = self.add_weight(shape=size, name="gates")
        self.offset = self.add_weight(shape=(self.units,), name="offset")

    def call(self, x):
        return (x @ self.values) * keras.ops.sigmoid(x @ self.gates) + self.offset

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def gated(layer, call):
    features, units = call.along(call.input, -1), call.new_channels(layer.units)
    call.weight(layer.values, features, units)
    call.weight(layer.gates, features, units)
    call.weight(layer.offset, units)
    call.resize("units", units)
    return call.input.with_axis(-1, units)


def turned_kernel(layer, call):
    features, units = call.along(call.input, -1), call.new_channels(layer.units)
    call.weight(layer.values, features, units)
    call.weight(layer.gates, units, features)
    call.weight(layer.offset, units)
    call.resize("units", units)
    return call.input.with_axis(-1, units)


def forgotten_weight(layer, call):
    features, units = call.along(call.input, -1), call.new_channels(layer.units)
    call.weight(layer.values, features, units)
    call.weight(layer.gates, features, units)
    call.resize("units", units)
    return call.input.with_axis(-1, units)


def forgotten_entry(layer, call):
    features, units = call.along(call.input, -1), call.new_channels(layer.units)
    call.weight(layer.values, features, units)
    call.weight(layer.gates, features, units)
    call.weight(layer.offset, units)
    return call.input.with_axis(-1, units)


def other_outputs(layer, call):
    gated(layer, call)
    return call.input.with_axis(-1, call.new_channels(layer.units)[::-1].copy())


def stops(layer, call):
    return layer.nothing


def check(rule, layer, *shape, **arguments):
    sgdap.register_rule(type(layer))(rule)
    check_rule(layer, *shape, **arguments)


def test_a_right_rule_is_believed():
    check(gated, Gated(6), (6,))
    check(gated, Gated(4), (3, 5))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (turned_kernel, r"its 'gates' is of shape \(3, 6\) then, and by its rule \(6, 3\) stays"),
        (forgotten_weight, r"its 'offset' is of shape \(3,\) then, and by its rule \(6,\) stays"),
        (forgotten_entry, "can't be rebuilt for fewer channels"),
        (other_outputs, "or its output has other channels than the rule returns"),
        (stops, "stopped at .* with AttributeError"),
    ],
)
def test_what_is_wrong_with_a_rule_is_told_with_the_weight(rule, words):
    with pytest.raises(AssertionError, match=words):
        check(rule, Gated(6, name="own"), (6,))


class Centred(layers.Layer):
    def build(self, shape):
        self.factors = self.add_weight(shape=(shape[-1],), name="factors")

    def call(self, x):
        return (x - keras.ops.mean(x, axis=-1, keepdims=True)) * self.factors


def follows(layer, call):
    call.weight(layer.factors, call.input.axes[-1])
    return call.input


class Reversed(Centred):
    def call(self, x):
        return x * self.factors[::-1]


class Sums(Centred):
    def call(self, x):
        return x + keras.ops.sum(self.factors)


@pytest.mark.parametrize("layer", [Reversed(), Sums()])
def test_a_weight_that_lies_along_other_channels_is_named(layer):
    with pytest.raises(
        AssertionError, match=r"'factors' of shape \(6,\) along axis 0 is still need"
    ):
        check(follows, layer, (6,))


def keeps(layer, call):
    call.keep_along(call.input, -1, "they are mixed")
    return call.input


def test_a_layer_that_mixes_channels_is_found_and_a_rule_that_keeps_them_holds():
    with pytest.raises(AssertionError, match="the layer mixes channels that its rule takes to be"):
        check(follows, Centred(), (6,))
    check(keeps, Centred(), (6,))


class Hidden(layers.Layer):
    """Two products, and channels between them that nothing outside sees."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.down = self.add_weight(shape=(shape[-1], self.width), name="down")
        self.up = self.add_weight(shape=(self.width, shape[-1]), name="up")

    def call(self, x):
        return x + keras.ops.sigmoid(x @ self.down) @ self.up

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def hidden(layer, call):
    outside, inside = call.along(call.input, -1), call.new_channels(layer.width)
    call.weight(layer.down, outside, inside)
    call.weight(layer.up, inside, outside)
    call.resize("width", inside)
    return call.input


def other_inside(layer, call):
    outside = call.along(call.input, -1)
    inside, more = (call.new_channels(layer.width, name) for name in ("one", "two"))
    call.weight(layer.down, outside, inside)
    call.weight(layer.up, more, outside)
    call.resize("width", inside)
    return call.input


def test_channels_inside_a_layer_are_removed_too():
    check(hidden, Hidden(6), (4,))
    with pytest.raises(AssertionError, match="rule"):
        check(other_inside, Hidden(6), (4,))


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (layers.Dense(5, "relu"), (7,), -1),
        (layers.Conv2D(6, 3, groups=2), (8, 8, 4), -1),
        (layers.DepthwiseConv2D(3), (8, 8, 4), -1),
        (layers.BatchNormalization(), (5, 6), -1),
        (layers.BatchNormalization(axis=1), (6, 5), 1),
        (layers.GroupNormalization(2), (5, 6), -1),
        (layers.LayerNormalization(), (5, 6), -1),
        (layers.LSTM(5), (4, 3), -1),
        (layers.Flatten(), (4, 3), -1),
        (layers.Add(), [(4, 3), (4, 3)], -1),
        (layers.Concatenate(), [(4, 3), (4, 2)], -1),
    ],
)
def test_rules_of_the_package_hold(layer, shape, axis):
    check_rule(layer, shape, axis=axis)


def test_a_check_leaves_no_trace():
    layer = layers.Dense(5, name="own")
    layer.build((None, 7))
    before = layer.get_weights()
    name, state = layers.Dense(1).name, random.getstate()
    check_rule(layer, (7,))
    assert all(map(np.array_equal, before, layer.get_weights()))
    assert random.getstate() == state
    assert int(layers.Dense(1).name.rpartition("_")[2]) == int(name.rpartition("_")[2] or 0) + 1


class WithoutRule(Centred):
    def call(self, x):
        return x * self.factors


def test_a_layer_without_a_rule_is_named():
    with pytest.raises(AssertionError, match="No rule is registered for WithoutRule"):
        check_rule(WithoutRule(), (6,))


class ForgetsItsConfig(Gated):
    def get_config(self):
        raise NotImplementedError("no config")

    def __init__(self, units, extra, **kwargs):
        super().__init__(units, **kwargs)


def test_a_layer_that_can_not_be_made_again_is_named():
    with pytest.raises(AssertionError, match="can't be made again from its config"):
        check(gated, ForgetsItsConfig(4, 1), (6,))


@pytest.mark.parametrize(
    ("layer", "shape", "kind"),
    [
        ("Dense", (4,), TypeError),
        (layers.Dense(3), 4, TypeError),
        (layers.Dense(3), (None,), ValueError),
        (layers.Dense(3), (0,), ValueError),
    ],
)
def test_what_is_no_layer_or_no_shape_is_refused(layer, shape, kind):
    with pytest.raises(kind, match="Received"):
        check_rule(layer, shape)
