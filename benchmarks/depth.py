"""Measures depth and width together against width alone, at the latency that is left.

Run it: taskset --cpu-list 0 python benchmarks/depth.py

A ResNet of three blocks a stage, trained on MNIST, is planned in one shot without units and with a
share of its units gone, at several budgets of FLOPs. Each slim model is tuned alike for an epoch of
20 000 images. It is timed against the whole one in turns, in LiteRT, batch 1; ratios below 1 are
faster. `--units` measures shares of the units gone and no channels, without any training.
Results are written as they come, and an interrupted run goes on where it was.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from guidance import Results, accuracy, predictions, scaled
from keras import layers

import sgdap
from sgdap.execution.latency import Stopwatch

COLUMNS = ["seed", "depth", "flops", "kept", "units", "ratio", "one_shot", "tuned"]
PLANS = tuple((depth, flops) for flops in (0.35, 0.25, 0.17, 0.12) for depth in (0, 0.25, 0.5))


def resnet():
    """Three stages of three residual blocks of two 3×3 convolutions, 16 to 64 channels wide."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            strides = 2 if stage and not block else 1
            y = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False)(x)
            y = layers.ReLU()(layers.BatchNormalization()(y))
            y = layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
            y = layers.BatchNormalization()(y)
            if strides > 1:
                x = layers.Conv2D(width, 1, strides=strides, use_bias=False)(x)
                x = layers.BatchNormalization()(x)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, "softmax")(x), name="deep_resnet")


def fit(model, x, y, epochs, rate):
    steps = -(-len(x) // 128)
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    model.compile(keras.optimizers.Adam(decay), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return model


def trained(seed, folder, x, y):
    """The network of a seed, read from the folder, or trained for three epochs and saved there."""
    path = folder / f"deep-resnet-{seed}.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        fit(resnet(), x, y, 3, 2e-3).save(path)
    return keras.models.load_model(path)


def measure(seed, options, data, results):
    (x, y), (x_test, y_test) = data
    model = trained(seed, options.out, x, y)
    if not results.has(seed, 0, 1.0):
        dense = accuracy(predictions(model, x_test), y_test)
        results.add(seed, 0, 1.0, "1.000", 0, "1.00", f"{dense:.4f}", f"{dense:.4f}")
    watch = None
    for depth, flops in options.plans:
        if results.has(seed, depth, flops):
            continue
        budget = sgdap.Budget(flops=flops) if flops < 1 else sgdap.Budget(params=1.0)
        plan = sgdap.plan(model, (x[:2000], y[:2000]), budget, depth=depth or False, seed=seed)
        slim = sgdap.apply(model, plan)
        before = accuracy(predictions(slim, x_test), y_test)
        after = before
        if flops < 1:
            keras.utils.set_random_seed(seed)
            fit(slim, x[:20000], y[:20000], 1, 1e-3)
            after = accuracy(predictions(slim, x_test), y_test)
        watch = watch or Stopwatch(model, 1, "litert")
        ratio = watch.seconds_of(slim) / watch.seconds
        kept = plan.flops[1] / plan.flops[0]
        told = f"{kept:.3f}", len(plan.bypassed), f"{ratio:.2f}", f"{before:.4f}", f"{after:.4f}"
        results.add(seed, depth, flops, *told)
        print(seed, depth, flops, *told, flush=True)
        keras.backend.clear_session()


def table(rows):
    """Markdown: for each share of units and budget the means over seeds and their deviation."""
    cells = {}
    for row in rows:
        cells.setdefault((float(row["depth"]), -float(row["flops"])), []).append(row)
    text = [
        "| units gone | FLOPs | latency | one shot | tuned |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (depth, flops), own in sorted(cells.items()):
        numbers = {n: np.array([float(r[n]) for r in own]) for n in ("ratio", "one_shot", "tuned")}
        shown = [f"{numbers['ratio'].mean():.2f}"]
        for name in ("one_shot", "tuned"):
            shown.append(f"{100 * numbers[name].mean():.2f} ± {100 * numbers[name].std():.2f}")
        text.append(f"| {depth:.0%} | {-flops:.0%} | {' | '.join(shown)} |")
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--units", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.plans = [(share, 1.0) for share in (0.25, 0.5)] if options.units else PLANS
    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist()
    data = (scaled(x), y), (scaled(x_test), y_test)
    results = Results(options.out / "depth.csv", COLUMNS)
    for seed in options.seeds:
        measure(seed, options, data, results)
    (options.out / "depth.md").write_text(table(results.rows) + "\n")


if __name__ == "__main__":
    main()
