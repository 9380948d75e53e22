"""Prunes LeNet-5-Caffe to the size of the published points, with the dense model as a teacher.

Run it: python benchmarks/published.py --seeds 0 1 2 3 4

Each dense network of `guidance.py` is trained on for 40 epochs of all 60 000 images and pruned on
the way, to 5 % of the FLOPs and 0.95 % of the parameters, and its error on the 10 000 test images
is written. `--validate` trains both on the first 50 000 images and tests on the other 10 000
training images instead: settings are chosen so. `--moved 2` moves images at random by up
to two pixels.
Results are written as they come: an interrupted run goes on where it was. The table
(published.md) shows all results in the folder beside the published numbers.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np
from guidance import Results, accuracy, predictions, scaled, trained

import sgdap

SETTING = ("data", "epochs", "batch", "rate", "teacher", "moved")
COLUMNS = [
    *("data", "seed", *SETTING[1:]),
    *("accuracy", "dense", "widths", "flops", "params", "seconds"),
]
BUDGET = sgdap.Budget(flops=0.05, params=0.0095)
PUBLISHED = (
    ("group lasso (SSL; Wen et al. 2016), recalled", "3-12-192-500", 1.0, 8.8, 23.8),
    ("generalized dropout (Srinivas & Babu 2016), recalled", "7-13-208-16", 1.1, 10.9, 1.39),
    (
        "structured Bayesian pruning (Neklyudov et al. 2017), recalled",
        "3-18-284-283",
        0.9,
        9.3,
        19.7,
    ),
    ("BC-GNJ (Louizos et al. 2017), recalled", "8-13-88-13", 1.0, 12.3, 0.96),
    ("BC-GHS (Louizos et al. 2017), recalled", "5-10-76-16", 1.0, 6.7, 0.65),
    ("L0, λ=0.1/N (Louizos et al. 2018), recalled", "20-25-45-462", 0.9, 48.6, 9.0),
    ("L0, λ separate (Louizos et al. 2018), recalled", "9-18-65-25", 1.0, 17.0, 1.44),
)
"""Method, widths, test error in %, FLOPs and parameters kept in %."""


class Images(keras.utils.PyDataset):
    """Batches in a new order in each epoch, of images that may be moved."""

    def __init__(self, x, y, batch, moved, seed):
        super().__init__()
        self.x, self.y, self.batch, self.moved = x, y, batch, moved
        self.random = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return len(self.x) // self.batch

    def __getitem__(self, number):
        chosen = self.order[number * self.batch : (number + 1) * self.batch]
        x = self.x[chosen]
        if self.moved:
            edge, (height, width) = self.moved, x.shape[1:3]
            wide = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
            down, right = self.random.integers(2 * edge + 1, size=(2, len(x), 1))
            rows, columns = down + np.arange(height), right + np.arange(width)
            x = wide[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None]]
        return x, self.y[chosen]

    def on_epoch_end(self):
        self.order = self.random.permutation(len(self.x))


def pruned(model, x, y, seed, epochs, batch, rate, teacher, moved):
    """Trains a network on and prunes it."""
    keras.utils.set_random_seed(seed)
    images = Images(x, y, batch, moved, seed)
    decaying = keras.optimizers.schedules.CosineDecay(rate, epochs * len(images))
    model.compile(keras.optimizers.Adam(decaying), "sparse_categorical_crossentropy")
    callback = sgdap.SGDAPCallback(
        BUDGET, teacher=teacher or None, calibration_data=(x[:4000], y[:4000]), round_to=1
    )
    model.fit(images, epochs=epochs, callbacks=[callback], verbose=0)
    return callback.summary


def table(rows):
    """Markdown: the published rows, and one for each setting of ours."""
    text = ["| method | widths | test error % | FLOPs % | parameters % |", "|" + " --- |" * 5]
    text += [f"| {' | '.join(map(str, row))} |" for row in PUBLISHED]
    settings = defaultdict(list)
    for row in rows:
        settings[tuple(row[name] for name in SETTING)].append(row)
    for (data, epochs, batch, rate, teacher, moved), own in settings.items():
        errors = [100 * (1 - float(row["accuracy"])) for row in own]
        spread = f" ± {np.std(errors, ddof=1):.2f}" if len(errors) > 1 else ""
        name = (
            f"ours, {epochs} epochs, {batch} at {rate}, teacher: {teacher}, moved: {moved}, {data}"
        )
        widths = ", ".join(row["widths"] for row in own)
        cost = [np.mean([float(row[name]) for row in own]) for name in ("flops", "params")]
        found = f"{np.mean(errors):.2f}{spread} ({len(own)})"
        text.append(f"| {name} | {widths} | {found} | {cost[0]:.2f} | {cost[1]:.2f} |")
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="the networks, by number")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of Adam")
    parser.add_argument("--moved", type=int, default=0, help="pixels")
    parser.add_argument("--no-teacher", action="store_true")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--data", help="an .npz in Keras' format; default: MNIST of Keras")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    options = parser.parse_args()

    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist(options.data)
    x, x_test = scaled(x), scaled(x_test)
    folder = options.out / "validation" if options.validate else options.out
    if options.validate:
        (x, y), (x_test, y_test) = (x[:50_000], y[:50_000]), (x[50_000:], y[50_000:])
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "published.csv", COLUMNS)
    data = "validation" if options.validate else "test"
    teacher = not options.no_teacher
    setting = options.epochs, options.batch, options.rate, teacher, options.moved
    for seed in options.seeds:
        if results.has(data, seed, *setting):
            continue
        model = trained("caffe", seed, folder, x, y)
        dense = accuracy(predictions(model, x_test), y_test)
        began = time.perf_counter()
        summary = pruned(model, x, y, seed, *setting)
        seconds = f"{time.perf_counter() - began:.0f}"
        found = accuracy(predictions(model, x_test), y_test)
        widths = "-".join(str(layer.kernel.shape[-1]) for layer in model.layers if layer.weights)
        costs = [f"{100 * new / old:.2f}" for old, new in (summary.flops, summary.params)]
        results.add(data, seed, *setting, found, dense, widths, *costs, seconds)
        print(data, seed, *setting, f"{found:.4f} {widths} {seconds} s", flush=True)
        keras.backend.clear_session()
    (options.out / "published.md").write_text(table(results.rows))


if __name__ == "__main__":
    main()
