"""Trains LeNet-5-Caffe with weights of few bits beside float ones, and with integers all through.

Run it: python benchmarks/quantized_training.py --seeds 0 1 2 3 4

Each network of `guidance.py` is trained on for some epochs with float weights, with ternary ones,
whose scales are fitted when an epoch begins or learned, with weights of 8 bits, and with weights
and activations of 8 bits, all else equal. The last two are exported as full-integer LiteRT files:
the activations of the one have the ranges of 1 000 training images, those of the other the ranges
that training saw. Accuracies are those on the 10 000 test images, the files' in LiteRT. Results are
written as they come: an interrupted run goes on where it was. The table (quantized_training.md) has
means ± standard deviations, and differences within networks.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np
from guidance import Results, accuracy, predictions, scaled, trained

import sgdap

COLUMNS = ("seed", "weights", "epochs", "accuracy", "seconds")
ALL, LEARNED = "int8, activations trained too", "ternary, scales learned"
KINDS = ("float32", "ternary", LEARNED, "int8", ALL)
MEASURED = "int8, activations too"


def trained_on(model, x, y, kind, seed, epochs):
    keras.utils.set_random_seed(seed)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, epochs * -(-len(x) // 128))
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    options = {
        "ternary": {"scheme": "ternary"},
        LEARNED: {"scheme": "ternary", "learned_scales": True},
        "int8": {"scheme": "int8"},
        ALL: {"scheme": "int8", "activations": "int8"},
    }
    few = [sgdap.QuantizationCallback(**options[kind], verbose=0)] if kind in options else []
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0, callbacks=few)
    return few[0].ranges if kind == ALL else None


def integers_all_through(model, ranges, x, x_test, folder):
    """What a full-integer file answers on the test images."""
    from ai_edge_litert.interpreter import Interpreter

    path = folder / "full.tflite"
    data = {"data": x[:1000], "samples": 1000} if ranges is None else {"ranges": ranges}
    sgdap.export(model, path, quantize="int8", verbose=0, **data)
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (taken,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = taken["quantization"]
    whole = np.clip(np.rint(x_test / scale) + zero, -128, 127).astype(np.int8)
    found = []
    for image in whole:
        interpreter.set_tensor(taken["index"], image[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(made["index"])[0])
    return np.array(found)


def table(rows):
    """Markdown: a row for each kind of weights."""
    found = defaultdict(dict)
    for row in rows:
        found[row["epochs"], row["weights"]][row["seed"]] = 100 * float(row["accuracy"])
    lines = ["| weights | epochs | test accuracy % | less float |", "|" + " --- |" * 4]
    for (epochs, kind), own in found.items():
        both = [seed for seed in own if seed in found[epochs, "float32"]]
        apart = [own[seed] - found[epochs, "float32"][seed] for seed in both]
        values = list(own.values())
        spread = [f"{np.mean(v):.2f} ± {np.std(v, ddof=len(v) > 1):.2f}" for v in (values, apart)]
        lines.append(f"| {kind} | {epochs} | {spread[0]} ({len(values)}) | {spread[1]} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="the networks, by number")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--data", help="an .npz in Keras' format; default: MNIST of Keras")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist(options.data)
    x, x_test = scaled(x), scaled(x_test)
    results = Results(options.out / "quantized_training.csv", COLUMNS)
    for seed in options.seeds:
        for kind in KINDS:
            if results.has(seed, kind, options.epochs):
                continue
            model = trained("caffe", seed, options.out, x, y)
            began = time.perf_counter()
            ranges = trained_on(model, x, y, kind, seed, options.epochs)
            seconds = f"{time.perf_counter() - began:.0f}"
            found = accuracy(predictions(model, x_test), y_test)
            if kind in ("int8", ALL):
                made = integers_all_through(model, ranges, x, x_test, options.out)
                full = accuracy(made, y_test)
                results.add(
                    seed, MEASURED if kind == "int8" else ALL, options.epochs, full, seconds
                )
            if kind != ALL:
                results.add(seed, kind, options.epochs, found, seconds)
            print(*results.rows[-1].values(), flush=True)
            keras.backend.clear_session()
    (options.out / "quantized_training.md").write_text(table(results.rows))


if __name__ == "__main__":
    main()
