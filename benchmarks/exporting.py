"""Files for other runtimes beside the Keras model: answers, bytes and times.

Run it: python benchmarks/exporting.py

LeNet-5 and a small ResNet are those of `guidance.py`, trained on MNIST; the 10 000 test images are
given to each file one by one. MobileNetV2 and EfficientNetB0 have random weights, normalised by the
statistics of their inputs, 64 random images of 96×96 pixels. Rows with a scheme are of the model
quantized without data, its normalisations folded first, and are compared with that model. Written
to exporting.csv and exporting.md.
"""

import argparse
import csv
from pathlib import Path

import keras
import numpy as np
from guidance import scaled, trained

import sgdap

KINDS = (
    ("model.keras", None, None),
    ("saved_model", None, None),
    ("model.onnx", None, None),
    ("model.xml", None, None),
    ("model.tflite", None, None),
    ("model.tflite", None, "float16"),
    ("model.tflite", None, "dynamic"),
    ("model.tflite", None, "int8"),
    ("model.tflite", "int8", None),
    ("model.tflite", "int4", None),
    ("model.tflite", "ternary", None),
)
COLUMNS = ("network", "file", "scheme", "quantize", "bytes", "difference", "agreement", "ms")
LARGE = {
    "MobileNetV2": keras.applications.MobileNetV2,
    "EfficientNetB0": keras.applications.EfficientNetB0,
}


def networks(archs, folder, data):
    """Names, models and inputs; the first 256 inputs are those that ranges are taken from."""
    for arch in archs:
        keras.utils.set_random_seed(0)
        if arch in LARGE:
            model = LARGE[arch](weights=None, input_shape=(96, 96, 3), classes=10)
            images = np.random.default_rng(0).random((64, 96, 96, 3), "float32")
            if arch == "EfficientNetB0":
                images *= 255
            for layer in model.layers:  # else activations die out, and all files answer the same
                layer.momentum = 0.0
            model(images, training=True)
        else:
            (x, y), (images, _) = sgdap.datasets.load_mnist(data)
            model, images = trained(arch, 0, folder, scaled(x), y), scaled(images)
        yield arch, model, images


def rows(arch, model, images, folder):
    folded = sgdap.fold(model, batch_normalization=True)
    for file, scheme, quantize in KINDS:
        chosen = sgdap.quantize(folded, None, scheme, compensate=False) if scheme else model
        try:
            report = sgdap.export(
                chosen, folder / file, quantize=quantize, data=images, samples=None, verbose=0
            )
        except (RuntimeError, ValueError) as error:
            print(arch, file, error)
            yield arch, file, scheme or "", quantize or "", "", "refused", "", ""
            continue
        yield (
            *(arch, file, scheme or "", quantize or "", report.bytes),
            *(f"{report.difference:.2g}", f"{report.agreement:.2%}", f"{1e3 * report.seconds:.3f}"),
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--archs", nargs="+", default=["lenet5", "resnet", *LARGE], help="the networks"
    )
    parser.add_argument("--data", help="an .npz in Keras' format; default: MNIST of Keras")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    for arch, model, images in networks(options.archs, options.out, options.data):
        for row in rows(arch, model, images, options.out):
            found.append(row)
            print(*row, flush=True)
    with (options.out / "exporting.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *found])
    lines = [COLUMNS, ["---"] * len(COLUMNS), *found]
    text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    (options.out / "exporting.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
