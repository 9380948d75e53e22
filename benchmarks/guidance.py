"""One-shot accuracy (no training after pruning) of each criterion against the FLOPs kept.

Run it: python benchmarks/guidance.py --arch caffe --seeds 5
With the full MNIST (SGDAP_MNIST) and the default settings it takes about an hour on two cores;
`--criteria lasso` alone takes ten minutes, most of it training.
"""

import argparse

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import sgdap
from sgdap.demo import lenet5

CRITERIA = ("lasso", "second_order", "taylor", "magnitude", "fpgm", "activation", "correlation")
CRITERIA += ("random",)


def scaled(images):
    return images[..., None].astype("float32") / np.float32(255)


def trained(arch, seed, epochs, x, y):
    keras.utils.set_random_seed(seed)
    model = lenet5(arch)
    steps = -(-len(x) // 128)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return model


def accuracy(model, x, y):
    return float((np.argmax(model(x, training=False), axis=1) == y).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=["lenet5", "caffe"], default="caffe")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--samples", type=int, default=4000, help="calibration images")
    parser.add_argument("--criteria", nargs="+", default=CRITERIA)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.3, 0.2, 0.1, 0.05])
    options = parser.parse_args()

    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist()
    x, x_test = scaled(x), scaled(x_test)
    found: dict[tuple[str, bool], list[list[float]]] = {}
    dense = []
    for seed in range(options.seeds):
        model = trained(options.arch, seed, options.epochs, x, y)
        dense.append(accuracy(model, x_test, y_test))
        for name in options.criteria:
            for reconstruction in (True, False):
                row = []
                for share in options.shares:
                    plan = sgdap.plan(
                        model,
                        x[: options.samples],
                        sgdap.Budget(flops=share),
                        guidance=name,
                        reconstruction=reconstruction,
                    )
                    row.append(accuracy(sgdap.apply(model, plan), x_test, y_test))
                found.setdefault((name, reconstruction), []).append(row)

    table = Table(
        title=f"{options.arch}: accuracy in %, mean ± standard deviation over {options.seeds} "
        f"seeds; dense {100 * np.mean(dense):.2f} ± {100 * np.std(dense):.2f}"
    )
    for heading in ("criterion", "refitted", *(f"{share:.0%}" for share in options.shares)):
        table.add_column(heading)
    for (name, reconstruction), rows in found.items():
        values = 100 * np.array(rows)
        cells = [
            f"{m:.2f} ± {s:.2f}"
            for m, s in zip(values.mean(axis=0), values.std(axis=0), strict=True)
        ]
        table.add_row(name, "yes" if reconstruction else "no", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
