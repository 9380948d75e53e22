"""A run on one device and one on two, for `test_devices.py`, in `tests/devices.py`."""

import functools
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import sgdap
from tests.devices import on_both, strategies

SAMPLES = 48


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(SAMPLES, 6)).astype("float32")
    return x, x[:, :3].argmax(1)


class Kept(keras.callbacks.Callback):
    """Notes the sample of the training data that the callback keeps."""

    def __init__(self, callback):
        super().__init__()
        self.callback = callback

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            reservoir = self.callback._run.sampler.reservoir
            self.seen, self.sample = reservoir.seen, reservoir.sample()


def network(strategy, kind: type, *arguments, rate: float) -> keras.Model:
    """Two dense layers and a layer of some kind between them."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, "relu", name="one"),
                kind(*arguments, name="between"),
                layers.Dense(3, "softmax", name="end"),
            ]
        )
        loss = "sparse_categorical_crossentropy"
        model.compile(keras.optimizers.Adagrad(rate), loss, metrics=["accuracy"])
    return model


def replicas(strategy, model: keras.Model) -> dict:
    """What the devices hold of the variables that training changes."""
    variables = [*model.trainable_variables, *model.optimizer.variables]
    copies = [strategy.experimental_local_results(v.value) for v in variables]
    return {
        "kinds": sorted({type(v.value).__name__ for v in variables}),
        "alike": all(np.array_equal(c.numpy(), cs[0].numpy()) for cs in copies for c in cs),
        "copies": [len(cs) for cs in copies],
        "variables": [v.numpy().tolist() for v in variables],
    }


def run(strategy, calibrate: bool) -> dict:
    x, y = data()
    model = network(strategy, layers.Dense, 6, "relu", rate=0.1)
    statistics = sgdap.collect_statistics(sgdap.channel_graph(model), x)
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.5),
        schedule="one_shot",
        calibration_data=x if calibrate else None,
        samples=SAMPLES,
        jit_compile=None,
        verbose=0,
    )
    kept = Kept(callback)
    others = [] if calibrate else [kept]
    model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[callback, *others])
    return {
        **replicas(strategy, model),
        "widths": [layer.units for layer in model.layers],
        "weights": [w.tolist() for w in model.get_weights()],
        "iterations": int(model.optimizer.iterations.numpy()),
        "moments": [c.moments.second.tolist() for c in statistics.consumers.values()],
        "sensitivity": [c.sensitivity.tolist() for c in statistics.consumers.values()],
        "seen": None if calibrate else kept.seen,
        "sample": None if calibrate else np.sort(kept.sample, axis=0).tolist(),
    }


@functools.cache
def learnt() -> list[np.ndarray]:
    """The weights of a network that was trained on one device."""
    model = network(tf.distribute.get_strategy(), layers.BatchNormalization, rate=0.5)
    model.fit(*data(), batch_size=SAMPLES, epochs=10, verbose=0)
    return model.get_weights()


def guarded(strategy, folder: Path | None = None, third: Callable | None = None) -> dict:
    """A run whose first round is undone; no training makes up for it.

    Args:
        strategy: Where it runs.
        folder: Of its backup.
        third: What is called when the third epoch begins.
    """
    x, y = data()
    weights, model = learnt(), network(strategy, layers.BatchNormalization, rate=0.0)
    model.set_weights(weights)
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.2),
        "random",
        schedule="one_shot",
        max_accuracy_drop=0.01,
        patience=1,
        reconstruction=False,
        backup_dir=folder,
        jit_compile=None,
        verbose=0,
    )

    def begin(epoch, logs):
        if third is not None and epoch == 2:
            third()

    arguments = {"batch_size": SAMPLES, "epochs": 3, "verbose": 0, "validation_data": (x, y)}
    others = [keras.callbacks.LambdaCallback(on_epoch_begin=begin)]
    history = model.fit(x, y, callbacks=[callback, *others], **arguments)
    return {
        **replicas(strategy, model),
        "epochs": history.epoch,
        "decisions": [r.decision for r in callback.rounds],
        "widths": [dict(r.widths) for r in callback.rounds],
    }


def whole_and_resumed(strategy) -> dict:
    """That run, and one from the backup that it had when its third epoch began."""
    with tempfile.TemporaryDirectory() as folder:
        last, kept = Path(folder) / "last", Path(folder) / "kept"
        whole = guarded(strategy, last, lambda: shutil.copytree(last, kept))
        return {"guarded": whole, "resumed": guarded(strategy, kept)}


def copies(strategy) -> list[dict]:
    """What copies hold that are made, and trained, outside of the strategy's scope."""
    x, y = data()
    model = network(strategy, layers.Dense, 6, "relu", rate=0.1)
    slim = sgdap.apply(model, sgdap.plan(model, x, sgdap.Budget(flops=0.5)))
    grown = sgdap.layers.to_dra(model)
    found = []
    for copy in (slim, grown, sgdap.fold(grown)):
        copy.fit(x, y, batch_size=16, verbose=0)
        found.append(replicas(strategy, copy))
    return found


def found() -> dict:
    """What came out of the runs on one device and on two."""
    warnings.filterwarnings("ignore", message="SGDAPCallback stopped short")
    # Both are compiled here: statistics are compared to the last digits.
    data = {name: run(strategy, True) for name, strategy in strategies().items()}
    made = on_both(
        lambda strategy: {"reservoir": run(strategy, False), **whole_and_resumed(strategy)}
    )
    for name, others in made.items():
        others["data"] = data[name]
    made["two"]["copies"] = copies(strategies()["two"])
    return made
