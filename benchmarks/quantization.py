"""Few bits for each weight, in one shot: sgdap.quantize beside AI Edge Quantizer.

Run it: python benchmarks/quantization.py --seeds 0 1 2 3 4

Each network of `guidance.py` is quantized on 4 000 training images without labels: each weight to
its nearest level ("rounded"), with compensation layer by layer ("layerwise"), and with the step
over all that is free ("together"). Written are the accuracy on the 10 000 test images, the mean
squared error of the probabilities and the bytes of the kernels, scales and codebooks included.

The peer needs an environment of its own, with ai-edge-quantizer and numpy. The first run leaves
each network as a LiteRT file, and the images beside it:

    python benchmarks/quantization.py --peer --seeds 0 1 2 3 4

quantizes these files, weights only, 8 and 4 bits for each weight and a scale for each output, by
each of its algorithms (and by GPTQ for dense layers with OCTAV for convolutions), and runs them in
LiteRT.

With `--files` each network is also exported to LiteRT as it is then, kernels as integers of 8 or 4
bits, and this file is run there as the peer's are ("…, file", with the bytes of the file):

    python benchmarks/quantization.py --files --methods layerwise --schemes int8 int4

Schemes that have no name are called as in OTHERS: those of one range for a whole kernel,

    python benchmarks/quantization.py --seeds 0 1 --fold --schemes int8-tensor int4-tensor

with normalisations folded away first ("…, folded"), and with even ranges too ("…, even").

And pairs of weights beside codebooks of as many bits,

    python benchmarks/quantization.py --schemes "4 levels-tensor" "16 pairs" "64 pairs"

Results are written as they come: an interrupted run goes on where it was. The table
(quantization.md) shows all results in the folder.
"""

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

SCHEMES = ("int8", "int4", "int3", "int2", "ternary", "quaternary", "binary")
OTHERS = {
    "int8-tensor": lambda q: q.Affine(bits=8, per="tensor"),
    "int4-tensor": lambda q: q.Affine(bits=4, per="tensor"),
    "4 levels-tensor": lambda q: q.Codebook(size=4, per="tensor"),
    "16 pairs": lambda q: q.Pairs(size=16),
    "8 levels-tensor": lambda q: q.Codebook(size=8, per="tensor"),
    "64 pairs": lambda q: q.Pairs(size=64),
    "25 qam": lambda q: q.QAM(size=25),
}
METHODS = {"rounded": False, "layerwise": "layerwise", "together": True}
PEERS = ("min_max_uniform_quantize", "MSE", "OCTAV", "GPTQ", "GPTQ and OCTAV")
COLUMNS = ("arch", "seed", "scheme", "method", "accuracy", "error", "bytes", "seconds")


class Rows:
    """The rows of a CSV file, as `guidance.Results`, where there is no Keras."""

    def __init__(self, path):
        self.path = path
        self.rows = list(csv.DictReader(path.open())) if path.exists() else []

    def has(self, *key):
        return any(tuple(row[c] for c in COLUMNS[:4]) == tuple(map(str, key)) for row in self.rows)

    def add(self, *values):
        new = not self.path.exists()
        self.rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(self.rows[-1])
        print(*values, flush=True)


def answers(content, images):
    """What a LiteRT file answers to images, one at a time, on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content, num_threads=1)
    (name, signature), *_ = runner.get_signature_list().items()
    runner.resize_tensor_input(runner.get_input_details()[0]["index"], (1, *images.shape[1:]))
    run = runner.get_signature_runner(name)
    inputs = signature["inputs"][0]
    return np.concatenate([next(iter(run(**{inputs: i[None]}).values())) for i in images])


def ours(options, rows):
    """Quantizes the networks, and leaves LiteRT files for the peer."""
    import keras
    from guidance import accuracy, predictions, scaled, trained

    import sgdap

    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist(options.data)
    x, x_test = scaled(x), scaled(x_test)
    images = options.out / "images.npz"
    if not images.exists():
        np.savez(images, x=x[: options.images], x_test=x_test, y_test=y_test)
    for seed in options.seeds:
        for arch in options.archs:
            model = trained(arch, seed, options.out, x, y)
            dense = predictions(model, x_test)
            file = options.out / f"{arch}-{seed}.tflite"
            if not file.exists():
                model.export(str(file), format="litert")
                np.save(file.with_suffix(".npy"), dense)
            if not rows.has(arch, seed, "float32", ""):
                size = 4 * sum(w.numpy().size for w in model.weights if w.name == "kernel")
                rows.add(arch, seed, "float32", "", accuracy(dense, y_test), 0.0, size, 0)
            for scheme in options.schemes:
                named = OTHERS.get(scheme)
                schemes = sgdap.quantization
                own = named(schemes) if named else schemes.get_scheme(scheme)
                ways = [(m, even) for m in options.methods for even in (False, True)]
                for method, even in ways if options.fold else [(m, None) for m in options.methods]:
                    state = {None: "", False: ", folded", True: ", even"}
                    title = method + state[even] + (", file" if options.files else "")
                    if rows.has(arch, seed, scheme, title):
                        continue
                    given = model
                    if options.fold:
                        given = sgdap.fold(model, batch_normalization=True, equalize=even)
                    began = time.perf_counter()
                    made = sgdap.quantize(
                        given, x[: options.images], own, compensate=METHODS[method]
                    )
                    seconds = f"{time.perf_counter() - began:.0f}"
                    if options.files:
                        written = options.out / "ours.tflite"
                        sgdap.export(made, written, check=False, verbose=0)
                        content = written.read_bytes()
                        found, size = answers(content, x_test), len(content)
                    else:
                        found = predictions(made, x_test)
                        kernels = [w.numpy() for w in model.weights if w.name == "kernel"]
                        size = sum(own.quantize(kernel).bits for kernel in kernels) // 8
                    error = f"{((found - dense) ** 2).mean():.3e}"
                    hit = accuracy(found, y_test)
                    rows.add(arch, seed, scheme, title, hit, error, size, seconds)
                    keras.backend.clear_session()


def peer(options, rows):
    """Quantizes the LiteRT files by AI Edge Quantizer."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe_manager
    from ai_edge_quantizer.qtyping import TFLOperationName

    with np.load(options.out / "images.npz") as file:
        x, x_test, y_test = file["x"], file["x_test"], file["y_test"]

    def quantized(path, bits, algorithm):
        made = quantizer.Quantizer(str(path))
        recipe = recipe_manager.RecipeManager()
        own = [(TFLOperationName.ALL_SUPPORTED, algorithm)]
        if algorithm == "GPTQ and OCTAV":  # GPTQ takes dense layers only
            own = [
                (TFLOperationName.ALL_SUPPORTED, "OCTAV"),
                (TFLOperationName.FULLY_CONNECTED, "GPTQ"),
            ]
        for operation, key in own:
            recipe.add_weight_only_config(".*", operation, bits, algorithm_key=key)
        made.load_quantization_recipe(recipe.get_quantization_recipe())
        known = None
        if made.need_calibration:
            runner = Interpreter(str(path))
            (name, signature), *_ = runner.get_signature_list().items()
            batches = [{signature["inputs"][0]: image[None]} for image in x]
            known = made.calibrate({name: batches})
        return bytes(made.quantize(known, enable_progress_report=False).quantized_model)

    for seed in options.seeds:
        for arch in options.archs:
            path = options.out / f"{arch}-{seed}.tflite"
            dense = np.load(path.with_suffix(".npy"))
            for bits in options.bits:
                for algorithm in PEERS:
                    if rows.has(arch, seed, f"int{bits}", algorithm):
                        continue
                    began = time.perf_counter()
                    try:
                        content = quantized(path, bits, algorithm)
                        seconds = f"{time.perf_counter() - began:.0f}"
                        found = answers(content, x_test)
                    except Exception as error:  # what it can't do stands in the table
                        print(arch, seed, bits, algorithm, type(error).__name__, error)
                        continue
                    hit = (found.argmax(axis=1) == y_test).mean()
                    apart = f"{((found - dense) ** 2).mean():.3e}"
                    scheme = f"int{bits}"
                    rows.add(arch, seed, scheme, algorithm, hit, apart, len(content), seconds)


def table(rows):
    """Markdown: the mean accuracy of each network, scheme and method, with its spread."""
    found = defaultdict(list)
    for row in rows:
        key = row["arch"], row["scheme"], row["method"]
        found[key].append((100 * float(row["accuracy"]), float(row["error"]), float(row["bytes"])))
    text = [
        "| network | weights | method | accuracy % | squared error | kB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    order = ("float32", *SCHEMES, *OTHERS)
    for (arch, scheme, method), own in sorted(
        found.items(), key=lambda item: (item[0][0], order.index(item[0][1]))
    ):
        hits, errors, sizes = zip(*own, strict=True)
        spread = f" ± {np.std(hits, ddof=1):.2f}" if len(hits) > 1 else ""
        text.append(
            f"| {arch} | {scheme} | {method} | {np.mean(hits):.2f}{spread} ({len(hits)}) "
            f"| {np.mean(errors):.1e} | {np.mean(sizes) / 1000:.1f} |"
        )
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archs", nargs="+", default=["caffe", "resnet"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="the networks, by number")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--fold", action="store_true", help="normalisations, and ranges")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--files", action="store_true", help="run as LiteRT files")
    parser.add_argument("--images", type=int, default=4000, help="calibration images")
    parser.add_argument("--peer", action="store_true", help="AI Edge Quantizer, on the files there")
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4], help="of the peer")
    parser.add_argument("--data", help="an .npz in Keras' format; default: MNIST of Keras")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = Rows(options.out / "quantization.csv")
    (peer if options.peer else ours)(options, rows)
    (options.out / "quantization.md").write_text(table(rows.rows))


if __name__ == "__main__":
    main()
