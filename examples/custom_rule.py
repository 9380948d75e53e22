"""Registers channel rules for two custom layers: which weights lie along which channels.

Run it: python examples/custom_rule.py
"""

import keras
import numpy as np

import sgdap


@keras.saving.register_keras_serializable(package="examples")
class ChannelScale(keras.layers.Layer):
    """Multiplies each channel by a factor of its own."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        return x * self.scale


@keras.saving.register_keras_serializable(package="examples")
class GatedDense(keras.layers.Layer):
    """A dense layer in which each unit has its own gate."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        shape = (input_shape[-1], self.units)
        self.values = self.add_weight(shape=shape, name="values")
        self.gates = self.add_weight(shape=shape, name="gates")

    def call(self, x):
        return (x @ self.values) * keras.ops.sigmoid(x @ self.gates)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


model = keras.Sequential(
    [
        keras.Input((16,)),
        keras.layers.Dense(32, activation="relu", name="hidden"),
        ChannelScale(name="scale"),
        GatedDense(24, name="gated"),
        keras.layers.Dense(4, name="out"),
    ]
)
x = np.random.default_rng(0).normal(size=(100, 16)).astype("float32")
try:
    sgdap.plan(model, x, sgdap.Budget(params=0.5))
except ValueError as error:
    print(f"Without rules: {error}\n")


@sgdap.register_rule(ChannelScale)
def channel_scale(layer, call):
    """Passes channels on: the output has the input's channels, and the weights follow them."""
    channels = call.input.along(-1)
    call.weight(layer.scale, channels)  # the only axis of `scale` follows the input's channels
    return call.input  # the output has the same channels


@sgdap.register_rule(GatedDense)
def gated_dense(layer, call):
    """Makes channels: the layer reads the input's channels and makes units of its own."""
    features = call.along(call.input, -1)
    units = call.new_channels(layer.units)
    call.weight(layer.values, features, units)  # rows follow the input, columns are the units
    call.weight(layer.gates, features, units)
    call.resize("units", units)  # the config entry that counts the units
    call.work(2 * 2, features, units)  # FLOPs per sample: two products, multiply-add = 2
    return call.input.with_axis(-1, units)


# Removes channels by the rules, and compares with the layers as they are, these channels zeroed.
sgdap.testing.check_rule(ChannelScale(), (16,))
sgdap.testing.check_rule(GatedDense(24), (16,))

print(sgdap.inspect(model), "\n")
plan = sgdap.plan(model, x, sgdap.Budget(params=0.5))
print(plan)
slim = sgdap.apply(model, plan)
for name in ("scale", "gated"):
    before, after = model.get_layer(name), slim.get_layer(name)
    shapes = [
        (tuple(a.shape), tuple(b.shape)) for a, b in zip(before.weights, after.weights, strict=True)
    ]
    print(f"{name}, shapes of weights before and after:", shapes)
