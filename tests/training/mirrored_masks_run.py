"""Runs with masks on one device and two, for `test_masking_devices.py`, in `tests/devices.py`."""

import tempfile

import keras
import numpy as np
from keras import layers

import sgdap
from tests.devices import on_both, strategies
from tests.training.mirrored_run import data

OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01, weight_decay=0.01),
    "averaged": lambda: keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


def network(strategy, optimizer: str) -> keras.Model:
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, "relu", name="one"),
                layers.Dense(3, "softmax", name="end"),
            ]
        )
        loss = "sparse_categorical_crossentropy"
        model.compile(OPTIMIZERS[optimizer](), loss, metrics=["accuracy"])
    return model


class InterruptionError(Exception):
    pass


class Look(keras.callbacks.Callback):
    """Counts, after each step and on each device, weights with a mask that are not zero."""

    def __init__(self, callback, strategy, interrupt_at=None):
        super().__init__()
        self.callback, self.strategy, self.interrupt_at = callback, strategy, interrupt_at
        self.wrong = 0

    def on_train_batch_end(self, batch, logs=None):
        for layer in self.model.layers:
            mask = self.callback.masks[f"{layer.name}/kernel"]
            for copy in self.strategy.experimental_local_results(layer.kernel.value):
                self.wrong += int(np.count_nonzero(copy.numpy()[~mask]))

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.interrupt_at:
            raise InterruptionError


def run(strategy, optimizer: str, guidance: str, folder=None, interrupt_at=None) -> dict:
    x, y = data()
    model = network(strategy, optimizer)
    callback = sgdap.SparsityCallback(
        0.6,
        guidance=guidance,
        schedule=sgdap.Linear(rounds=2),
        begin_epoch=0,
        backup_dir=folder,
        calibration_data=x,
        verbose=0,
    )
    look = Look(callback, strategy, interrupt_at)
    arguments = {"batch_size": 16, "epochs": 3, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[callback, look], **arguments)
    copies = [strategy.experimental_local_results(w.value) for w in model.trainable_weights]
    return {
        "wrong": look.wrong,
        "rounds": [r.epoch for r in callback.rounds],
        "masks": [mask.tolist() for mask in callback.masks.values()],
        "weights": [w.tolist() for w in model.get_weights()],
        "copies": [len(c) for c in copies],
        "alike": all(np.array_equal(c[0].numpy(), other.numpy()) for c in copies for other in c),
    }


def resumed(strategy) -> dict:
    """The run by gradients, broken off when its third epoch begins and taken up again."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(strategy, "adam", "gradient", folder, interrupt_at=2)
        except InterruptionError:
            return run(strategy, "adam", "gradient", folder)
    raise AssertionError


def found() -> dict:
    """What came out of the runs on one device and on two."""
    runs = [("gradient", "adam"), ("second_order", "adam")]
    runs += [("gradient", o) for o in OPTIMIZERS if o != "adam"]
    made: dict = on_both(
        lambda strategy: {f"{guidance} {o}": run(strategy, o, guidance) for guidance, o in runs}
    )
    made["resumed"] = resumed(strategies()["two"])
    return made
