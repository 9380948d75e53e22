"""All 32 subsets of five methods on LeNet-5: accuracy beside the bytes of the packed file.

Run it: python benchmarks/subsets.py --seeds 0 1 2 3 4

A LeNet-5 is trained, with dynamic range activations or without. Two fits of as many epochs follow,
the same for each subset: in the first one channels leave and weights become zero, in the second
one weights lie on few bits; with distillation the trained network teaches in both. What a subset
leaves out is left out of the fits, and the epochs stay. Dynamic range activations are folded
after the first fit. Where they and channel pruning come together, channels are chosen among the
half that grew least.

Written to subsets.csv, subsets.md and subsets.png; an interrupted run goes on where it was.
"""

import argparse
import itertools
import time
from collections import defaultdict
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from guidance import Results, accuracy, predictions, scaled

import sgdap
from sgdap.demo import lenet5

METHODS = ("dra", "channels", "sparsity", "distillation", "quantization")
COLUMNS = ("images", "epochs", "seed", *METHODS, "accuracy", "bytes", "seconds")
BUDGET = sgdap.Budget(flops=0.3, params=0.3)
SPARSITY, SCHEME = 0.8, "int4"
BATCH, RATE = 32, 2e-3


def fit(model, x, y, epochs, rate, callbacks=()):
    steps = epochs * -(-len(x) // BATCH)
    decaying = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(decaying), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=BATCH, epochs=epochs, callbacks=list(callbacks), verbose=0)


def copied(model):
    made = keras.models.clone_model(model)
    made.set_weights(model.get_weights())
    return made


def network(dra, seed, x, y, epochs):
    """The trained network that subsets begin with."""
    keras.utils.set_random_seed(seed)
    model = lenet5("lenet5")
    model = sgdap.layers.to_dra(model, growth="statistics") if dra else model
    fit(model, x, y, epochs, RATE)
    return model


def compressed(trained, methods, seed, x, y, epochs):
    """The network after both fits."""
    keras.utils.set_random_seed(seed)
    model, calibration = copied(trained), (x[:2000], y[:2000])
    teaching = [sgdap.DistillationCallback(trained, 4.0)] if "distillation" in methods else []
    first = []
    if "channels" in methods:
        guidance = sgdap.GrowthGuidance(refinement=0.5) if "dra" in methods else "lasso"
        first.append(sgdap.SGDAPCallback(BUDGET, guidance, calibration_data=calibration, verbose=0))
    if "sparsity" in methods:
        first.append(sgdap.SparsityCallback(SPARSITY, calibration_data=calibration, verbose=0))
    fit(model, x, y, epochs, RATE, first + teaching)
    if "dra" in methods:
        model = sgdap.fold(model)
    last = list(teaching)
    if "quantization" in methods:
        last.insert(0, sgdap.QuantizationCallback(SCHEME, verbose=0))
    elif "sparsity" in methods:
        last.insert(0, sgdap.SparsityCallback(SPARSITY, calibration_data=calibration, verbose=0))
    fit(model, x, y, epochs, RATE / 2, last)
    return model


def grouped(rows):
    """Accuracies in % and bytes of each subset, the same order as `subsets`."""
    found = defaultdict(list)
    for row in rows:
        methods = tuple(name for name in METHODS if row[name] == "True")
        found[methods].append((100 * float(row["accuracy"]), int(row["bytes"])))
    return {own: np.array(found[own]) for own in subsets() if own in found}


def subsets():
    return [
        own for count in range(len(METHODS) + 1) for own in itertools.combinations(METHODS, count)
    ]


def shown(values, digits):
    spread = f" ± {values.std(ddof=1):,.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():,.{digits}f}{spread}"


def table(found):
    heads = ("DRA", *METHODS[1:], "test accuracy %", "bytes", "networks")
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for methods, values in found.items():
        marks = ["x" if name in methods else "" for name in METHODS]
        cells = [*marks, shown(values[:, 0], 2), shown(values[:, 1], 0), str(len(values))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + brings(found)


def brings(found):
    """What each method brings: the mean difference between subsets with it and without it."""
    lines = [
        "| with it, less without it | accuracy, points | bytes, times |",
        "| --- | --- | --- |",
    ]
    for name in METHODS:
        pairs = [
            (found[own], found[other])
            for own in found
            if name in own and (other := tuple(m for m in own if m != name)) in found
        ]
        if pairs:
            points = np.mean([one[:, 0].mean() - two[:, 0].mean() for one, two in pairs])
            times = np.mean([np.log(one[:, 1].mean() / two[:, 1].mean()) for one, two in pairs])
            lines.append(f"| {name} | {points:+.2f} | {np.exp(times):.3f} |")
    return "\n".join(lines) + "\n"


def draw(found, path):
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for methods, values in found.items():
        axes.errorbar(
            values[:, 1].mean(),
            values[:, 0].mean(),
            values[:, 0].std(ddof=1) if len(values) > 1 else None,
            fmt="so"["distillation" in methods],
            color="C1" if "quantization" in methods else "C0",
            mfc=None if "dra" in methods else "white",
            ms=6,
        )
        name = "".join(own[0].upper() for own in methods if own in ("channels", "sparsity"))
        axes.annotate(
            name, values.mean(axis=0)[::-1], xytext=(5, 3), textcoords="offset points", fontsize=7
        )
    axes.set(xscale="log", xlabel="bytes of the packed file", ylabel="test accuracy, %")
    axes.set_title(
        "C: channels, S: sparsity; orange: quantization, circle: distillation, filled: DRA",
        fontsize=8,
    )
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=3, help="of training, and of each fit")
    parser.add_argument("--data", help="an .npz in Keras' format; default: MNIST of Keras")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    options = parser.parse_args()

    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist(options.data)
    x, x_test, y = scaled(x[: options.images]), scaled(x_test), y[: options.images]
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "subsets.csv", COLUMNS)
    setting = len(x), options.epochs
    for seed, dra in itertools.product(options.seeds, (False, True)):
        own = [methods for methods in subsets() if ("dra" in methods) == dra]
        marks = {methods: tuple(name in methods for name in METHODS) for methods in own}
        own = [methods for methods in own if not results.has(*setting, seed, *marks[methods])]
        if not own:
            continue
        trained = network(dra, seed, x, y, options.epochs)
        for methods in own:
            began = time.process_time()
            model = compressed(trained, methods, seed, x, y, options.epochs)
            bare = type(model).from_config(model.get_config())  # a file tells how it is compiled
            bare.set_weights(model.get_weights())
            size = sgdap.pack(bare, options.out / "subset.sgdap")
            right = accuracy(predictions(model, x_test), y_test)
            seconds = f"{time.process_time() - began:.0f}"
            results.add(*setting, seed, *marks[methods], right, size, seconds)
            print(seed, "+".join(methods), f"{right:.4f} {size} bytes {seconds} s", flush=True)
        keras.backend.clear_session()
    rows = [row for row in results.rows if (row["images"], row["epochs"]) == (*map(str, setting),)]
    (options.out / "subsets.md").write_text(table(grouped(rows)))
    draw(grouped(rows), options.out / "subsets.png")


if __name__ == "__main__":
    main()
