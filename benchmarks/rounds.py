"""Compares ways to spread the rounds of pruning over a run: accuracy after `fit`, by network.

Run it: python benchmarks/rounds.py --epochs 4 8 16 --shares 0.3 0.1 --seeds 0 1

Each network is trained on Fashion-MNIST once, or read from the folder if it was trained before.
Each run trains a copy of it on, with a learning rate that decays to zero, and prunes it on the
way; its seed decides the order of the images. The way "cubic 3 2" prunes in three rounds of the
schedule "cubic", before epochs 0, 2 and 4; "before" in one shot before the run, which is then plain
fine-tuning; "default" with nothing but a budget; " teacher" behind it adds the whole network as a
teacher. An epoch is short, so that the ways differ: it draws a few thousand of the 60 000 images.
Results are written as they come: an interrupted run goes on where it was, and runs with other
options add to earlier ones. The table (rounds.md) shows all results in the folder.
"""

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from guidance import Results, accuracy, predictions, resnet, scaled
from keras import layers

import sgdap
from sgdap.demo import lenet5
from sgdap.training.schedule import SCHEDULES

BATCH = 128
RESULTS = "rounds.csv"
COLUMNS = [
    *("arch", "seed", "images", "epochs", "share", "rate", "way"),
    *("accuracy", "dense", "rounds", "flops", "seconds"),
]
TEACHER = " teacher"
WAYS = (
    *("before", "default", "geometric 1 1"),
    *(
        f"{schedule} {rounds} {every}"
        for rounds, every in ((2, 1), (3, 1), (4, 1), (2, 2), (2, 3), (3, 2), (5, 1), (7, 1))
        for schedule in ("geometric", "cubic", "linear")
    ),
)


def transformer() -> keras.Model:
    """Two blocks, 64 wide, four heads, on the 16 patches of 7×7 pixels of an image."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(64, 7, strides=7)(inputs)
    x = layers.Reshape((16, 64))(x)
    x = layers.Add()([x, layers.Embedding(16, 64)(keras.ops.arange(16)[None])])
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 16)(y, y)])
        y = layers.Dense(128, "gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(64)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10, "softmax")(x), name="transformer")


@dataclass(frozen=True)
class Network:
    """A network of the comparison: how it is made, trained, and how long an epoch of a run is."""

    make: object
    trained_epochs: int
    images: int


NETWORKS = {
    "caffe": Network(lambda: lenet5("caffe"), 5, 10_000),
    "resnet": Network(resnet, 5, 4_000),
    "transformer": Network(transformer, 8, 10_000),
}


def fit(model, x, y, seed, epochs, images, rate, decays, callbacks=()):
    """Trains on epochs of `images` images each, drawn without repeats until all have been seen."""
    random = np.random.default_rng(seed)
    needed = epochs * images
    turns = [random.permutation(len(x)) for _ in range(-(-needed // len(x)))]
    order = np.concatenate(turns)[:needed]
    steps = images // BATCH
    if decays:
        rate = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")

    class Batches(keras.utils.PyDataset):
        epoch = 0

        def __len__(self):
            return steps

        def __getitem__(self, i):
            start = self.epoch * images + i * BATCH
            chosen = order[start : start + BATCH]
            return x[chosen], y[chosen]

        def on_epoch_end(self):
            self.epoch = (self.epoch + 1) % epochs

    model.fit(Batches(), epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))


def trained(arch, folder, x, y):
    """A network, read from the folder, or trained and saved there."""
    path = folder / f"{arch}.keras"
    if path.exists():
        return keras.models.load_model(path)
    keras.utils.set_random_seed(0)
    model = NETWORKS[arch].make()
    fit(model, x, y, 0, NETWORKS[arch].trained_epochs, len(x), 2e-3, True)
    unfinished = path.with_suffix(".part.keras")
    model.save(unfinished)
    unfinished.rename(path)
    return model


def rounds_of(way):
    """The number of rounds of a way and the epoch of the last one; none where it has no number."""
    words = way.removesuffix(TEACHER).split()
    return (int(words[1]), (int(words[1]) - 1) * int(words[2])) if len(words) == 3 else (0, 0)


def pruned(model, way, budget, x, y, seed, epochs, images, rate, decays):
    """Trains a network on and prunes it; returns it and the epochs after which it shrank."""
    options = {"samples": 1000, "seed": seed}
    callbacks = []
    if way == "before":
        model = sgdap.apply(model, sgdap.plan(model, x[:1000], budget, **options))
    else:
        arguments = {"teacher": True} if way.endswith(TEACHER) else {}
        rule = way.removesuffix(TEACHER)
        if rule != "default":
            schedule, rounds, every = rule.split()
            arguments |= {
                "schedule": SCHEDULES[schedule](rounds=int(rounds)),
                "frequency": int(every),
                "final_finetune_epochs": 1,
            }
        callbacks.append(
            sgdap.SGDAPCallback(budget, jit_compile=None, verbose=0, **options, **arguments)
        )
    fit(model, x, y, seed + 1000, epochs, images, rate, decays, callbacks)
    return model, [r.epoch for c in callbacks for r in c.rounds]


def table(rows):
    """Markdown: for each network, rate and length of the run a table of ways by share."""
    text = []
    cells = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    dense = {}
    for row in rows:
        head = row["arch"], row["rate"], int(row["epochs"]), int(row["images"])
        cells[head][row["way"]][float(row["share"])].append(100 * float(row["accuracy"]))
        dense[row["arch"]] = 100 * float(row["dense"])
    for head in sorted(cells):
        arch, rate, epochs, images = head
        shares = sorted({share for by_share in cells[head].values() for share in by_share})
        text.append(
            f"\n### {arch}, {epochs} epochs of {images} images, {rate} (dense {dense[arch]:.2f})\n"
        )
        text.append("| way | " + " | ".join(f"{s:.0%}" for s in reversed(shares)) + " |")
        text.append("| --- |" + " --- |" * len(shares))
        for way in sorted(cells[head], key=lambda w: (rounds_of(w), w)):
            found = [cells[head][way].get(share, []) for share in reversed(shares)]
            words = [f"{np.mean(f):.2f} ({len(f)})" if f else "" for f in found]
            text.append(f"| {way} | " + " | ".join(words) + " |")
    return "\n".join(text).strip() + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--epochs", nargs="+", type=int, default=[8], help="epochs of a run")
    parser.add_argument("--images", type=int, help="of an epoch; default: a few thousand")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1], help="FLOPs to keep")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="the seeds, by number")
    parser.add_argument("--ways", nargs="+", default=WAYS, help='such as "cubic 3 2"')
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of Adam")
    parser.add_argument("--constant", action="store_true", help="the rate does not decay")
    parser.add_argument("--time-limit", type=float, default=np.inf, help="no new run after seconds")
    parser.add_argument("--data", help="an .npz in Keras' format; default: Fashion-MNIST of Keras")
    parser.add_argument("--out", type=Path, default=Path("runs/rounds"))
    options = parser.parse_args()

    began = time.perf_counter()
    if options.data:
        (x, y), (x_test, y_test) = sgdap.datasets.load_mnist(options.data)
    else:
        (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    x, x_test = scaled(x), scaled(x_test)
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / RESULTS, COLUMNS)
    rate = f"{'constant' if options.constant else 'decaying'} {options.rate:g}"
    runs = [
        (arch, seed, options.images or NETWORKS[arch].images, epochs, share, rate, way)
        for seed in options.seeds
        for epochs in options.epochs
        for share in options.shares
        for way in options.ways
        for arch in options.arch
        if rounds_of(way)[1] < epochs - 1
    ]
    dense = {}
    for run in runs:
        arch, seed, images, epochs, share, _, way = run
        if time.perf_counter() - began > options.time_limit:
            break
        if results.has(*run):
            continue
        model = trained(arch, options.out, x, y)
        if arch not in dense:
            dense[arch] = accuracy(predictions(model, x_test), y_test)
        keras.utils.set_random_seed(seed)
        start = time.perf_counter()
        whole = sgdap.profile(model, latency=False).flops
        rates = options.rate, not options.constant
        budget = sgdap.Budget(flops=share)
        model, shrank = pruned(model, way, budget, x, y, seed, epochs, images, *rates)
        seconds = time.perf_counter() - start
        found = accuracy(predictions(model, x_test), y_test)
        flops = sgdap.profile(model, latency=False).flops / whole
        epochs_of_rounds = "-".join(map(str, shrank))
        known = dense[arch]
        results.add(*run, found, known, epochs_of_rounds, f"{flops:.4f}", f"{seconds:.1f}")
        print(*run, f"{found:.4f} {seconds:.1f} s", flush=True)
        keras.backend.clear_session()
    (options.out / "rounds.md").write_text(table(results.rows))


if __name__ == "__main__":
    main()
