"""A teacher teaches a model on two devices what it teaches it on one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def test_two_devices_learn_from_a_teacher_what_one_does():
    command = [sys.executable, "-m", "tests.distillation.mirrored_run"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = json.loads(done.stdout.splitlines()[-1]).values()
    for name in ("distillation_loss", "loss"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4)
    for mine, other in zip(one["weights"], two["weights"], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)
