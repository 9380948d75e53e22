"""Measures depth and width together against width alone, at equal measured latency.

Run it: taskset --cpu-list 0 python benchmarks/depth.py

A ResNet of three blocks a stage and a network of inverted residuals as in MobileNetV2, trained on
MNIST, are planned in one shot to a share of their latency at batch 1: by widths alone, with units
that leave where a slim model is measured to lose less (`depth=True`), and with a quarter of the
units gone. Each slim model is tuned alike for an epoch of 20 000 images. `--runtime keras` measures
the compiled Keras model in the place of LiteRT. `--units` measures shares of the units gone and no
channels, without any training.
Results are written as they come, and an interrupted run goes on where it was.
"""

import argparse
import itertools
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from guidance import Results, accuracy, predictions, resnet, scaled
from keras import layers
from scipy import stats

import sgdap
from sgdap.execution.latency import Stopwatch

COLUMNS = [
    *("network", "seed", "runtime", "latency", "depth", "units", "kept", "ratio"),
    *("one_shot", "tuned"),
]
WAYS = ("widths", "depth", "quarter")
DEPTH = {"widths": False, "depth": True, "quarter": 0.25, "half": 0.5}


def mobilenet():
    """Inverted residuals (expanded by four, depthwise 3×3) of 16, 24 and 40 channels."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU(6)(layers.BatchNormalization()(x))
    for stage, (width, blocks) in enumerate(((16, 2), (24, 3), (40, 3))):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            y = layers.Conv2D(4 * x.shape[-1], 1, use_bias=False)(x)
            y = layers.ReLU(6)(layers.BatchNormalization()(y))
            y = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y)
            y = layers.ReLU(6)(layers.BatchNormalization()(y))
            y = layers.BatchNormalization()(layers.Conv2D(width, 1, use_bias=False)(y))
            x = layers.Add()([x, y]) if y.shape == x.shape else y
    x = layers.Conv2D(160, 1, use_bias=False)(x)
    x = layers.ReLU(6)(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, "softmax")(x), name="mobilenet")


NETWORKS = {"resnet": lambda: resnet(blocks=3), "mobilenet": mobilenet}


def fit(model, x, y, epochs, rate):
    steps = -(-len(x) // 128)
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    model.compile(keras.optimizers.Adam(decay), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return model


def trained(network, seed, folder, x, y):
    """The network of a seed, read from the folder, or trained for three epochs and saved there."""
    path = folder / f"deep-{network}-{seed}.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        fit(NETWORKS[network](), x, y, 3, 2e-3).save(path)
    return keras.models.load_model(path)


def measure(network, seed, options, data, results):
    (x, y), (x_test, y_test) = data
    runtime = options.runtime
    key = network, seed, runtime
    model = None
    for latency, way in options.plans:
        if results.has(*key, latency, way):
            continue
        if model is None:
            model = trained(network, seed, options.out, x, y)
            watch = Stopwatch(model, 1, runtime)
        if not results.has(*key, 1.0, "whole"):
            dense = f"{accuracy(predictions(model, x_test), y_test):.4f}"
            results.add(*key, 1.0, "whole", 0, "1.000", "1.00", dense, dense)
        budget = sgdap.Budget(params=1.0)
        if latency < 1:
            budget = sgdap.Budget(latency=latency, runtime=runtime)
        try:
            plan = sgdap.plan(model, (x[:2000], y[:2000]), budget, depth=DEPTH[way], seed=seed)
        except ValueError as error:  # the narrowest model takes longer
            print(*key, latency, way, error, flush=True)
            continue
        slim = sgdap.apply(model, plan)
        before = after = accuracy(predictions(slim, x_test), y_test)
        if latency < 1:
            keras.utils.set_random_seed(seed)
            fit(slim, x[:20000], y[:20000], 1, 1e-3)
            after = accuracy(predictions(slim, x_test), y_test)
        ratio = watch.seconds_of(slim) / watch.seconds
        kept = plan.flops[1] / plan.flops[0]
        told = len(plan.bypassed), f"{kept:.3f}", f"{ratio:.2f}", f"{before:.4f}", f"{after:.4f}"
        results.add(*key, latency, way, *told)
        print(*key, latency, way, *told, flush=True)
        keras.backend.clear_session()


def grouped(rows):
    """The rows of each network, runtime and share of the latency, by way and seed."""
    cells = {}
    for row in rows:
        place = row["network"], row["runtime"], float(row["latency"])
        cells.setdefault(place, {}).setdefault(row["depth"], {})[row["seed"]] = row
    return cells


def differences(own, way, name="tuned"):
    """What a way brought on each network against widths alone, in points."""
    seeds = [seed for seed in own[way] if seed in own["widths"]]
    return np.array(
        [100 * (float(own[way][s][name]) - float(own["widths"][s][name])) for s in seeds]
    )


def interval(values):
    """The mean and half of its 95 % interval by Student's distribution."""
    if len(values) < 2:
        return f"{values.mean():+.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.2f} ± {half:.2f}"


def table(rows):
    """Markdown: means over networks; the last column is paired, with its 95 % interval."""
    text = [
        "| network, runtime | asked | units that leave | FLOPs | latency | one shot | tuned "
        "| against widths alone |",
        "|" + " --- |" * 8,
    ]
    for (network, runtime, latency), own in sorted(grouped(rows).items(), reverse=True):
        for way, found in own.items():
            numbers = {
                n: np.array([float(row[n]) for row in found.values()])
                for n in ("units", "kept", "ratio", "one_shot", "tuned")
            }
            means = {name: values.mean() for name, values in numbers.items()}
            brought = ""
            if way not in ("widths", "whole") and "widths" in own:
                brought = interval(differences(own, way))
            text.append(
                f"| {network}, {runtime} | {latency:.0%} | {way}: {means['units']:.1f} | "
                f"{means['kept']:.1%} | {means['ratio']:.2f} | {100 * means['one_shot']:.2f} | "
                f"{100 * means['tuned']:.2f} | {brought} |"
            )
    return "\n".join(text)


def draw(rows, path):
    """Accuracy against latency: each way's mean, with the deviation of the networks."""
    cells = grouped(rows)
    places = sorted({place[:2] for place in cells}, reverse=True)
    figure, all_axes = plt.subplots(
        1, len(places), figsize=(4.5 * len(places), 3.6), layout="constrained", squeeze=False
    )
    for axes, place in zip(all_axes[0], places, strict=True):
        for way, style in (("widths", "C0o-"), ("depth", "C1s-"), ("quarter", "C2^-")):
            points = []
            for (*found, latency), own in sorted(cells.items()):
                if tuple(found) == place and latency < 1 and way in own:
                    rows = own[way].values()
                    tuned = [100 * float(row["tuned"]) for row in rows]
                    ratio = np.mean([float(row["ratio"]) for row in rows])
                    points.append((ratio, np.mean(tuned), np.std(tuned)))
            if points:
                axes.errorbar(*np.array(points).T[:2], np.array(points)[:, 2], fmt=style, label=way)
        axes.set(title=", ".join(place), xlabel="latency, of the whole model's")
        axes.set(ylabel="test accuracy after tuning, %")
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runtime", default="litert", choices=["litert", "keras"])
    parser.add_argument("--latency", type=float, nargs="+", default=[0.4, 0.25])
    parser.add_argument("--units", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.plans = [(latency, way) for latency in options.latency for way in WAYS]
    if options.units:
        options.plans = [(1.0, "quarter"), (1.0, "half")]
    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist()
    data = (scaled(x), y), (scaled(x_test), y_test)
    results = Results(options.out / "depth.csv", COLUMNS)
    for seed, network in itertools.product(options.seeds, options.networks):
        measure(network, seed, options, data, results)
    (options.out / "depth.md").write_text(table(results.rows) + "\n")
    draw(results.rows, options.out / "depth.png")


if __name__ == "__main__":
    main()
