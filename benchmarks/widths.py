"""Measures what rounded widths bring in a runtime: latency against FLOPs, by `round_to`.

Run it: taskset --cpu-list 0 python benchmarks/widths.py

Each network is planned to half of its FLOPs for each `round_to`, and the slim one is timed against
the whole one in the same process, in turns, in LiteRT, ONNX Runtime and a compiled function (the
SavedModel's). The times are ratios: below 1 is faster. Latency knows no weights, so those of the
large networks are random and the channels are chosen by the filters' norms; LeNet-5-Caffe and the
small ResNet are trained on MNIST for an epoch and pruned by the LASSO.
Results are written as they come, and an interrupted run goes on where it was.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np
from guidance import Results, resnet, scaled

import sgdap
from sgdap.demo import lenet5
from sgdap.execution.latency import NoisyClockError, Stopwatch

COLUMNS = ["network", "flops", "round_to", "runtime", "batch", "kept", "ratio", "widths"]
ROUNDED = ("1", "4", "8", "16", "auto")
RUNTIMES = ("litert", "onnx", "keras")


def trained(model):
    """A small network after an epoch of MNIST, and images."""
    (x, y), _ = sgdap.datasets.load_mnist()
    x = scaled(x)
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=128, verbose=0)
    return model, x[:1000], {}


def untrained(model):
    """A large network with random weights, and noise."""
    x = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype("float32")
    return model, x, {"guidance": "magnitude", "allocation": "layerwise", "reconstruction": False}


NETWORKS = {
    "LeNet-5-Caffe": lambda: trained(lenet5("caffe")),
    "small ResNet": lambda: trained(resnet()),
    "ResNet-50": lambda: untrained(keras.applications.ResNet50(weights=None)),
    "MobileNetV2": lambda: untrained(keras.applications.MobileNetV2(weights=None)),
}


def table(rows):
    """Markdown: for each network and batch the ratios by runtime, of each `round_to`."""
    text = []
    cells = defaultdict(dict)
    kept = {}
    for row in rows:
        network, rounded = row["network"], row["round_to"]
        cells[network, int(row["batch"])][rounded, row["runtime"]] = row["ratio"]
        kept[network, rounded] = row["kept"]
    text.append("| network | batch | round_to | FLOPs | " + " | ".join(RUNTIMES) + " |")
    text.append("| --- | --- | --- | --- |" + " --- |" * len(RUNTIMES))
    for network, batch in sorted(cells):
        for rounded in ROUNDED:
            found = [cells[network, batch].get((rounded, runtime), "") for runtime in RUNTIMES]
            share = kept.get((network, rounded), "")
            text.append(f"| {network} | {batch} | {rounded} | {share} | {' | '.join(found)} |")
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--flops", type=float, default=0.5, help="the share of FLOPs to keep")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--out", type=Path, default=Path("runs/widths"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "widths.csv", COLUMNS)
    for name in options.network:
        keras.utils.set_random_seed(0)
        model, x, arguments = NETWORKS[name]()
        budget = sgdap.Budget(flops=options.flops)
        slim, kept, widths = {}, {}, {}
        for rounded in ROUNDED:
            round_to = rounded if rounded == "auto" else int(rounded)
            plan = sgdap.plan(model, x, budget, round_to=round_to, **arguments)
            slim[rounded] = sgdap.apply(model, plan)
            kept[rounded] = f"{plan.flops[1] / plan.flops[0]:.3f}"
            widths[rounded] = "-".join(str(len(group.kept)) for group in plan.groups)
        for runtime in RUNTIMES:
            for batch in options.batches:
                watch = None
                for rounded, copy in slim.items():
                    run = name, options.flops, rounded, runtime, batch
                    if results.has(*run):
                        continue
                    try:
                        watch = watch or Stopwatch(model, batch, runtime)
                        ratio = f"{watch.seconds_of(copy) / watch.seconds:.2f}"
                    except NoisyClockError:
                        ratio = "noisy"
                    results.add(*run, kept[rounded], ratio, widths[rounded])
                    print(*run, kept[rounded], ratio, flush=True)
        (options.out / "widths.md").write_text(table(results.rows))


if __name__ == "__main__":
    main()
