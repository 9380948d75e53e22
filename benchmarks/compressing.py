"""A recipe on LeNet-5-Caffe: bytes and time of the file that comes out beside the dense one's.

Run it: python benchmarks/compressing.py --seeds 0 1 2 3 4

The networks are those of `guidance.py`. `sgdap.compress` takes the recipe and the 60 000 training
images, of which it holds a tenth back to judge by; no test image is seen before the end. Both
LiteRT files are timed in turns in one process, one thread, one image in each call. Written to
compressing.csv and compressing.md; an interrupted run goes on where it was.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np
from guidance import Results, accuracy, scaled, trained

import sgdap

COLUMNS = ("seed", "recipe", "dense", "compressed", "dense_bytes", "bytes", "ratio", "seconds")
TURNS = 20


class File:
    """A LiteRT file in its interpreter, on one thread."""

    def __init__(self, path):
        from ai_edge_litert.interpreter import Interpreter

        self._own = Interpreter(str(path), num_threads=1)
        self._own.allocate_tensors()
        (self._taken,), (self._made,) = (
            self._own.get_input_details(),
            self._own.get_output_details(),
        )

    def stored(self, image):
        scale, zero = self._taken["quantization"]
        if not scale:
            return image[None]
        return np.clip(np.rint(image / scale) + zero, -128, 127).astype(np.int8)[None]

    def answer(self, stored):
        self._own.set_tensor(self._taken["index"], stored)
        self._own.invoke()
        return self._own.get_tensor(self._made["index"])[0]


def times_faster(first, second, image):
    """How many times faster the second file answers: the ratio of medians, in turns."""
    stored = [own.stored(image) for own in (first, second)]
    found = [[], []]
    for _ in range(TURNS):
        for own, given, times in zip((first, second), stored, found, strict=True):
            own.answer(given)
            since = time.perf_counter()
            for _ in range(200):
                own.answer(given)
            times.append(time.perf_counter() - since)
    return float(np.median(found[0]) / np.median(found[1]))


def row(seed, recipe, epochs, folder, data):
    (x, y), (x_test, y_test) = data
    model = trained("caffe", seed, folder, x, y)
    model.compile(
        keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    before = folder / "dense.tflite"
    sgdap.export(model, before, data=x[:256], verbose=0)
    since = time.perf_counter()
    made = sgdap.compress(
        model, recipe, (x, y), epochs=epochs, seed=seed, workdir=folder / f"compressed-{seed}"
    )
    seconds = time.perf_counter() - since
    path = Path(next(own.path for own in made.report.stages if own.name == "export"))
    files = File(before), File(path)
    scores = [
        accuracy(np.stack([own.answer(own.stored(image)) for image in x_test]), y_test)
        for own in files
    ]
    sizes = before.stat().st_size, path.stat().st_size
    return (seed, Path(recipe).stem, *scores, *sizes, times_faster(*files, x_test[0]), seconds)


def table(rows):
    lines = ["| seed | dense | compressed | bytes | times smaller | times faster |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for own in rows:
        size, smaller = int(own["bytes"]), int(own["dense_bytes"]) / int(own["bytes"])
        lines.append(
            f"| {own['seed']} | {float(own['dense']):.2%} | {float(own['compressed']):.2%} | "
            f"{size:,} | {smaller:.0f} | {float(own['ratio']):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipe", default="mobile-int8")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", default="runs/benchmarks", type=Path)
    parser.add_argument("--data")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist(options.data)
    data = (scaled(x), y), (scaled(x_test), y_test)
    results = Results(options.out / "compressing.csv", COLUMNS)
    for seed in options.seeds:
        if not results.has(seed):
            results.add(*row(seed, options.recipe, options.epochs, options.out, data))
    (options.out / "compressing.md").write_text(table(results.rows))
    print(table(results.rows))


if __name__ == "__main__":
    main()
