"""Compares plans of one network with two outputs, the second of which is in several units.

Run it: python benchmarks/outputs.py

A digit is pasted somewhere on a larger canvas. The network tells which one it is and where it is.
It is trained once; then the place is given in other units, and its `loss_weights` follow, so the
network computes the same. Plans of 30 % of the FLOPs are made in each unit, of the compiled model
and of one that is not compiled. Nothing is trained after pruning.
"""

import argparse

import keras
import numpy as np
from keras import layers

import sgdap
from sgdap.datasets import load_mnist

CANVAS, UNITS = 36, (0.01, 1.0, 100.0)


def pasted(images, random):
    """Digits on canvases, and their places in pixels from the middle."""
    places = random.integers(0, CANVAS - 28 + 1, size=(len(images), 2))
    canvases = np.zeros((len(images), CANVAS, CANVAS, 1), "float32")
    for canvas, image, (top, left) in zip(canvases, images, places, strict=True):
        canvas[top : top + 28, left : left + 28, 0] = image / 255
    return canvases, (places - (CANVAS - 28) / 2).astype("float32")


def network():
    inputs = keras.Input((CANVAS, CANVAS, 1))
    x = inputs
    for width in (16, 24, 32):
        x = layers.Conv2D(width, 5, strides=2, activation="relu", padding="same")(x)
    x = layers.Flatten()(x)
    ends = [
        layers.Dense(10, "softmax", name="digit")(layers.Dense(128, "relu", name="what")(x)),
        layers.Dense(2, name="place")(layers.Dense(128, "relu", name="where")(x)),
    ]
    return keras.Model(inputs, ends)


def in_unit(trained, unit, loss, weight):
    """The network with its place in another unit, compiled with a loss of the same worth."""
    model = network()  # a clone would be compiled
    model.set_weights(trained.get_weights())
    place = model.get_layer("place")
    place.set_weights([unit * value for value in place.get_weights()])
    if loss is not None:
        power = 1 if loss == "mae" else 2
        model.compile(
            loss=["sparse_categorical_crossentropy", loss],
            loss_weights=[1.0, weight / unit**power],
        )
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=12_000, help="training images")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.3, help="share of the FLOPs to keep")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    digits = load_mnist(verbose=0)
    print("| seed | loss of the place | unit | accuracy | error, pixels | channels |")
    print("| --- | --- | --- | --- | --- | --- |")
    for seed in range(arguments.seeds):
        random = np.random.default_rng(seed)
        (images, labels), test = digits
        x, places = pasted(images[: arguments.images], random)
        labels = labels[: len(x)]
        x_test, test_places = pasted(test[0], random)
        weight = 1 / places.var()
        keras.utils.set_random_seed(seed)
        trained = network()
        trained.compile(
            "adam", ["sparse_categorical_crossentropy", "mse"], loss_weights=[1.0, weight]
        )
        trained.fit(x, [labels, places], epochs=arguments.epochs, batch_size=64, verbose=0)

        def line(kind, unit, model, widths, seed=seed, x=x_test, labels=test[1], at=test_places):
            digit, place = model.predict(x, batch_size=500, verbose=0)
            accuracy = 100 * (digit.argmax(1) == labels).mean()
            error = np.sqrt(((place / unit - at) ** 2).sum(1).mean())
            row = f"| {seed} | {kind} | {unit:g} | {accuracy:.2f} % | {error:.2f} | {widths} |"
            print(row, flush=True)

        line("(whole)", 1.0, trained, "")
        for loss, worth in (("mse", weight), ("mae", np.sqrt(weight)), (None, 0)):
            for unit in UNITS:
                model = in_unit(trained, unit, loss, worth)
                budget = sgdap.Budget(flops=arguments.share)
                plan = sgdap.plan(model, x[:1000], budget)
                kept = [len(g.kept) for g in plan.groups if not g.note]
                widths = "-".join(map(str, kept))
                line(loss or "not compiled", unit, sgdap.apply(model, plan), widths)


if __name__ == "__main__":
    main()
