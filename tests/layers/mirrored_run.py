"""Ranges that grow on one device and on two, for `test_dynamic_range.py`, in `tests/devices.py`."""

import keras
import numpy as np

from sgdap.layers import DynamicRangeActivation
from tests.devices import on_both


def samples_to_grow_on() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(16, 4)), random.normal(size=(16, 4))


def run(strategy, growth: str) -> dict:
    """What a layer's growth rate and offset are after one step."""
    with strategy.scope():
        layer = DynamicRangeActivation("sigmoid", growth, momentum=0.5)
        model = keras.Sequential([keras.Input((4,)), layer])
        model.compile(keras.optimizers.SGD(0.5), "mse")
        model.fit(*samples_to_grow_on(), batch_size=16, shuffle=False, verbose=0)
    return {name: getattr(layer, name).numpy().tolist() for name in ("growth_rate", "offset")}


def found() -> dict:
    """What came out on one device and on two."""
    growths = ("trainable", "statistics")
    return on_both(lambda strategy: {growth: run(strategy, growth) for growth in growths})
