"""What SGDAPCallback adds to an epoch between rounds, and the time of surgery on ResNet-50.

Epochs of LeNet-5-Caffe with the callback and without it take turns in one run; the median ratio of
their times is shown, and that of their processor times, which other work disturbs less. With
calibration data given, the callback only watches; without, the train step also gathers a sample of
the training data.
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
    """Times epochs from before the first callback to after the last: seconds, processor seconds."""

    def __init__(self):
        self.seconds = []
        self.first = keras.callbacks.LambdaCallback(on_epoch_begin=self.begin)
        self.last = keras.callbacks.LambdaCallback(on_epoch_end=self.end)

    def begin(self, epoch, logs):
        self.began = now()

    def end(self, epoch, logs):
        self.seconds.append(now() - self.began)


def epochs_in_turns(x, y, epochs, **arguments):
    """The ratios of their times, of `epochs` pairs; the first pair compiles and does not count."""
    model, plain = compiled(), compiled()
    own, other = Clock(), Clock()
    pruner = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.9),
        max_accuracy_drop=0.05,
        schedule="one_shot",
        begin_epoch=epochs,  # the round comes after the last epoch that is timed
        verbose=0,
        **arguments,
    )

    def other_epoch(epoch, logs):
        plain.fit(x, y, batch_size=128, verbose=0, callbacks=[other.first, other.last])
        model.stop_training = epoch == epochs

    turn = keras.callbacks.LambdaCallback(on_epoch_end=other_epoch)
    callbacks = [own.first, pruner, own.last, turn]
    model.fit(x, y, batch_size=128, epochs=epochs + 2, verbose=0, callbacks=callbacks)
    ratios = np.divide(own.seconds[1:], other.seconds[1:])
    (wall, processor), (least, _), (most, _) = np.median(ratios, 0), ratios.min(0), ratios.max(0)
    return f"{wall:.3f} ({least:.3f} to {most:.3f}), processor time {processor:.3f}"


def surgery_on_resnet50():
    """Seconds in which half of its FLOPs go; the size of the images is of no account there."""
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
    parser.add_argument("--epochs", type=int, default=8, help="timed epochs of each kind")
    parser.add_argument("--images", type=int, default=8000, help="in an epoch")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="SGDAPCallback stopped short")
    (x, y), _ = sgdap.datasets.load_mnist()
    x = x[: options.images, ..., None].astype("float32") / 255
    y = y[: options.images]
    watching = epochs_in_turns(x, y, options.epochs, calibration_data=x[:1000])
    print(f"an epoch with the callback, over one without: {watching}", flush=True)
    gathering = epochs_in_turns(x, y, options.epochs)
    print(f"the same while training data are gathered:    {gathering}", flush=True)
    print(f"surgery on ResNet-50, Adam's slots included:  {surgery_on_resnet50():.1f} s")


if __name__ == "__main__":
    main()
