"""The demo: trains LeNet-5 on MNIST, prunes it in `fit` and serves it without sgdap."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sgdap._arguments import shown
from sgdap.callback import SGDAPCallback
from sgdap.channels import channel_graph
from sgdap.datasets import load_mnist
from sgdap.execution.latency import compare_latency
from sgdap.planning import Budget
from sgdap.report.profile import Profile, profile
from sgdap.surgery.apply import copy_model
from sgdap.training.log import joined

Array = npt.NDArray[Any]

BATCH_SIZE = 128

_SERVE = """
import sys
import numpy as np
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], np.concatenate([served.serve(b).numpy() for b in np.array_split(x, 10)]))
assert "sgdap" not in sys.modules
"""


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo.

    Attributes:
        dense: Profile of the dense model.
        slim: Profile of the slim model.
        latency: Median seconds of the dense and the slim model for a batch, by batch size.
        dense_accuracy: Test accuracy of the dense model.
        slim_accuracy: Test accuracy of the slim model.
        served_difference: Largest difference between the predictions of the slim model and of
            the SavedModel, loaded in a process without sgdap.
        seconds: Seconds that the whole demo took.
    """

    dense: Profile
    slim: Profile
    latency: Mapping[int, tuple[float, float]]
    dense_accuracy: float
    slim_accuracy: float
    served_difference: float
    seconds: float


def lenet5(arch: str = "lenet5") -> Any:
    """A LeNet-5 for 28×28 digits.

    Args:
        arch: `"lenet5"`: convolutions of 6 and 16 5×5 filters, dense layers of 120 and 84 units,
            dropout 0.5; `"caffe"`: 20 and 50 filters, 500 units (LeNet-5-Caffe).

    Returns:
        A built `keras.Sequential`, not compiled.

    Raises:
        ValueError: `arch` is unknown.
    """
    layers = keras.layers
    if arch == "lenet5":
        body = [
            layers.Conv2D(6, 5, padding="same", activation="relu", name="conv1"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(16, 5, activation="relu", name="conv2"),
            layers.MaxPooling2D(name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(120, activation="relu", name="dense1"),
            layers.Dense(84, activation="relu", name="dense2"),
            layers.Dropout(0.5, name="dropout"),
        ]
    elif arch == "caffe":
        body = [
            layers.Conv2D(20, 5, name="conv1"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(50, 5, name="conv2"),
            layers.MaxPooling2D(name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(500, activation="relu", name="dense1"),
        ]
    else:
        raise ValueError(f"arch must be 'lenet5' or 'caffe'. Received: arch={shown(arch)}")
    return keras.Sequential(
        [keras.Input((28, 28, 1)), *body, layers.Dense(10, activation="softmax", name="logits")],
        name=arch,
    )


def run_demo(
    arch: str = "lenet5",
    out: str | Path = "runs/demo",
    *,
    path: str | Path | None = None,
    flops: float = 0.3,
    params: float = 0.3,
    max_accuracy_drop: float = 0.003,
    epochs: int = 4,
    prune_epochs: int = 7,
    seed: int = 0,
    console: Console | None = None,
) -> DemoResult:
    """Trains a LeNet-5, prunes it with `SGDAPCallback`, saves, exports, reloads and compares.

    Args:
        arch: The architecture, as in `lenet5`.
        out: The folder for the models and the figure.
        path: MNIST as an `.npz` in Keras' format; None: as `sgdap.datasets.load_mnist` finds it.
        flops: The fraction of the FLOPs to keep.
        params: The fraction of the parameters to keep.
        max_accuracy_drop: The most that the validation accuracy may fall. It is raised to 0.01 if
            there are fewer than 20 000 digits.
        epochs: The number of epochs of the dense training.
        prune_epochs: The number of epochs of the run that prunes.
        seed: Seed for every random choice; `keras.utils.set_random_seed` is called with it.
        console: The console to print to.

    Returns:
        The `DemoResult`.

    Raises:
        ValueError: The data or an argument is invalid.
        RuntimeError: The SavedModel can't be served without sgdap.
    """
    console = console or Console()
    began = time.perf_counter()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(seed)
    (x, y), (x_test, y_test) = load_mnist(path)
    x, x_test = _scaled(x), _scaled(x_test)
    held_out = len(x) // 12
    validation = (x[-held_out:], y[-held_out:])
    x, y = x[:-held_out], y[:-held_out]
    steps = -(-len(x) // BATCH_SIZE)
    if len(x) < 20_000:  # few digits need more epochs and measure less exactly
        epochs, prune_epochs = 2 * epochs, 2 * prune_epochs
        max_accuracy_drop = max(max_accuracy_drop, 0.01)

    model = lenet5(arch)
    _compile(model, 2e-3, epochs * steps)
    console.print(f"\n[bold]1. Train {arch}[/] ({len(x):,} digits, {epochs} epochs)")
    _fit(model, (x, y), validation, epochs, None, console)
    dense = profile(model, latency=False)
    dense_model = _plain(model)
    dense_accuracy = _accuracy(model, x_test, y_test)
    dense_widths = _widths(model)
    dense_model.save(out / "dense.keras")

    console.print(
        f"\n[bold]2. Prune it while it trains on[/]: at most {flops:.0%} of the FLOPs and "
        f"{params:.0%} of the parameters ({prune_epochs} epochs)"
    )
    _compile(model, 1e-3, prune_epochs * steps)
    callback = SGDAPCallback(
        Budget(flops=flops, params=params),
        max_accuracy_drop=max_accuracy_drop,
        final_finetune_epochs=max(prune_epochs // 2, 1),
        frequency=max(prune_epochs // 8, 1),
        seed=seed,
    )
    dense_validation = _accuracy(model, *validation)
    history = _fit(model, (x, y), validation, prune_epochs, callback, console)
    slim = profile(model, latency=False)
    slim_accuracy = _accuracy(model, x_test, y_test)

    console.print("\n[bold]3. Save, export and serve without sgdap[/]")
    plain = _plain(model)
    plain.save(out / "model.keras")
    plain.export(out / "served", verbose=False)
    difference = _served_difference(plain, x_test, out)
    console.print(
        f"The SavedModel, loaded in another process without sgdap, predicts the same: largest "
        f"difference {difference:.1e}"
    )
    figure = _save_figure(out, history, dense, dense_widths, _widths(model), dense_validation)
    latency = {}
    for size in (1, BATCH_SIZE):
        before, after = compare_latency([dense_model, plain], size)
        latency[size] = (before, after)
    result = DemoResult(
        dense,
        slim,
        latency,
        dense_accuracy,
        slim_accuracy,
        difference,
        time.perf_counter() - began,
    )
    _print_tables(console, result, dense_widths, _widths(model), out)
    console.print(
        f"\nIn {out}: dense.keras, model.keras, served/ (SavedModel){figure}. "
        f"{result.seconds:.0f} s in all."
    )
    return result


class _Progress(keras.callbacks.Callback):
    """Shows a training run: a progress bar, and a line for each epoch."""

    def __init__(self, console: Console, pruner: SGDAPCallback | None) -> None:
        super().__init__()
        self._console = console
        self._pruner = pruner
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def on_train_begin(self, logs: Any = None) -> None:
        self._bar.start()
        total = self.params["epochs"] * self.params["steps"]
        self._task = self._bar.add_task("training", total=total, state="")

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._bar.advance(self._task)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        logs = logs or {}
        state = f"epoch {epoch + 1:2}: validation accuracy {logs.get('val_accuracy', 0):.2%}"
        if self._pruner is not None:
            widths = joined(self._pruner.widths[-1])
            state += f", {logs['flops'] / 1e3:,.0f}k FLOPs, widths {widths}"
        self._bar.update(self._task, state=state)
        self._console.print(state)

    def on_train_end(self, logs: Any = None) -> None:
        self._bar.stop()


def _fit(
    model: Any,
    data: Any,
    validation: Any,
    epochs: int,
    pruner: SGDAPCallback | None,
    console: Console,
) -> Mapping[str, list[float]]:
    progress = _Progress(console, pruner)
    try:
        history = model.fit(
            *data,
            batch_size=BATCH_SIZE,
            epochs=epochs,
            validation_data=validation,
            verbose=0,
            callbacks=[progress] if pruner is None else [pruner, progress],
        )
    finally:
        progress.on_train_end()
    found: Mapping[str, list[float]] = history.history
    return found


def _compile(model: Any, learning_rate: float, steps: int) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(
        keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )


def _scaled(images: Array) -> Array:
    return images[..., None].astype("float32") / np.float32(255)


def _accuracy(model: Any, x: Array, y: Array) -> float:
    return float(np.mean(model.predict(x, batch_size=1000, verbose=0).argmax(axis=1) == y))


def _widths(model: Any) -> dict[str, int]:
    return {group.name: group.size for group in channel_graph(model).groups if group.prunable}


def _plain(model: Any) -> Any:
    """A copy of a model without optimizer, to be shipped."""
    return copy_model(model, compiled=False)


def _served_difference(model: Any, x: Array, out: Path) -> float:
    images, answers = out / "images.npy", out / "served.npy"
    np.save(images, x)
    run = subprocess.run(
        [sys.executable, "-c", _SERVE, str(out / "served"), str(images), str(answers)],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"The SavedModel in {out / 'served'} can't be served:\n{run.stderr}")
    served = np.load(answers)
    images.unlink()
    answers.unlink()
    return float(np.abs(served - model.predict(x, batch_size=1000, verbose=0)).max())


def _save_figure(
    out: Path,
    history: Mapping[str, list[float]],
    dense: Profile,
    before: dict[str, int],
    after: dict[str, int],
    dense_validation: float,
) -> str:
    try:
        from sgdap.report.figures import plot_run

        figure = plot_run(
            [value / dense.flops for value in history["flops"]],
            history["val_accuracy"],
            before,
            after,
            dense_validation,
        )
    except ImportError:
        return ""
    figure.savefig(out / "pruning.png")
    return ", pruning.png"


def _print_tables(
    console: Console, result: DemoResult, before: dict[str, int], after: dict[str, int], out: Path
) -> None:
    dense, slim = result.dense, result.slim
    table = Table(title="Before and after", title_justify="left")
    for heading in ("", "dense", "slim", "kept"):
        table.add_column(heading, justify="left" if not heading else "right")
    difference = (result.slim_accuracy - result.dense_accuracy) * 100
    table.add_row(
        "test accuracy",
        f"{result.dense_accuracy:.2%}",
        f"{result.slim_accuracy:.2%}",
        f"{difference:+.2f} points",
    )
    sizes = [(out / name).stat().st_size for name in ("dense.keras", "model.keras")]
    for name, old, new, form in (
        ("parameters", dense.params, slim.params, "{:,}"),
        ("FLOPs a sample", dense.flops, slim.flops, "{:,}"),
        *((f"latency, batch of {n}, ms", *pair, "") for n, pair in result.latency.items()),
        ("file, bytes", sizes[0], sizes[1], "{:,}"),
    ):
        shown = [form.format(v) if form else f"{v * 1e3:.3f}" for v in (old, new)]
        table.add_row(name, *shown, f"{new / old:.1%}")
    console.print(table)
    widths = Table(title="Widths", title_justify="left")
    for heading in ("layer", "dense", "slim"):
        widths.add_column(heading, justify="left" if heading == "layer" else "right")
    for name, width in before.items():
        widths.add_row(name, str(width), str(after[name]))
    console.print(widths)
