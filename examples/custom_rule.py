"""Teaches sgdap a layer it does not know: what goes in, which weights lie along which channels.

Run it: python examples/custom_rule.py
"""

import keras
import numpy as np

import sgdap


@keras.saving.register_keras_serializable(package="examples")
class ChannelScale(keras.layers.Layer):
    """Multiplies each channel with a factor of its own."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        return x * self.scale


def make_model():
    return keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(32, activation="relu", name="hidden"),
            ChannelScale(name="scale"),
            keras.layers.Dense(4, name="out"),
        ]
    )


model = make_model()
try:
    sgdap.plan(model, np.random.rand(100, 16), sgdap.Budget(params=0.5))
except ValueError as error:
    print(f"Without a rule: {error}\n")


@sgdap.register_rule(ChannelScale)
def channel_scale(layer, call):
    channels = call.input.along(-1)
    call.weight(layer.scale, channels)  # the only axis of `scale` follows the input's channels
    return call.input  # the output has the same channels


plan = sgdap.plan(model, np.random.rand(100, 16), sgdap.Budget(params=0.5))
print(plan)
slim = sgdap.apply(model, plan)
print("scale before and after:", model.layers[1].scale.shape, slim.layers[1].scale.shape)
