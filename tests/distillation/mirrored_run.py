"""A teacher on one device and on two, for `test_devices.py`, in `tests/devices.py`."""

import keras
import numpy as np
from keras import layers

import sgdap
from tests.devices import on_both


def network(width: int) -> keras.Model:
    parts = [keras.Input((6,)), layers.Dense(width, "relu"), layers.Dense(3, "softmax")]
    return keras.Sequential(parts)


def run(strategy) -> dict:
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    y, w = x[:, :3].argmax(1), np.linspace(0, 2, 16)
    keras.utils.set_random_seed(1)
    teacher = network(20)
    with strategy.scope():
        model = network(5)
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    teaching = sgdap.DistillationCallback(teacher)
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, "shuffle": False}
    history = model.fit(x, y, sample_weight=w, callbacks=[teaching], **options)
    return {**history.history, "weights": [v.tolist() for v in model.get_weights()]}


def found() -> dict:
    """What came out on one device and on two."""
    return on_both(run)
