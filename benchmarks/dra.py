"""Compares plain and dynamic range activations in LeNet-5: accuracy, idle channels, pruning.

Each network is trained, pruned once to half of its FLOPs and fine-tuned for two epochs. The
criterion is LASSO. Networks with growth rates are also pruned by these alone (growth), and by the
error of the next layers among the half of the channels that grew least (both).
Run it: python benchmarks/dra.py --seeds 3
With the full MNIST (SGDAP_MNIST) it takes several times as long as with the digits that ship.
With --steps 120 it times train steps instead.
"""

import argparse
import time

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import sgdap
from sgdap.demo import lenet5

GROWTHS = ("plain", "trainable", "statistics")
BATCH = 32
RATES = {"relu": 2e-3, "sigmoid": 4e-3}
"""Learning rates by activation; with that of relu, a sigmoid network does not begin to learn."""
CRITERIA = {
    "LASSO": sgdap.LassoGuidance(),
    "growth": sgdap.GrowthGuidance(),
    "both": sgdap.GrowthGuidance(refinement=0.5),
}


def scaled(images):
    return images[..., None].astype("float32") / np.float32(255)


def network(activation, growth, variant="lenet5"):
    """A LeNet-5 with the given activation in place of its own."""
    plain = lenet5(variant)
    for layer in plain.layers[:-1]:
        if hasattr(layer, "activation"):
            layer.activation = keras.activations.get(activation)
    return plain if growth == "plain" else sgdap.layers.to_dra(plain, growth=growth)


def train(model, x, y, epochs, rate):
    steps = epochs * -(-len(x) // BATCH)
    decay = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(decay), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)


def accuracy(model, x, y):
    predicted = model.predict(x, batch_size=500, verbose=0)
    return float((np.argmax(predicted, axis=1) == y).mean())


def idle(model, x):
    """The share of channels that vary less than 1 % as much as the layer's most varying channel."""
    kinds = (keras.layers.Conv2D, keras.layers.Dense)
    ends = []
    for layer, after in zip(model.layers, model.layers[1:], strict=False):
        if isinstance(layer, kinds):
            grows = isinstance(after, sgdap.layers.DynamicRangeActivation)
            ends.append((after if grows else layer).output)
    made = keras.Model(model.inputs, ends).predict(x, batch_size=500, verbose=0)
    deviations = [values.std(axis=tuple(range(values.ndim - 1))) for values in made]
    return float(np.mean(np.concatenate([d < 0.01 * d.max() for d in deviations])))


def step_ratios(variant, activation, x, y, repeats):
    """Ratios of a train step's seconds and processor seconds to those of the plain activation.

    The ratios are of medians over steps that take turns, both without XLA.
    """
    models = {}
    for growth in GROWTHS:
        model = network(activation, growth, variant)
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        model.train_on_batch(x, y)
        models[growth] = model
    seconds = {growth: [] for growth in GROWTHS}
    for _ in range(repeats):
        for growth, model in models.items():
            began = time.perf_counter(), time.process_time()
            model.train_on_batch(x, y)
            seconds[growth].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    medians = {growth: np.median(taken, axis=0) for growth, taken in seconds.items()}
    return {growth: medians[growth] / medians["plain"] for growth in GROWTHS[1:]}


def shown(values):
    values = 100 * np.array(values)
    return f"{values.mean():.2f} ± {values.std():.2f}" if len(values) else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.5, help="of the FLOPs, to keep")
    parser.add_argument("--samples", type=int, default=2000, help="calibration images")
    parser.add_argument("--activations", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--steps", type=int, default=0, help="train steps to time, instead")
    options = parser.parse_args()

    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist()
    x, x_test = scaled(x), scaled(x_test)
    if options.steps:
        for variant in ("lenet5", "caffe"):
            for activation in options.activations:
                ratios = step_ratios(variant, activation, x[:128], y[:128], options.steps)
                for growth, (wall, processor) in ratios.items():
                    print(f"{variant}, {activation}, {growth}: {wall:.3f} ({processor:.3f})")
        return
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for seed in range(options.seeds):
        for activation in options.activations:
            for growth in GROWTHS:
                keras.utils.set_random_seed(seed)
                model = network(activation, growth)
                train(model, x, y, options.epochs, RATES[activation])
                row = found.setdefault((activation, growth), {})
                row.setdefault("dense", []).append(accuracy(model, x_test, y_test))
                row.setdefault("idle", []).append(idle(model, x_test))
                for name, guidance in CRITERIA.items():
                    if growth == "plain" and name != "LASSO":
                        continue
                    plan = sgdap.plan(
                        model,
                        x[: options.samples],
                        sgdap.Budget(flops=options.share),
                        guidance=guidance,
                    )
                    slim = sgdap.apply(model, plan)
                    row.setdefault(f"{name}, one shot", []).append(accuracy(slim, x_test, y_test))
                    train(slim, x, y, 2, 5e-4)
                    row.setdefault(name, []).append(accuracy(slim, x_test, y_test))
                print(seed, activation, growth, {k: v[-1] for k, v in row.items()}, flush=True)

    columns = ["dense", "idle", *(f"{n}{e}" for n in CRITERIA for e in (", one shot", ""))]
    table = Table(
        title=f"{len(x)} digits, {options.epochs} epochs, {options.share:.0%} of the FLOPs; "
        "accuracy and idle channels in %, mean ± standard deviation over "
        f"{options.seeds} seeds"
    )
    for heading in ("activation", "growth", *columns):
        table.add_column(heading)
    for (activation, growth), row in found.items():
        table.add_row(activation, growth, *(shown(row.get(name, [])) for name in columns))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
