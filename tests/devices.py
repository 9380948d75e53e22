"""A process with two devices, which runs modules of the tests on one of them and on both."""

import functools
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.untuned import untuned_datasets

ROOT = Path(__file__).parents[1]


class Devices:
    """A process that is started when it is first needed, and ends with the context.

    It serves all tests on several devices: to import TensorFlow takes it longer than many of them.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+")

    def __enter__(self) -> "Devices":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.communicate()
        self._errors.close()

    def found_by(self, module: str) -> Any:
        """What the function `found` of a module returns there, as JSON has it."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.devices"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        print(module, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._process = None
            self._errors.seek(0)
            raise AssertionError(self._errors.read())
        return json.loads(line)


@functools.cache
def strategies() -> dict[str, Any]:
    """The strategies of one device and of two, made of one CPU before TensorFlow uses it."""
    import tensorflow as tf

    (device,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(device, two)
    return {
        "one": tf.distribute.get_strategy(),
        "two": tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]),
    }


def on_both(run: Callable[[Any], Any]) -> dict[str, Any]:
    """What a run returns on one device and on two.

    On one device functions run eagerly: it is only what the run on two is compared with, and
    to compile takes longer than all its steps.
    """
    import tensorflow as tf

    made = {}
    for name, strategy in strategies().items():
        tf.config.run_functions_eagerly(name == "one")
        made[name] = run(strategy)
    return made


def main() -> None:
    """Runs the modules that standard input names and prints a line for each."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what is printed by others
    with untuned_datasets():
        for line in sys.stdin:
            found = importlib.import_module(line.strip()).found()
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
