"""The smallest file of LeNet-5-Caffe that tells at least 99.04 % of the digits of MNIST.

Run it:    python benchmarks/smallest_lenet.py --seeds 0 1 2 3 4
Test them: python benchmarks/smallest_lenet.py --check

Each dense network of `guidance.py` (20-50-500-10) goes through five steps, all of them on moved
training images:

1. `sgdap.SGDAPCallback` makes a slim teacher of it.
2. `SGDAPCallback` and `SparsityCallback` in one fit make the teacher smaller still, with
   `DistillationCallback`.
3. `QuantizationCallback` trains the kernels on integers of few bits, again with the teacher.
4. Biases of convolutions go into the next layer's, which is exact; the others and the scales are
   rounded.
5. `sgdap.pack` writes the file. All its bytes count: architecture, scales, codes, checksum.

`--validate` trains everything on the first 50 000 images and tests on the other 10 000 training
images: settings are chosen so. The models of all steps are kept in the folder `--out`, and an
interrupted run goes on behind the last one. The files go to `results/smallest_lenet`.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
from guidance import Results, accuracy, predictions, scaled, trained
from published import Images

import sgdap
from sgdap.quantization import Affine

FILES = Path(__file__).parent / "results" / "smallest_lenet"
COLUMNS = ("data", "seed", "setting", "step", "accuracy", "weights", "zeros", "bytes", "seconds")
SETTING = {
    "batch": 64,
    "moved": 1,
    "teacher_flops": 0.15,
    "teacher_epochs": 6,
    "teacher_rate": 2e-3,
    "params": 6900,
    "hidden": 0,  # units of the hidden layer; 0: as many as the plan keeps
    "sparsity": 0.72,
    "slim_epochs": 26,
    "slim_rate": 3e-3,
    "bits": "4434",
    "learned_scales": 1,
    "code_epochs": 12,
    "code_rate": 0.002,
    "temperature": 4.0,
    "bias_bits": 6,
}


class Run:
    """The steps of one network, each saved under its name."""

    def __init__(self, seed, data, setting, folder, results):
        (self.x, self.y), (self.x_test, self.y_test) = data
        self.seed, self.setting, self.folder, self.results = seed, setting, folder, results

    def step(self, name, make, before):
        """The model of a step, read from the folder or made from the one before it."""
        path = self.folder / f"{name}.keras"
        if path.exists():
            return keras.models.load_model(path, compile=False)
        keras.utils.set_random_seed(self.seed)
        began = time.perf_counter(), time.process_time()
        made = make(before)
        seconds = time.process_time() - began[1]
        made.save(path)
        self.note(name, made, seconds)
        return made

    def note(self, name, model, seconds, size=""):
        found = accuracy(predictions(model, self.x_test), self.y_test)
        kernels = [np.asarray(layer.kernel) for layer in model.layers if layer.weights]
        count = sum(own.size for own in kernels)
        zeros = sum(int((own == 0).sum()) for own in kernels) / count
        widths = "-".join(str(own.shape[-1]) for own in kernels)
        self.results.add(
            *(self.results.data, self.seed, json.dumps(self.setting, sort_keys=True), name),
            *(found, count, f"{zeros:.3f}", size, f"{seconds:.0f}"),
        )
        line = f"{name} {found:.4f} {widths} {count} weights, {zeros:.0%} zeros"
        print(self.results.data, self.seed, line, size, f"{seconds:.0f} s of CPU", flush=True)

    def fit(self, model, epochs, rate, callbacks):
        own = self.setting
        images = Images(self.x, self.y, own["batch"], own["moved"], self.seed)
        decaying = keras.optimizers.schedules.CosineDecay(rate, epochs * len(images))
        model.compile(keras.optimizers.Adam(decaying), "sparse_categorical_crossentropy")
        model.fit(images, epochs=epochs, callbacks=callbacks, verbose=0)
        return model

    def calibration(self):
        return self.x[:4000], self.y[:4000]

    def teacher(self, dense):
        own = self.setting
        pruning = sgdap.SGDAPCallback(
            sgdap.Budget(flops=own["teacher_flops"]),
            calibration_data=self.calibration(),
            round_to=1,
            verbose=0,
        )
        return self.fit(dense, own["teacher_epochs"], own["teacher_rate"], [pruning])

    def slim(self, teacher):
        own = self.setting
        model = keras.models.clone_model(teacher)
        model.set_weights(teacher.get_weights())
        pruning = sgdap.SGDAPCallback(
            sgdap.Budget(params=own["params"]),
            calibration_data=self.calibration(),
            overrides={"dense1": own["hidden"] / teacher.get_layer("dense1").units}
            if own["hidden"]
            else None,
            round_to=1,
            verbose=0,
        )
        zeros = sgdap.SparsityCallback(
            own["sparsity"], calibration_data=self.calibration(), verbose=0
        )
        callbacks = [pruning, *([zeros] if own["sparsity"] else []), self.teaching(teacher)]
        return self.fit(model, own["slim_epochs"], own["slim_rate"], callbacks)

    def codes(self, slim, teacher):
        own = self.setting
        names = [layer.name for layer in slim.layers if layer.weights]
        schemes = {
            name: Affine(bits=int(bits), per="tensor")
            for name, bits in zip(names, own["bits"], strict=True)
        }
        slim = sgdap.quantize(slim, self.calibration(), "ternary", overrides=schemes)
        coding = sgdap.QuantizationCallback(
            "ternary", overrides=schemes, learned_scales=bool(own["learned_scales"]), verbose=0
        )
        callbacks = [coding, self.teaching(teacher)]
        return self.fit(slim, own["code_epochs"], own["code_rate"], callbacks)

    def teaching(self, teacher):
        return sgdap.DistillationCallback(teacher, self.setting["temperature"])

    def file(self, path):
        """All steps; writes the file."""
        dense = trained("caffe", self.seed, self.folder.parent, self.x, self.y)
        teacher = self.step("teacher", self.teacher, dense)
        slim = self.step("slim", self.slim, teacher)
        codes = self.step("codes", lambda model: self.codes(model, teacher), slim)
        small = rounded(without_convolution_biases(codes), self.setting["bias_bits"])
        size = sgdap.pack(small, path)
        again = sgdap.unpack(path)
        self.note("file", again, 0, size)
        keras.backend.clear_session()


def without_convolution_biases(model):
    """The same network with what the biases of convolutions do in those of the dense layers.

    The convolutions are linear and pad nothing, and the largest of some numbers plus a constant is
    the largest plus it, so a bias is a constant that the next layer reads.
    """
    made = type(model).from_config(model.get_config())  # not compiled: a file tells how
    made.set_weights(model.get_weights())
    first, second, hidden = (layer for layer in made.layers[:-1] if layer.weights)
    constant = np.asarray(first.bias, np.float64)
    constant = constant @ np.asarray(second.kernel, np.float64).sum(axis=(0, 1)) + second.bias
    positions = hidden.kernel.shape[0] // len(constant)
    hidden.bias.assign(np.tile(constant, positions) @ hidden.kernel + hidden.bias)
    for layer in (first, second):
        layer.bias.assign(np.zeros(layer.bias.shape))
    return made


def rounded(model, bits):
    """The network with biases on few levels, and all scales in 16 bits (bfloat16)."""
    for layer in (layer for layer in model.layers if layer.weights):
        kernel = np.asarray(layer.kernel, np.float64)
        step = np.abs(kernel[kernel != 0]).min()
        layer.kernel.assign(np.rint(kernel / step) * halved(step) + 0.0)  # no −0
        bias = np.asarray(layer.bias, np.float64)
        if bias.any():
            step = halved(np.abs(bias).max() / (2 ** (bits - 1) - 1))
            layer.bias.assign(np.rint(bias / step) * step + 0.0)
    return model


def halved(number):
    """The nearest number whose last 16 bits are zero in float32."""
    bits = np.float32(number).view(np.uint32)
    return float(((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32))


def check(x_test, y_test):
    """Tests the files that lie in the folder."""
    found = []
    for path in sorted(FILES.glob("*.sgdap")):
        right = accuracy(predictions(sgdap.unpack(path), x_test), y_test)
        found.append((right, path.stat().st_size))
        print(f"{path.name}: {found[-1][1]} bytes, {right:.2%}")
    if len(found) > 1:
        (right, size), (spread, apart) = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
        print(f"mean: {size:.0f} ± {apart:.0f} bytes, {100 * right:.2f} ± {100 * spread:.2f} %")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="the networks, by number")
    parser.add_argument("--set", nargs="*", default=[], help="another setting, as sparsity=0.6")
    parser.add_argument("--name", default="", help="folder for the models of other settings")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--check", action="store_true", help="tests the files that are there")
    parser.add_argument("--data", help="an .npz in Keras' format; default: MNIST of Keras")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    options = parser.parse_args()

    (x, y), (x_test, y_test) = sgdap.datasets.load_mnist(options.data)
    x, x_test = scaled(x), scaled(x_test)
    if options.check:
        check(x_test, y_test)
        return
    changes = dict(own.split("=") for own in options.set)
    setting = SETTING | {name: type(SETTING[name])(own) for name, own in changes.items()}
    out = options.out / "validation" if options.validate else options.out
    if options.validate:
        (x, y), (x_test, y_test) = (x[:50_000], y[:50_000]), (x[50_000:], y[50_000:])
    results = Results(options.out / "smallest_lenet.csv", COLUMNS)
    results.data = "validation" if options.validate else "test"
    for seed in options.seeds:
        folder = out / f"smallest-{seed}{options.name}"
        folder.mkdir(parents=True, exist_ok=True)
        FILES.mkdir(parents=True, exist_ok=True)
        path = (folder if options.validate or options.name else FILES) / f"caffe-{seed}.sgdap"
        if not path.exists():
            Run(seed, ((x, y), (x_test, y_test)), setting, folder, results).file(path)


if __name__ == "__main__":
    main()
