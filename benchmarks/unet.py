"""Compares plans of a small U-Net with networks whose widths are set by hand.

Run it: python benchmarks/unet.py

The network finds the pixels of a digit under noise; it has skips, transposed convolutions up, and
one of two filters at its end. By hand each layer keeps the same share of its channels, as many as
the budget allows: those that sgdap's criterion takes, refitted as sgdap does; the filters
of largest norm, cut out; or a new network, trained as long as the trained one and its pruned
copies together.
"""

import argparse

import keras
import numpy as np
from keras import layers

import sgdap
from sgdap.datasets import load_mnist

WIDTHS = {"one": 16, "two": 32, "three": 64, "up_two": 32, "join_two": 32, "up_one": 16}


def noisy(images, random):
    """Digits under noise, and which pixels are theirs."""
    x = images[..., None].astype("float32") / 255
    noise = random.normal(0, 0.8, x.shape).astype("float32")
    return x + noise, (x[..., 0] > 0.5).astype("int32")


def network(share=1.0):
    width = {name: max(1, round(share * own)) for name, own in WIDTHS.items()}

    def convolution(x, name):
        return layers.Conv2D(width[name], 3, padding="same", activation="relu", name=name)(x)

    def up(x, name):
        make = layers.Conv2DTranspose(width[name], 2, 2, activation="relu", name=name)
        return make(x)

    inputs = keras.Input((28, 28, 1))
    one = convolution(inputs, "one")
    two = convolution(layers.MaxPooling2D()(one), "two")
    three = convolution(layers.MaxPooling2D()(two), "three")
    x = layers.Concatenate()([up(three, "up_two"), two])
    x = layers.Concatenate()([up(convolution(x, "join_two"), "up_one"), one])
    end = layers.Conv2DTranspose(2, 3, padding="same", activation="softmax", name="end")
    return keras.Model(inputs, end(x))


def trained(model, data, epochs, seed):
    keras.utils.set_random_seed(seed)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*data, epochs=epochs, batch_size=64, verbose=0)
    return model


def overlap(model, x, y):
    """Pixels that are the digit's and found, as a share of those that are either, in per cent."""
    found = model.predict(x, batch_size=250, verbose=0)[..., 1] > 0.5
    return 100 * (found & (y == 1)).sum() / (found | (y == 1)).sum()


def flops(model):
    return sgdap.profile(model, latency=False).flops


def share_by_hand(budget):
    """The largest share of every layer's channels that takes at most the share of the FLOPs."""
    most = budget * flops(network())
    shares = np.arange(1, 0.02, -0.01)
    return next(share for share in shares if flops(network(share)) <= most)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=6_000, help="training images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--more", type=int, default=2, help="epochs after pruning")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.15, 0.08])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    (images, _), (test, _) = load_mnist(verbose=0)
    print("| FLOPs | seed | widths from | one shot | trained on | widths |")
    print("| --- | --- | --- | --- | --- | --- |")
    for seed in range(arguments.seeds):
        random = np.random.default_rng(seed)
        data = noisy(images[: arguments.images], random)
        x, y = noisy(test[:2000], random)
        keras.utils.set_random_seed(seed)
        whole = trained(network(), data, arguments.epochs, seed)
        score = overlap(whole, x, y)
        print(f"| 100 % | {seed} | (whole) | {score:.2f} % | | |", flush=True)

        def line(kind, before, model, seed=seed, data=data, x=x, y=y):
            after = overlap(model, x, y)
            kept = "-".join(str(model.get_layer(name).filters) for name in WIDTHS)
            print(
                f"| {100 * flops(model) / flops(network()):.1f} % | {seed} | {kind} | {before} "
                f"| {after:.2f} % | {kept} |",
                flush=True,
            )

        def pruned(kind, budget, seed=seed, data=data, whole=whole, x=x, y=y, **options):
            plan = sgdap.plan(whole, data[0][:1000], sgdap.Budget(flops=budget), **options)
            slim = sgdap.apply(whole, plan)
            before = f"{overlap(slim, x, y):.2f} %"
            line(kind, before, trained(slim, data, arguments.more, seed))

        for budget in arguments.shares:
            pruned("sgdap", budget)
            share = share_by_hand(budget)
            by_hand = {name: max(1, round(share * n)) / n for name, n in WIDTHS.items()}
            pruned("hand, refitted", 0.999, overrides=by_hand)
            cut = {"guidance": "magnitude", "reconstruction": False}
            pruned("hand, largest", 0.999, overrides=by_hand, **cut)
            keras.utils.set_random_seed(seed)
            anew = trained(network(share), data, arguments.epochs + arguments.more, seed)
            line("hand, new", "", anew)


if __name__ == "__main__":
    main()
