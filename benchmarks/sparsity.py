"""Compares ways to make single weights zero in one shot: accuracy against the share of zeros.

Run it: python benchmarks/sparsity.py --mlpnet mlpnet_mnist.npz --arch caffe --seeds 0 1 2

MLPNet is the net of the papers on second-order pruning (784-40-20-10, no biases, ReLU, inputs
(x / 255 - 0.1307) / 0.3081): `--mlpnet` names an `.npz` of its kernels `fc1`, `fc2` and `fc3`. All
60 000 training images are the calibration data, with labels and without. The other networks are
those of `guidance.py`; they get 4 000 images without labels. No epoch is trained. Results are
written as they come: an interrupted run goes on where it was. The tables (sparsity.md) and the
figures (sparsity-*.png) show all results in the folder.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np
from guidance import Results, accuracy, predictions, scaled, trained
from keras import layers

import sgdap

SHARES = (0.8, 0.9, 0.95, 0.98)
LEFT = {"reconstruction": False}
WAYS = {
    "magnitude": {"guidance": "magnitude", **LEFT},
    "gradient": {"guidance": "gradient", **LEFT},
    "second order, weights left": LEFT,
    "magnitude, moved": {"guidance": "magnitude"},
    "gradient, moved": {"guidance": "gradient"},
    "second order, uniform": {"allocation": "uniform"},
    "second order, kernel by kernel": {"reconstruction": "layerwise"},
    "second order": {},
    "second order, labels": {},
}
PUBLISHED = {
    "WoodFisher (Singh & Alistarh 2020), recalled": (93.57, 91.69, 85.54, 38.26),
    "CBS (Yu et al. 2022), recalled": (93.90, 93.14, 88.92, 55.45),
    "CHITA++ (Benbaki et al. 2023), recalled": (95.80, 95.53, 94.70, 91.49),
}
"""Accuracy of MLPNet in %; they take second-order steps on labels."""

COLUMNS = ["arch", "seed", "share", "way", "accuracy", "dense", "seconds"]
CALIBRATED = 4000


def mlpnet(path):
    """The network of a file of kernels."""
    kernels = np.load(path)
    sizes = ((40, "relu"), (20, "relu"), (10, "log_softmax"))
    stack = [layers.Dense(units, own, use_bias=False) for units, own in sizes]
    model = keras.Sequential([keras.Input((784,)), *stack], name="mlpnet")
    model.set_weights([kernels[name] for name in ("fc1", "fc2", "fc3")])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def standardised(images):
    return ((images.reshape(len(images), -1) / 255 - 0.1307) / 0.3081).astype("float32")


def table(rows, arch):
    """Markdown: a row for each way, a column for each share."""
    cells, dense, seconds = defaultdict(list), {}, defaultdict(list)
    for row in rows:
        if row["arch"] == arch:
            cells[row["way"], float(row["share"])].append(100 * float(row["accuracy"]))
            dense[row["seed"]] = 100 * float(row["dense"])
            seconds[row["way"]].append(float(row["seconds"]))
    head = [f"{share:.0%}" for share in SHARES]
    whole = np.mean(list(dense.values()))
    text = [
        f"### {arch}\n",
        f"Test accuracy in %; dense {whole:.2f}; networks: {len(dense)}.\n",
        f"| way | {' | '.join(head)} | seconds |",
        "|" + " --- |" * (len(SHARES) + 2),
    ]
    for way in WAYS:
        found = [cells.get((way, share), []) for share in SHARES]
        if any(found):
            shown = " | ".join(f"{np.mean(own):.2f}" if own else "" for own in found)
            text.append(f"| {way} | {shown} | {np.mean(seconds[way]):.0f} |")
    for way, found in PUBLISHED.items() if arch == "mlpnet" else ():
        text.append(f"| {way} | {' | '.join(f'{own:.2f}' for own in found)} | |")
    return "\n".join(text) + "\n"


def draw(rows, arch, path):
    """The error of each way against the share of zeros; the band is the spread over networks."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for way in WAYS:
        found = defaultdict(list)
        for row in rows:
            if (row["arch"], row["way"]) == (arch, way):
                found[100 * float(row["share"])].append(100 - 100 * float(row["accuracy"]))
        if found:
            shares = sorted(found)
            means = np.array([np.mean(found[share]) for share in shares])
            spread = np.array([np.std(found[share]) for share in shares])
            axes.plot(shares, means, marker="o", label=way)
            axes.fill_between(shares, means - spread, means + spread, alpha=0.2)
    axes.set(yscale="log", xlabel="weights that are zero, %", ylabel="test error, %")
    axes.set_xticks([100 * share for share in SHARES])
    axes.set_title(f"{arch}: single weights, one shot")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mlpnet", help="an .npz of the kernels of MLPNet")
    parser.add_argument("--arch", nargs="*", default=["caffe"])
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="of zeros")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="the networks, by number")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--data", help="an .npz in Keras' format; default: MNIST of Keras")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    options = parser.parse_args()

    (images, y), (images_test, y_test) = sgdap.datasets.load_mnist(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "sparsity.csv", COLUMNS)
    tasks = [("mlpnet", 0)] if options.mlpnet else []
    tasks += [(arch, seed) for arch in options.arch for seed in options.seeds]
    for arch, seed in tasks:
        form = standardised if arch == "mlpnet" else scaled
        used = len(y) if arch == "mlpnet" else CALIBRATED
        x, x_test = form(images[:used]), form(images_test)
        for share in options.shares:
            for way in options.ways:
                if results.has(arch, seed, share, way):
                    continue
                if arch == "mlpnet":
                    model = mlpnet(options.mlpnet)
                else:
                    model = trained(arch, seed, options.out, form(images), y)
                dense = accuracy(predictions(model, x_test), y_test)
                data = (x, y[:used]) if way.endswith("labels") else x
                began = time.perf_counter()
                made = sgdap.sparsify(model, data, share, samples=None, **WAYS[way])
                seconds = f"{time.perf_counter() - began:.1f}"
                found = accuracy(predictions(made, x_test), y_test)
                results.add(arch, seed, share, way, found, dense, seconds)
                print(arch, seed, share, way, f"{found:.4f} {seconds} s", flush=True)
                keras.backend.clear_session()
    archs = dict.fromkeys(row["arch"] for row in results.rows)
    for arch in archs:
        draw(results.rows, arch, options.out / f"sparsity-{arch}.png")
    text = "\n".join(table(results.rows, arch) for arch in archs)
    (options.out / "sparsity.md").write_text(text)


if __name__ == "__main__":
    main()
