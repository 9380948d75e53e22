"""Commands take files, print tables or JSON, and end with a status that scripts can read."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from sgdap.cli import main
from sgdap.cli.inputs import data_named, model_named


def small_model() -> keras.Model:
    """Named on the command line as `module:function`, too."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(3, "softmax", name="end"),
        ],
        name="small",
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_model().save("model.keras")
    random = np.random.default_rng(0)
    x, y = random.integers(256, size=(120, 6, 6), dtype=np.uint8), random.integers(3, size=120)
    np.savez("data.npz", x_train=x, y_train=y, x_test=x[:40], y_test=y[:40])
    return tmp_path


def run(command: str, capfd) -> tuple[int, str, str]:
    status = main(command.split())
    out, err = capfd.readouterr()
    return status, out, err


def test_a_model_and_data_become_a_checked_file(folder, capfd):
    (folder / "own.yaml").write_text(
        "- prune: {flops: 0.6}\n- quantize: {compensate: false, epochs: 0}\n"
        "- export: {path: small.tflite, quantize: int8}\n"
    )
    status, out, _ = run(
        "compress model.keras own.yaml --data data.npz --scale 255 --out out --epochs 2 --json",
        capfd,
    )
    assert status == 0
    report = json.loads(out)
    assert report["metric"] == "accuracy"
    assert report["stages"][-1]["file_bytes"] == (folder / "out/small.tflite").stat().st_size
    slim = keras.models.load_model(folder / "out/model.keras")
    assert slim.get_layer("conv").filters < 8
    status, out, _ = run("compare model.keras out/model.keras --data data.npz", capfd)
    assert status == 0 and "flops" in out and "score" in out
    status, out, _ = run("bench out/small.tflite --json", capfd)
    assert status == 0 and json.loads(out)["seconds"] > 0


def test_a_missed_limit_ends_with_3(folder, capfd):
    (folder / "own.yaml").write_text("- quantize: {compensate: false}\n")
    command = "compress model.keras own.yaml --data data.npz --out out --epochs 0"
    status, out, _ = run(f"{command} --budget bytes=0.01", capfd)
    assert status == 3 and "The budget is not met" in out


def test_prune_inspect_profile_pack_and_unpack(folder, capfd):
    command = "prune model.keras slim.keras --data data.npz --flops 0.5 --no-distill --json"
    status, out, _ = run(command, capfd)
    assert status == 0 and json.loads(out)["flops"][1] <= 0.5 * json.loads(out)["flops"][0]
    status, out, _ = run("inspect slim.keras --json", capfd)
    assert status == 0 and {group["name"] for group in json.loads(out)} == {"conv", "end"}
    status, out, _ = run("profile slim.keras", capfd)
    assert status == 0 and "parameters" in out
    status, out, _ = run("pack slim.keras slim.sgdap --json", capfd)
    assert status == 0 and json.loads(out)["bytes"] == (folder / "slim.sgdap").stat().st_size
    assert run("unpack slim.sgdap again.keras", capfd)[0] == 0
    x = np.ones((2, 6, 6, 1), "float32")
    answers = [model_named(name).predict(x, verbose=0) for name in ("slim.sgdap", "again.keras")]
    assert np.array_equal(*answers)


@pytest.mark.parametrize("path", ["a.tflite", "a.onnx", "a.xml", "a.keras", "saved"])
def test_bench_times_what_export_wrote(folder, path, capfd):
    assert run(f"export model.keras {path}", capfd)[0] == 0
    status, out, _ = run(f"bench {path} --json", capfd)
    found = json.loads(out)
    assert status == 0 and found["bytes"] > 1000 and found["spread"][0] <= found["seconds"]


@pytest.mark.parametrize(
    "command, status, words",
    [
        ("prun", 2, "No such command"),
        ("compress model.keras", 2, "Missing option"),
        ("compress model.keras nope --data data.npz --out out", 1, "no recipe 'nope'"),
        ("compress nix.keras mobile-int8 --data data.npz --out out", 1, "no file nix.keras"),
        ("compress model.keras --data data.npz --out out", 1, "Say what is to be done"),
        ("compress model.keras --data data.npz --out out --budget size=3", 2, "--budget takes"),
        ("compress model.keras tiny-flash --data data.txt --out out", 1, "Data are"),
        ("prune model.keras nix/a.keras --data nix.npz", 1, "no folder nix"),
        ("prune model.keras a.txt --data nix.npz", 1, "is to be a .keras file"),
        ("pack model.keras nix/a.sgdap", 1, "no folder nix"),
        ("unpack nix.sgdap a.txt", 1, "is to be a .keras file"),
        ("bench data.npz", 1, "no file that sgdap.export writes"),
        ("bench nix.tflite", 1, "no file nix.tflite"),
        ("unpack model.keras out.keras", 1, "no file of sgdap.pack"),
    ],
)
def test_mistakes_are_told_in_a_line(folder, command, status, words, capfd):
    found, out, err = run(command, capfd)
    assert (found, words in err) == (status, True), err
    assert not out and "Traceback" not in err


def test_help_has_examples_and_the_version_is_told(capfd):
    status, out, _ = run("--version", capfd)
    assert status == 0 and out.startswith("sgdap ")
    for command in (
        *("compress", "prune", "inspect", "profile", "compare"),
        *("export", "pack", "unpack", "bench", "demo"),
    ):
        status, out, _ = run(f"{command} --help", capfd)
        assert status == 0 and "Example: sgdap " in out


def test_kinds_of_data(folder, monkeypatch):
    model = small_model()
    x, y = data_named("data.npz", model, 255)
    assert x.shape == (120, 6, 6, 1) and x.dtype == np.float32 and x.max() <= 1
    assert len(data_named("data.npz", model, judged=True)[1]) == 40
    (folder / "rows.csv").write_text("a,label,b\n1,cat,2\n3,dog,4\n5,cat,6\n")
    x, y = data_named("rows.csv", model)
    assert x.tolist() == [[1, 2], [3, 4], [5, 6]] and y.tolist() == [0, 1, 0]
    (folder / "bad.csv").write_text("a,label\n1,2\n3\n")
    with pytest.raises(ValueError, match="bad.csv, line 3"):
        data_named("bad.csv", model)
    for name in ("left", "right"):
        (folder / "pictures" / name).mkdir(parents=True)
        keras.utils.save_img(folder / "pictures" / name / "a.png", np.ones((9, 9, 1)))
    images, labels = next(iter(data_named("pictures", model)))
    assert images.shape == (2, 6, 6, 1) and labels.numpy().tolist() == [0, 1]
    import tensorflow as tf

    tf.data.Dataset.from_tensor_slices(np.ones((4, 6))).batch(2).save("saved")
    assert next(iter(data_named("saved", model))).shape == (2, 6)
    with pytest.raises(ImportError, match="tensorflow-datasets"):
        data_named("tfds:mnist", model)
    (folder / "mine.py").write_text(
        "import numpy\ndef rows():\n    return (numpy.ones((3, 6, 6)),)"
    )
    assert data_named("mine:rows", model)[0].shape == (3, 6, 6, 1)
    np.savez("other.npz", images=np.ones(3))
    with pytest.raises(ValueError, match="It has: images"):
        data_named("other.npz", model)


@keras.saving.register_keras_serializable("tests.cli")
class Own(keras.Model):
    """A model of a class of one's own, which does not know its `input_shape`."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.hidden = layers.Conv2D(4, 3, activation="relu")
        self.flat, self.end = layers.Flatten(), layers.Dense(3, "softmax")

    def call(self, x):
        return self.end(self.flat(self.hidden(x)))


def test_a_model_of_ones_own_class_is_given_what_it_takes(folder):
    model = Own()
    model(np.zeros((1, 6, 6, 1), "float32"))
    x, _ = data_named("data.npz", model, 255)
    assert x.shape == (120, 6, 6, 1) and x.dtype == np.float32 and x.max() <= 1
    (folder / "pictures" / "left").mkdir(parents=True)
    keras.utils.save_img(folder / "pictures" / "left" / "a.png", np.ones((9, 9, 1)))
    assert next(iter(data_named("pictures", model)))[0].shape == (1, 6, 6, 1)


def test_a_model_of_a_function(folder):
    (folder / "own_module.py").write_text(
        "import keras\n"
        "def make():\n"
        "    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\n"
        "def wrong():\n"
        "    return 3\n"
    )
    assert model_named("own_module:make").count_params() == 3
    assert str(folder) not in sys.path
    with pytest.raises(ValueError, match="returned no keras.Model"):
        model_named("own_module:wrong")
    with pytest.raises(ValueError, match="no function nix"):
        model_named("own_module:nix")


def test_files_with_code_are_loaded_only_where_that_is_typed(folder):
    model = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: 2 * x)])
    model.save("code.keras")
    with pytest.raises(ValueError, match="unsafe|safe_mode"):
        model_named("code.keras")
    assert model_named("code.keras", unsafe=True).predict(np.ones((1, 2)), verbose=0).max() == 2


def test_the_help_does_not_import_tensorflow():
    code = "import sgdap.cli, sys; sgdap.cli.main(['--help']); print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "compress" in done.stdout and done.stdout.endswith("False\n")
