"""The main job and its command, on a few hundred digits."""

import io
import subprocess
import sys

import keras
import numpy as np
import pytest
from rich.console import Console

from sgdap.cli import main
from sgdap.datasets import EMBEDDED_MNIST
from sgdap.demo import lenet5, run_demo

pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("mnist") / "digits.npz"
    with np.load(EMBEDDED_MNIST) as full:
        np.savez(path, **{key: full[key][: 600 if "train" in key else 200] for key in full})
    return path


def test_demo_prunes_to_its_budget_and_serves_without_sgdap(digits, tmp_path):
    out = io.StringIO()
    result = run_demo(
        out=tmp_path,
        path=digits,
        max_accuracy_drop=0.99,  # a few hundred digits say little about accuracy
        epochs=1,
        prune_epochs=2,
        console=Console(file=out, width=120),
    )
    assert result.slim.flops <= 0.3 * result.dense.flops
    assert result.slim.params <= 0.3 * result.dense.params
    assert result.served_difference < 1e-5
    assert {p.name for p in tmp_path.iterdir()} == {
        "dense.keras",
        "model.keras",
        "served",
        "pruning.png",
    }
    slim = keras.models.load_model(tmp_path / "model.keras")
    assert slim.count_params() == result.slim.params
    assert "Before and after" in out.getvalue()
    assert f"{result.slim.params:,}" in out.getvalue()


@pytest.mark.parametrize(("arch", "params"), [("lenet5", 61_706), ("caffe", 431_080)])
def test_architectures_have_the_published_number_of_parameters(arch, params):
    assert lenet5(arch).count_params() == params


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="'lenet5' or 'caffe'"):
        lenet5("alexnet")


def test_command_says_what_is_wrong_with_its_data(tmp_path, capsys):
    assert main(["demo", "--data", str(tmp_path / "none.npz"), "--out", str(tmp_path)]) == 1
    assert "none.npz" in capsys.readouterr().err


def test_package_runs_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "sgdap", "demo", "--help"], capture_output=True, text=True
    )
    assert run.returncode == 0
    assert "--arch" in run.stdout
