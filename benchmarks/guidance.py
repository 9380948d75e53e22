"""Compares the criteria: one-shot accuracy against the FLOPs kept, and the time of scoring.

Run it: python benchmarks/guidance.py --arch caffe lenet5 resnet --seeds 5

For each seed a network is trained, or read from the folder if it was trained before. Its
calibration pass is run once. All criteria choose channels from it, with and without refitting the
consumers. Nothing is trained after pruning. Results are written as they come: an interrupted run
goes on where it was, and runs with more seeds add to earlier ones. `--time` compares the time of a
cross-validated LASSO from moments with scikit-learn's on stored samples. Tables (report.md) and
figures show all results in the folder; `--seeds 0` only draws them.
"""

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np
from keras import layers
from sklearn.linear_model import LassoCV
from threadpoolctl import threadpool_limits

import sgdap
from sgdap.demo import lenet5
from sgdap.guidance import score_groups
from sgdap.guidance.score import group_data
from sgdap.pipeline import plan_from_curves
from sgdap.planning.allocation import check_budget_can_be_met
from sgdap.planning.options import PruningOptions
from sgdap.planning.scope import pruning_scope

CRITERIA = {
    "lasso": sgdap.LassoGuidance(),
    "second order": sgdap.SecondOrderGuidance(),
    "magnitude L1": sgdap.MagnitudeGuidance(1),
    "magnitude L2": sgdap.MagnitudeGuidance(2),
    "mean activation": sgdap.ActivationGuidance("mean"),
    "APoZ": sgdap.ActivationGuidance("apoz"),
    "Taylor": sgdap.TaylorGuidance(),
    "FPGM": sgdap.FPGMGuidance(),
    "batch norm scale": sgdap.BatchNormScaleGuidance(),
    "correlation": sgdap.CorrelationGuidance(),
    "random": sgdap.RandomGuidance(),
}
SHARES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05)
EPOCHS = {"caffe": 7, "lenet5": 7, "resnet": 4, "mobile": 4}
SAMPLE_COUNTS = (500, 1000, 2000, 4000, 8000, 16000)
RESULTS, TIMES, STAGES = "accuracy.csv", "time.csv", "stages.csv"


def resnet(blocks: int = 1) -> keras.Model:
    """Three stages of residual blocks of two 3×3 convolutions, 16, 32 and 64 channels wide."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            shortcut, strides = x, 2 if stage and not block else 1
            x = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization()(x)
            if strides > 1:
                shortcut = layers.Conv2D(width, 1, strides=strides, use_bias=False)(shortcut)
                shortcut = layers.BatchNormalization()(shortcut)
            x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, "softmax")(x), name="resnet")


def mobile() -> keras.Model:
    """Four depthwise convolutions with a pointwise one behind each, 16 to 64 channels wide."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for width, strides in ((32, 1), (32, 2), (64, 1), (64, 2)):
        x = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(width, 1, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, "softmax")(x), name="mobile")


def scaled(images):
    return images[..., None].astype("float32") / np.float32(255)


def trained(arch, seed, folder, x, y):
    """The network of a seed, read from the folder, or trained and saved there."""
    path = folder / f"{arch}-{seed}.keras"
    if path.exists():
        return keras.models.load_model(path)
    keras.utils.set_random_seed(seed)
    own = {"resnet": resnet, "mobile": mobile}
    model = own[arch]() if arch in own else lenet5(arch)
    steps = -(-len(x) // 128)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS[arch] * steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=128, epochs=EPOCHS[arch], verbose=0)
    unfinished = path.with_suffix(".part.keras")
    model.save(unfinished)
    unfinished.rename(path)
    return model


def predictions(model, x):
    found = [np.array(model(x[i : i + 1000], training=False)) for i in range(0, len(x), 1000)]
    return np.concatenate(found).astype(np.float64)


def accuracy(predicted, y):
    return float((predicted.argmax(axis=1) == y).mean())


def divergence(whole, slim):
    """Mean Kullback-Leibler divergence of predictions; it shows smaller changes than accuracy."""
    return float((whole * (np.log(whole + 1e-20) - np.log(slim + 1e-20))).sum(axis=1).mean())


class Results:
    """Rows of a CSV file: read at the start, appended one by one."""

    def __init__(self, path, columns):
        self.path, self.columns = path, columns
        if not path.exists():
            path.write_text(",".join(columns) + "\n")
        with path.open(newline="") as file:
            # Two runs at the same time may have measured the same.
            self.rows = list({tuple(row.values()): row for row in csv.DictReader(file)}.values())

    def add(self, *values):
        row = dict(zip(self.columns, map(str, values), strict=True))
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def has(self, *values):
        known = self.columns[: len(values)]
        wanted = list(map(str, values))
        return any([row[column] for column in known] == wanted for row in self.rows)


def measure_accuracy(arch, seed, options, data, results):
    """Measures the accuracies of one network that are still missing, and adds them."""
    (x, y), (x_test, y_test) = data
    criteria = [c for c in options.criteria if arch == "resnet" or c != "batch norm scale"]
    refits = [r for r in ("yes", "no") if r in options.refitted]
    missing = [
        (criterion, refitted, share)
        for criterion in criteria
        for refitted in refits
        for share in options.shares
        if not results.has(arch, seed, criterion, refitted, share)
    ]
    model = trained(arch, seed, options.out, x, y)
    dense = predictions(model, x_test)
    if not results.has(arch, seed, "dense", "no", 1.0):
        results.add(arch, seed, "dense", "no", 1.0, accuracy(dense, y_test), 0.0, "")
        print(f"{arch} {seed} dense {accuracy(dense, y_test):.4f}", flush=True)
    if not missing:
        return
    calibration = x[: options.samples]
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, calibration)
    curves = {}
    scope = pruning_scope(graph, PruningOptions())
    for criterion, refitted, share in missing:
        try:
            check_budget_can_be_met(graph, scope.groups, sgdap.Budget(flops=share), scope.rules)
        except ValueError:
            continue  # one channel per layer already costs more
        guidance, refit = CRITERIA[criterion], refitted == "yes"
        if (criterion, refit) not in curves:
            curves[criterion, refit] = score_groups(
                graph, statistics, guidance, reconstruction=refit
            )
        plan = plan_from_curves(
            scope,
            statistics,
            curves[criterion, refit],
            sgdap.Budget(flops=share),
            PruningOptions(guidance=guidance, reconstruction=refit, samples=None),
            calibration if refit else None,
        )
        slim = predictions(sgdap.apply(model, plan), x_test)
        found, apart = accuracy(slim, y_test), divergence(dense, slim)
        widths = "-".join(str(plan.widths[g.name]) for g in scope.groups)
        results.add(arch, seed, criterion, refitted, share, found, f"{apart:.6f}", widths)
        print(f"{arch} {seed} {criterion} refitted={refitted} {share}: {found:.4f}", flush=True)


def measure_stages(options, data, results):
    """Times each step of pruning LeNet-5-Caffe to 10 % of its FLOPs."""
    (x, y), _ = data
    model = trained("caffe", 0, options.out, x, y)
    calibration = x[: options.samples]
    guidance, budget = CRITERIA["lasso"], sgdap.Budget(flops=0.1)

    def timed(stage, work):
        wall, cpu = time.perf_counter(), time.process_time()
        made = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        results.add(stage, f"{wall:.2f}", f"{cpu:.2f}")
        print(f"stage: {results.rows[-1]}", flush=True)
        return made

    graph = timed("reading the channels", lambda: sgdap.channel_graph(model))
    statistics = timed("calibration pass", lambda: sgdap.collect_statistics(graph, calibration))
    curves = timed("scoring", lambda: score_groups(graph, statistics, guidance))

    def planned(images):
        options = PruningOptions(guidance=guidance, samples=None)
        scope = pruning_scope(graph, options)
        return plan_from_curves(scope, statistics, curves, budget, options, images)

    timed("allocation and the refit from moments", lambda: planned(None))
    plan = timed("the same, and the refit in turn on the data", lambda: planned(calibration))
    timed("surgery", lambda: sgdap.apply(model, plan))


def measure_time(options, data, results):
    """Times a cross-validated LASSO over the 500 units that the last layer of LeNet-5-Caffe reads.

    It measures CPU time with one thread for linear algebra, so that other work does not count.
    """
    (x, y), _ = data
    model = trained("caffe", 0, options.out, x, y)
    graph = sgdap.channel_graph(model)
    group = graph.group("dense1")
    hidden = keras.Model(model.inputs, model.get_layer("dense1").output)
    clock = time.process_time
    for count in SAMPLE_COUNTS:
        if results.has(count) or count > len(x):
            continue
        images = x[:count]
        start = clock()
        statistics = sgdap.collect_statistics(graph, images, folds=5)
        gathered = clock()
        with threadpool_limits(1, "blas"):
            known = group_data(graph, group, statistics)
            ours = sgdap.LassoGuidance().fit(known)
        ours_done = clock()
        # The same problem on samples: a row for each image and output, a column for each unit.
        units = np.concatenate([hidden(images[i : i + 500]) for i in range(0, count, 500)])
        (consumer,) = known.consumers
        units = units.astype(np.float64) - consumer.moments.total().mean[0]
        rows = (units[:, None, :] * consumer.weights.T).reshape(-1, group.size)
        target = rows.sum(axis=1)
        folds = np.arange(len(rows)) // consumer.weights.shape[1] % 5
        splits = [(np.flatnonzero(folds != f), np.flatnonzero(folds == f)) for f in range(5)]
        stored = clock()
        with threadpool_limits(1, "blas"):
            theirs = LassoCV(alphas=100, cv=splits, fit_intercept=False).fit(rows, target)
        done = clock()
        results.add(
            count,
            f"{gathered - start:.2f}",
            f"{ours_done - gathered:.2f}",
            f"{done - stored:.2f}",
            f"{ours.alpha:.3g}",
            f"{theirs.alpha_ * len(rows) / count:.3g}",  # our mean is over images
            f"{rows.nbytes / 1e6:.0f}",
        )
        print(f"time: {results.rows[-1]}", flush=True)


def gathered_by_arch(rows, column, factor):
    """`{arch: {(criterion, refitted): {share: [values]}}}`, in the order of CRITERIA."""
    order = {name: i for i, name in enumerate(("dense", *CRITERIA))}
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in sorted(rows, key=lambda r: (-len(r["refitted"]), order[r["criterion"]])):
        by_share = found[row["arch"]][row["criterion"], row["refitted"]]
        by_share[float(row["share"])].append(factor * float(row[column]))
    return {arch: found[arch] for arch in EPOCHS if arch in found}


def result_tables(rows):
    """Markdown: for each architecture the mean of each criterion and share."""
    text = []
    by_arch = gathered_by_arch(rows, "accuracy", 100)
    apart = gathered_by_arch(rows, "divergence", 1000)
    for arch, found in by_arch.items():
        dense = found.pop(("dense", "no"))[1.0]
        del apart[arch]["dense", "no"]
        text.append(
            f"### {arch}\n\nTest accuracy in %; dense {mean_and_deviation(dense)}; networks: "
            f"{len(dense)}. Where a number comes from fewer, it is followed by how many.\n"
        )
        text += table(found, len(dense))
        text.append(
            "\nDivergence of the predictions from those of the dense network, in thousandths:\n"
        )
        text += table(apart[arch], len(dense))
        text.append("")
    return "\n".join(text)


def table(found, networks):
    shares = sorted({s for by_share in found.values() for s in by_share}, reverse=True)
    text = ["| criterion | refitted | " + " | ".join(f"{s:.0%}" for s in shares) + " |"]
    text.append("| --- | --- |" + " --- |" * len(shares))
    for (criterion, refitted), by_share in found.items():
        cells = [cell(by_share.get(share, []), networks) for share in shares]
        text.append(f"| {criterion} | {refitted} | " + " | ".join(cells) + " |")
    return text


def cell(values, networks):
    if not values:
        return ""
    return mean_and_deviation(values) + (f" ({len(values)})" if len(values) < networks else "")


def mean_and_deviation(values):
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2f}"


def time_table(rows):
    text = [
        "CPU seconds of a LASSO over 500 units with 5 folds and 100 penalties:\n",
        "| images | calibration pass | LASSO from moments | LassoCV on stored samples "
        "| samples stored, MB | α, from moments and from samples |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda r: int(r["images"])):
        alphas = f"{row['alpha']}, {row['alpha_sklearn']}"
        text.append(
            f"| {row['images']} | {row['pass']} | {row['moments']} | {row['sklearn']} | "
            f"{row['stored_mb']} | {alphas} |"
        )
    return "\n".join(text)


def stage_table(rows):
    text = ["| step | seconds | CPU seconds |", "| --- | --- | --- |"]
    text += [f"| {row['stage']} | {row['wall']} | {row['cpu']} |" for row in rows]
    return "\n".join(text)


def draw_accuracy(rows, path):
    """Draws a panel for each architecture and kind of refit; the error's axis is logarithmic."""
    from matplotlib.figure import Figure

    by_arch = gathered_by_arch(rows, "accuracy", 100)
    figure = Figure(figsize=(11, 3.8 * len(by_arch)), layout="constrained")
    axes = figure.subplots(len(by_arch), 2, squeeze=False, sharey="row")
    styles = {name: (f"C{i}", "^sv<>PXD*d"[i]) for i, name in enumerate(list(CRITERIA)[1:])}
    styles["lasso"] = ("black", "o")
    for (arch, found), row in zip(by_arch.items(), axes, strict=True):
        dense = 100 - np.mean(found.pop(("dense", "no"))[1.0])
        for axis, (refitted, title) in zip(
            row, (("yes", "consumers refitted"), ("no", "weights as they were")), strict=True
        ):
            axis.axhline(dense, color="black", linestyle=":", linewidth=1, label="dense")
            for (criterion, kind), by_share in found.items():
                if kind != refitted:
                    continue
                shares = sorted(by_share)
                errors = [100 - np.mean(by_share[share]) for share in shares]
                color, marker = styles[criterion]
                wide = 2.2 if criterion == "lasso" else 1.0
                axis.plot(
                    np.array(shares) * 100,
                    errors,
                    color=color,
                    marker=marker,
                    markersize=4,
                    linewidth=wide,
                    label=criterion,
                )
            axis.set(xscale="log", yscale="log", xlabel="FLOPs kept, %", title=f"{arch}, {title}")
            axis.set_xlim(4.5, 90)
            axis.set_xticks([5, 10, 20, 30, 50, 80], ["5", "10", "20", "30", "50", "80"])
            axis.minorticks_off()
            axis.set_yticks([1, 2, 5, 10, 20, 50, 90], ["1", "2", "5", "10", "20", "50", "90"])
            axis.grid(alpha=0.3)
        row[0].set_ylabel("test error, %")
        lines = row[0].get_lines()
        row[1].legend(handles=lines, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110)


def draw_time(rows, path):
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda r: int(r["images"]))
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    images = [int(row["images"]) for row in rows]
    for column, label in (("sklearn", "LassoCV on samples"), ("moments", "from moments")):
        axis.plot(images, [float(row[column]) for row in rows], "o-", label=label)
    axis.set(xscale="log", yscale="log", xlabel="calibration images", ylabel="CPU seconds")
    axis.set_xticks(images, list(map(str, images)))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, default=5, help="networks of each architecture")
    parser.add_argument("--samples", type=int, default=4000, help="calibration images")
    parser.add_argument("--criteria", nargs="+", choices=list(CRITERIA), default=list(CRITERIA))
    parser.add_argument("--refitted", nargs="+", choices=["yes", "no"], default=["yes", "no"])
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="FLOPs to keep")
    parser.add_argument("--time", action="store_true", help="measure the time of scoring too")
    parser.add_argument("--out", type=Path, default=None, help="default: runs/guidance-<digits>")
    options = parser.parse_args()

    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist()
    data = (scaled(x), y), (scaled(x_test), y_test)
    options.out = options.out or Path(f"runs/guidance-{len(x)}")
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(
        options.out / RESULTS,
        ["arch", "seed", "criterion", "refitted", "share", "accuracy", "divergence", "widths"],
    )
    times = Results(
        options.out / TIMES,
        ["images", "pass", "moments", "sklearn", "alpha", "alpha_sklearn", "stored_mb"],
    )
    stages = Results(options.out / STAGES, ["stage", "wall", "cpu"])
    for arch in options.arch:
        for seed in range(options.seeds):
            measure_accuracy(arch, seed, options, data, results)
    if options.time:
        measure_time(options, data, times)
        if not stages.rows:
            measure_stages(options, data, stages)
    report = []
    if results.rows:
        report.append(result_tables(results.rows))
        draw_accuracy(results.rows, options.out / "accuracy.png")
    if times.rows:
        report.append(time_table(times.rows))
        draw_time(times.rows, options.out / "time.png")
    if stages.rows:
        report.append(stage_table(stages.rows))
    (options.out / "report.md").write_text("\n\n".join(report) + "\n")
    print(f"\n{options.out}: report.md, accuracy.png, time.png, {RESULTS}, {TIMES}")


if __name__ == "__main__":
    main()
