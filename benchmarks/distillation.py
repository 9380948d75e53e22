"""Compares what follows a one-shot pruning: nothing, the dense model's answers, training, or both.

Run it: python benchmarks/distillation.py --arch caffe resnet --shares 0.1 0.05 --seeds 0 1

Networks of `guidance.py` are pruned in one shot on 4 000 images. "one shot": nothing follows;
"distilled": `sgdap.distill` on the same images, without labels; "fine-tuned": four epochs of 8 000
other images with their labels; "with a teacher": the same with a `DistillationCallback`;
"keras.distillation": the same with Keras' `Distiller` and its `LogitsDistillation(temperature=4)`.
Training is Adam from 2e-3 with a cosine decay, batches of 64.
Results are written as they come: an interrupted run goes on where it was. The table
(distillation.md) shows all results in the folder.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np
from guidance import Results, accuracy, predictions, scaled, trained
from scipy import stats

import sgdap

WAYS = ("one shot", "distilled", "fine-tuned", "with a teacher", "keras.distillation")
COLUMNS = ["arch", "seed", "share", "way", "accuracy", "dense", "seconds"]
CALIBRATED, IMAGES, EPOCHS, BATCH = 4000, 8000, 4, 64
LOSS = "sparse_categorical_crossentropy"


def followed(way, slim, model, x, y, seed):
    """Lets a way follow the pruning; the model is changed in place."""
    keras.utils.set_random_seed(seed)
    if way == "distilled":
        sgdap.distill(slim, model, x[:CALIBRATED])
    if way in ("one shot", "distilled"):
        return
    chosen = slice(CALIBRATED, CALIBRATED + IMAGES)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * IMAGES // BATCH)
    optimizer = keras.optimizers.Adam(rate)
    arguments = {"batch_size": BATCH, "epochs": EPOCHS, "verbose": 0}
    learner, callbacks = slim, []
    if way == "with a teacher":
        callbacks.append(sgdap.DistillationCallback(model))
    if way == "keras.distillation":
        loss = keras.distillation.LogitsDistillation(temperature=4.0)
        learner = keras.distillation.Distiller(model, slim, loss)
    learner.compile(optimizer, LOSS)
    learner.fit(x[chosen], y[chosen], callbacks=callbacks, **arguments)


def table(rows):
    """Markdown: a row for each network and share; what a teacher gains is the mean of pairs."""
    cells = defaultdict(lambda: defaultdict(dict))
    dense = defaultdict(dict)
    for row in rows:
        head = row["arch"], float(row["share"])
        cells[head][row["way"]][row["seed"]] = 100 * float(row["accuracy"])
        dense[row["arch"]][row["seed"]] = 100 * float(row["dense"])
    columns = ["network", "FLOPs", "dense", *WAYS, "a teacher gains", "over keras.distillation"]
    text = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for head in sorted(cells, key=lambda head: (head[0], -head[1])):
        found = cells[head]
        words = [_mean(list(found[way].values())) for way in WAYS]
        for other in ("fine-tuned", "keras.distillation"):
            pairs = [(own, found[other].get(s)) for s, own in found["with a teacher"].items()]
            words.append(_interval([a - b for a, b in pairs if b is not None]))
        whole = np.mean(list(dense[head[0]].values()))
        text.append(f"| {head[0]} | {head[1]:.0%} | {whole:.2f} | {' | '.join(words)} |")
    return "\n".join(text) + "\n"


def _mean(found):
    if len(found) < 2:
        return "".join(f"{own:.2f}" for own in found)
    return f"{np.mean(found):.2f} ± {np.std(found, ddof=1):.2f} ({len(found)})"


def _interval(gains):
    """The mean of paired gains and its 95 % confidence interval."""
    if len(gains) < 2:
        return ""
    half = stats.t.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5
    return f"{np.mean(gains):.2f} ± {half:.2f}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=["caffe", "resnet"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.05], help="of the FLOPs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="the networks, by number")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--data", help="an .npz in Keras' format; default: MNIST of Keras")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    options = parser.parse_args()

    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist(options.data)
    x, x_test = scaled(x), scaled(x_test)
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "distillation.csv", COLUMNS)
    for arch in options.arch:
        for seed in options.seeds:
            model = trained(arch, seed, options.out, x, y)
            dense = accuracy(predictions(model, x_test), y_test)
            for share in options.shares:
                ways = [way for way in options.ways if not results.has(arch, seed, share, way)]
                if not ways:
                    continue
                plan = sgdap.plan(model, x[:CALIBRATED], sgdap.Budget(flops=share))
                for way in ways:
                    slim = sgdap.apply(model, plan)
                    began = time.perf_counter()
                    followed(way, slim, model, x, y, seed)
                    seconds = f"{time.perf_counter() - began:.1f}"
                    found = accuracy(predictions(slim, x_test), y_test)
                    results.add(arch, seed, share, way, found, dense, seconds)
                    print(arch, seed, share, way, f"{found:.4f} {seconds} s", flush=True)
                keras.backend.clear_session()
                model = trained(arch, seed, options.out, x, y)
    (options.out / "distillation.md").write_text(table(results.rows))


if __name__ == "__main__":
    main()
