"""Scripts that run in a process of their own, on one device and on two, and print JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf


def strategies() -> dict[str, tf.distribute.Strategy]:
    """The strategies of one device and of two, made of one CPU before TensorFlow uses it."""
    (device,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(device, two)
    return {
        "one": tf.distribute.get_strategy(),
        "two": tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]),
    }


def printed_by(module: str) -> Any:
    """Runs a module of the tests in another process and reads the last line that it prints."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
