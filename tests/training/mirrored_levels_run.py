"""Runs on lattices, one device and two, for `test_quantizing_devices.py`, in `tests/devices.py`."""

import functools

import keras
import numpy as np

import sgdap
from tests.devices import on_both
from tests.training.mirrored_masks_run import network
from tests.training.mirrored_run import data


class Look(keras.callbacks.Callback):
    """Counts, after each step, the levels of each output on each device, and copies that differ."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.levels, self.apart = strategy, 0, 0

    def on_train_batch_end(self, batch, logs=None):
        for layer in self.model.layers:
            copies = self.strategy.experimental_local_results(layer.kernel.value)
            first = copies[0].numpy()
            self.apart += sum(int((copy.numpy() != first).sum()) for copy in copies)
            self.levels = max(self.levels, *(len(np.unique(column)) for column in first.T))


def run(strategy, optimizer: str) -> dict:
    x, y = data()
    model, look = network(strategy, optimizer), Look(strategy)
    learned = optimizer != "averaged"
    callback = sgdap.QuantizationCallback("ternary", "int8", learned_scales=learned, verbose=0)
    model.fit(x, y, epochs=2, batch_size=32, shuffle=False, verbose=0, callbacks=[callback, look])
    weights = [w.ravel().tolist() for w in model.get_weights()]
    return {
        "levels": look.levels,
        "apart": look.apart,
        "weights": sum(weights, []),
        "ranges": callback.ranges,
    }


def found() -> dict:
    return {
        optimizer: on_both(functools.partial(run, optimizer=optimizer))
        for optimizer in ("adam", "averaged", "scaled")
    }
