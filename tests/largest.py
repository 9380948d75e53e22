"""A small network that is to tell which of the first four inputs is the largest."""

import keras
import numpy as np
from keras import layers

X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
Y = X[:, :4].argmax(1)


def network(optimizer=None, *, second=8, **arguments) -> keras.Model:
    """The network, compiled; `second` is the width of its second layer."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, "relu", name="one"),
            layers.Dense(second, "relu", name="two"),
            layers.Dense(4, "softmax", name="end"),
        ]
    )
    arguments = {"metrics": ["accuracy"], "jit_compile": False} | arguments
    model.compile(
        optimizer or keras.optimizers.Adagrad(0.1), "sparse_categorical_crossentropy", **arguments
    )
    return model
