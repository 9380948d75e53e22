"""Small models with units of every kind."""

import keras
import numpy as np
from keras import layers


def chain() -> keras.Model:
    """Dense layers one after another; `wide` and `same` are read by kernels alone."""
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(8, "relu", name="wide"),
            layers.Dense(6, "tanh", name="narrow"),
            layers.Dense(6, "relu", name="same"),
            layers.Dense(3, name="end"),
        ]
    )


def residual() -> keras.Model:
    """Convolutions with a plain and a projected shortcut, and batch normalisation."""
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    y = layers.Conv2D(5, 3, padding="same", use_bias=False, name="a1")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="a1_norm")(y))
    y = layers.Conv2D(4, 3, padding="same", name="a2")(y)
    x = layers.ReLU(name="sum")(layers.Add()([x, y]))
    y = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="b1")(x)
    y = layers.Conv2D(6, 3, padding="same", name="b2")(y)
    x = layers.Conv2D(6, 1, strides=2, name="projection")(x) + y
    x = layers.GlobalAveragePooling2D()(x)
    return randomised(keras.Model(inputs, layers.Dense(3, name="end")(x)))


def transformer() -> keras.Model:
    """Two blocks of attention and dense layers."""
    x = inputs = keras.Input((4, 6))
    for block in range(2):
        y = layers.LayerNormalization(name=f"norm{block}")(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 3, name=f"attention{block}")(y, y)])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(8, "gelu", name=f"up{block}")(y)
        x = x + layers.Dense(6, name=f"down{block}")(y)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return randomised(keras.Model(inputs, layers.Dense(3, name="end")(x)))


def recurrent() -> keras.Model:
    """Recurrent layers stacked on one another."""
    return keras.Sequential(
        [
            keras.Input((4, 3)),
            layers.LSTM(5, return_sequences=True, name="first"),
            layers.GRU(5, return_sequences=True, name="second"),
            layers.LSTM(4, name="third"),
            layers.Dense(3, name="end"),
        ]
    )


ALL = (chain, residual, transformer, recurrent)


def randomised(model: keras.Model) -> keras.Model:
    """Gives all weights random values, moving variances positive ones."""
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if "float" in variable.dtype and "seed" not in variable.path:
            value = rng.normal(0, 0.4, variable.shape)
            variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)
    return model


def samples(model: keras.Model, count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *model.input_shape[1:])).astype("float32")
