"""Models that files hold only after some work, or not at all."""

import keras
import numpy as np
from keras import layers


class Own(keras.Model):
    """A model with a `call` of its own."""

    def __init__(self):
        super().__init__()
        self.end = layers.Dense(2)

    def call(self, x):
        return self.end(x)


class Forgetful(layers.Dense):
    """A layer that Keras can't make again from its config."""

    def get_config(self):
        config = super().get_config()
        del config["units"]
        return config


def own_model() -> keras.Model:
    model = Own()
    model(np.zeros((1, 4)))
    return model


def forgetful_model() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), Forgetful(2)])
