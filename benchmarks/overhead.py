"""Measures the time that callbacks add to an epoch, and the time of surgery on ResNet-50.

Runs of LeNet-5-Caffe with and without a callback take turns. SGDAPCallback has no round in the
timed epochs; SparsityCallback holds masks in them, with 90 % of the weights zero. It prints the
ratio of the least epoch times (other work can only add time), the ratio of the medians, and the
same for processor times. With calibration data, SGDAPCallback only watches; without, the train step
also gathers a sample of the training data.
Run it on a quiet machine: python benchmarks/overhead.py
"""

import argparse
import time
import warnings

import keras
import numpy as np

import sgdap
from sgdap.demo import lenet5


def compiled():
    keras.utils.set_random_seed(0)
    model = lenet5("caffe")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def now():
    return np.array([time.perf_counter(), time.process_time()])


class Clock:
    """Times epochs, all other callbacks included, in seconds and processor seconds.

    The first epoch is not counted, as it compiles. After `epochs` more the run is stopped.
    """

    def __init__(self, model, epochs):
        self.model = model
        self.epochs = epochs
        self.seconds = []
        self.first = keras.callbacks.LambdaCallback(on_epoch_begin=self.begin)
        self.last = keras.callbacks.LambdaCallback(on_epoch_end=self.end)

    def begin(self, epoch, logs):
        self.began = now()

    def end(self, epoch, logs):
        if epoch:
            self.seconds.append(now() - self.began)
        self.model.stop_training = epoch == self.epochs


def pruner(epochs, **arguments):
    """Only watches: its round comes after the last timed epoch."""
    return sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.9),
        max_accuracy_drop=0.05,
        schedule="one_shot",
        begin_epoch=epochs + 1,
        verbose=0,
        **arguments,
    )


def masks(epochs, **arguments):
    """Sets 90 % of the weights to zero before the second epoch, the first that is timed."""
    return sgdap.SparsityCallback(
        0.9, schedule="one_shot", begin_epoch=0, final_finetune_epochs=0, verbose=0, **arguments
    )


def runs_in_turns(x, y, turns, epochs, callback):
    """The ratios of the least and of the median epoch times."""
    models = [compiled(), compiled()]
    times = np.empty((turns, 2, epochs, 2))
    for turn in range(turns):
        for place in (0, 1):
            which = (turn + place) % 2  # so that each is first half of the time
            clock = Clock(models[which], epochs)
            own = [callback(epochs)] if which else []
            callbacks = [clock.first, *own, clock.last]
            models[which].fit(
                x, y, batch_size=128, epochs=epochs + 3, verbose=0, callbacks=callbacks
            )
            times[turn, which] = clock.seconds
    times = times.swapaxes(0, 1).reshape(2, -1, 2)
    least, least_cpu = times[1].min(0) / times[0].min(0)
    median, median_cpu = np.median(times[1], 0) / np.median(times[0], 0)
    return (
        f"{least:.3f} ({median:.3f} of the medians), processor time {least_cpu:.3f} "
        f"({median_cpu:.3f})"
    )


def surgery_on_resnet50():
    """Seconds to remove half of its FLOPs; small images will do, as their size doesn't matter."""
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3))
    model.compile("adam", "sparse_categorical_crossentropy")
    x = np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype("float32")
    model.train_on_batch(x, np.arange(8))
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.5), guidance="random", reconstruction=False)
    began = time.perf_counter()
    sgdap.apply(model, plan, in_place=True)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=4, help="runs of each kind")
    parser.add_argument("--epochs", type=int, default=4, help="timed epochs of a run")
    parser.add_argument("--images", type=int, default=8000, help="in an epoch")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="SGDAPCallback stopped short")
    (x, y), _ = sgdap.datasets.load_mnist()
    x = x[: options.images, ..., None].astype("float32") / 255
    y = y[: options.images]
    callbacks = {
        "an epoch with SGDAPCallback, over one without": lambda n: pruner(
            n, calibration_data=x[:999]
        ),
        "the same while training data are gathered": pruner,
        "an epoch with masks, over one without": lambda n: masks(n, guidance="magnitude"),
        "the same while gradients are watched": lambda n: masks(n, guidance="gradient"),
    }
    for words, callback in callbacks.items():
        print(
            f"{words}: {runs_in_turns(x, y, options.turns, options.epochs, callback)}", flush=True
        )
    print(f"surgery on ResNet-50, Adam's slots included:  {surgery_on_resnet50():.1f} s")


if __name__ == "__main__":
    main()
