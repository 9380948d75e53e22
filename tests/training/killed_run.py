"""A training run for `test_backup.py` that is killed and run again, as a script would be."""

import hashlib
import json
import os
import random
import select
import signal
import sys
import time
import warnings

import keras
import numpy as np
from keras import layers

from sgdap import Budget, SGDAPCallback
from tests.untuned import untuned_datasets

SCORES = [0.5, 0.6, 0.7, 0.1, 0.7, 0.1]
"""What the guard reads in each epoch: of the rounds some are kept, some undone."""


def digest(model: keras.Model) -> str:
    values = [*model.variables, *model.optimizer.variables]
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in values)).hexdigest()


def run(folder: str | None, drop: float | None, calibrate: bool, report=print) -> None:
    """Trains and prints each epoch that begins and what came out in the end."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    warnings.simplefilter("ignore")
    keras.utils.set_random_seed(5)
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    y = x[:, :3].argmax(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, "relu"),
            layers.Dropout(0.1),
            layers.BatchNormalization(),
            layers.Dense(10, "relu"),
            layers.Dense(3, "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adagrad(0.3), "sparse_categorical_crossentropy")
    callback = SGDAPCallback(
        Budget(flops=0.15),
        "activation",
        max_accuracy_drop=drop,
        monitor="score",
        mode="max",
        patience=1,
        begin_epoch=1,
        final_finetune_epochs=1,
        samples=40,
        calibration_data=x if calibrate else None,
        backup_dir=folder,
        jit_compile=None,
        reconstruction=False,
        verbose=0,
    )
    judge = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(score=SCORES[epoch])
    )
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda e, logs: report(f"epoch {e}"))
    model.fit(
        x,
        y,
        batch_size=64,
        epochs=len(SCORES),
        verbose=0,
        callbacks=[judge, callback, note],
    )
    widths = [layer.units for layer in model.layers if isinstance(layer, layers.Dense)]
    decisions = [(r.epoch, r.decision) for r in callback.rounds]
    report(f"end {digest(model)} {widths} {decisions}")


def kill_at(function: str, count: int) -> None:
    """Kills this process when a function of `os` is called for a certain time."""
    own, calls = getattr(os, function), []

    def deadly(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*args, **kwargs)

    setattr(os, function, deadly)


def attempt(arguments: tuple, kill_after: float | None = None, kill_in=None) -> list[str]:
    """Runs in a process of its own and returns what it printed until it ended or was killed.

    Args:
        arguments: Of `run`.
        kill_after: Seconds after its first epoch began when it is killed.
        kill_in: Arguments of `kill_at`.
    """
    reading, writing = os.pipe()
    process = os.fork()  # TensorFlow is imported but has not started anything yet
    if not process:
        try:
            if kill_in:
                kill_at(*kill_in)
            with untuned_datasets():
                run(*arguments, lambda line: os.write(writing, f"{line}\n".encode()))
        finally:
            os._exit(0)
    os.close(writing)
    printed, deadline = b"", None
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        if not select.select([reading], [], [], left)[0]:
            os.kill(process, signal.SIGKILL)
            deadline = None
            continue
        piece = os.read(reading, 4096)
        if not piece:
            break
        printed += piece
        if kill_after is not None and deadline is None:
            deadline = time.monotonic() + kill_after
            kill_after = None
    os.close(reading)
    os.waitpid(process, 0)
    return printed.decode().splitlines()


def main(folder: str, seed: int, *runs: tuple[float | None, bool, int]) -> None:
    """Prints, as JSON, what became of each run: its arguments, and how often it is killed."""
    found = [
        killed_at_random(os.path.join(folder, str(place)), seed, *run)
        for place, run in enumerate(runs)
    ]
    print(json.dumps(found))


def killed_at_random(
    folder: str, seed: int, drop: float | None, calibrate: bool, kills: int
) -> dict:
    """What a run printed that was not killed, what those did that were, and what is left."""
    arguments = (drop, calibrate)
    began = time.monotonic()
    whole = attempt((None, *arguments))
    lasting = time.monotonic() - began
    moments = random.Random(seed)
    killed: list[list[str]] = []
    while sum(not lines[-1].startswith("end") for lines in killed) < kills:
        killed.append(attempt((folder, *arguments), moments.uniform(0, lasting / 2)))
    if killed and not killed[-1][-1].startswith("end"):
        killed.append(attempt((folder, *arguments)))
    # in the second backup: while it is written, before and after it takes its place; at the end
    for moment in (("fsync", 5), ("replace", 2), ("fsync", 4), ("unlink", 2), None):
        killed.append(attempt((folder, *arguments), kill_in=moment))
    left = os.path.exists(folder) and os.listdir(folder)
    return {"whole": whole, "killed": killed, "left": left}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *map(json.loads, sys.argv[3:]))
