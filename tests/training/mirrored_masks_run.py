"""Runs with masks on one device and two, for `test_masking_devices.py`, in `tests/devices.py`."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

import sgdap
from tests.devices import on_both
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


class Look(keras.callbacks.Callback):
    """Counts, after each step and on each device, weights with a mask that are not zero."""

    def __init__(self, callback, strategy, third):
        super().__init__()
        self.callback, self.strategy, self.third = callback, strategy, third
        self.wrong = 0

    def on_train_batch_end(self, batch, logs=None):
        for layer in self.model.layers:
            mask = self.callback.masks[f"{layer.name}/kernel"]
            for copy in self.strategy.experimental_local_results(layer.kernel.value):
                self.wrong += int(np.count_nonzero(copy.numpy()[~mask]))

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.third()


def run(
    strategy,
    optimizer: str,
    guidance: str,
    folder: Path | None = None,
    third: Callable = lambda: None,
) -> dict:
    """A run with masks; `third` is called when its third epoch begins."""
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
    look = Look(callback, strategy, third)
    arguments = {"batch_size": 16, "epochs": 3, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, callbacks=[callback, look], **arguments)
    copies = [strategy.experimental_local_results(w.value) for w in model.trainable_weights]
    return {
        "wrong": look.wrong,
        "epochs": history.epoch,
        "rounds": [r.epoch for r in callback.rounds],
        "masks": [mask.tolist() for mask in callback.masks.values()],
        "weights": [w.tolist() for w in model.get_weights()],
        "copies": [len(c) for c in copies],
        "alike": all(np.array_equal(c[0].numpy(), other.numpy()) for c in copies for other in c),
    }


def whole_and_resumed(strategy) -> dict:
    """The run by gradients, and one from the backup that it had when its third epoch began."""
    with tempfile.TemporaryDirectory() as folder:
        last, kept = Path(folder) / "last", Path(folder) / "kept"
        whole = run(strategy, "adam", "gradient", last, lambda: shutil.copytree(last, kept))
        return {"gradient adam": whole, "resumed": run(strategy, "adam", "gradient", kept)}


def found() -> dict:
    """What came out of the runs on one device and on two."""
    runs = [("second_order", "adam"), ("gradient", "averaged"), ("gradient", "scaled")]
    return on_both(
        lambda strategy: (
            {f"{guidance} {o}": run(strategy, o, guidance) for guidance, o in runs}
            | whole_and_resumed(strategy)
        )
    )
