"""A run on one device and one on two, for `test_devices.py`; prints what came out as JSON."""

import json

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import sgdap

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
            reservoir = self.callback._tap.reservoir
            self.seen, self.sample = reservoir.seen, reservoir.sample()


def run(strategy, calibrate: bool) -> dict:
    x, y = data()
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, "relu", name="one"),
                layers.Dense(6, "relu", name="two"),
                layers.Dense(3, "softmax", name="three"),
            ]
        )
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
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
    variables = [*model.trainable_variables, *model.optimizer.variables]
    copies = [strategy.experimental_local_results(v.value) for v in variables]
    return {
        "kinds": sorted({type(v.value).__name__ for v in variables}),
        "alike": all(np.array_equal(c.numpy(), cs[0].numpy()) for cs in copies for c in cs),
        "copies": [len(cs) for cs in copies],
        "widths": [layer.units for layer in model.layers],
        "weights": [w.tolist() for w in model.get_weights()],
        "iterations": int(model.optimizer.iterations.numpy()),
        "moments": [c.moments.second.tolist() for c in statistics.consumers.values()],
        "sensitivity": [c.sensitivity.tolist() for c in statistics.consumers.values()],
        "seen": None if calibrate else kept.seen,
        "sample": None if calibrate else np.sort(kept.sample, axis=0).tolist(),
    }


def main() -> None:
    (device,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(device, two)
    strategies = {
        "one": tf.distribute.get_strategy(),
        "two": tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]),
    }
    print(
        json.dumps(
            {
                name: {"data": run(strategy, True), "reservoir": run(strategy, False)}
                for name, strategy in strategies.items()
            }
        )
    )


if __name__ == "__main__":
    main()
