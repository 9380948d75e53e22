"""A run that was killed goes on where it was; what can't be used is refused as a whole."""

import errno
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.training import runs
from tests.training.killed_run import SCORES

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("SGDAP_KILLS", "4"))  # with four at chosen moments: eight


class InterruptionError(Exception):
    pass


def interrupt_at(epoch: int) -> keras.callbacks.Callback:
    def maybe(begun, logs):
        if begun == epoch:
            raise InterruptionError

    return keras.callbacks.LambdaCallback(on_epoch_begin=maybe)


def net(width: int = 8, optimizer: str = "adagrad") -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(width, "relu", name="one"),
            layers.Dense(6, "relu", name="two"),
            layers.Dense(2, name="three"),
        ]
    )
    model.compile(optimizer, "mse")
    return model


def data():
    random = np.random.default_rng(0)
    return random.normal(size=(20, 4)).astype("float32"), random.normal(size=(20, 2))


HALF = sgdap.Budget(flops=0.5)


def fit(
    model: keras.Model,
    folder: Path | None,
    *others,
    epochs: int = 4,
    budget=HALF,
    guidance="activation",
    validate: bool = False,
    **arguments,
):
    callback = sgdap.SGDAPCallback(
        budget,
        guidance,
        backup_dir=folder,
        reconstruction=False,
        jit_compile=None,
        verbose=0,
        **({"final_finetune_epochs": 1} | arguments),
    )
    history = model.fit(
        *data(),
        epochs=epochs,
        verbose=0,
        callbacks=[callback, *others],
        validation_data=data() if validate else None,
    )
    return callback, history


def interrupted(folder: Path, **arguments) -> None:
    with pytest.raises(InterruptionError):
        fit(net(), folder, interrupt_at(2), **arguments)


@functools.cache
def broken_off() -> bytes:
    """The backup of a run that was interrupted."""
    with tempfile.TemporaryDirectory() as folder:
        interrupted(Path(folder))
        return (Path(folder) / "run.sgdap").read_bytes()


@pytest.fixture
def backup(tmp_path) -> Path:
    """A folder with that backup."""
    (tmp_path / "run.sgdap").write_bytes(broken_off())
    return tmp_path


def state(model: keras.Model) -> list[np.ndarray]:
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


def assert_equal(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


RUNS = {"guarded": (0.0, False, KILLS), "free": (None, True, KILLS // 8)}
"""Of the runs that are killed: max_accuracy_drop, whether it is calibrated, and how often."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict[str, dict]:
    command = [sys.executable, "-m", "tests.training.killed_run"]
    command += [str(tmp_path_factory.mktemp("killed")), "0", *map(json.dumps, RUNS.values())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(RUNS, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.xdist_group("kills")  # one process makes the runs for both
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(killed, name):
    result, (drop, _, kills) = killed[name], RUNS[name]
    end = result["whole"][-1]
    assert end.startswith("end")
    assert "kept" in end
    assert ("undone" in end) == (drop is not None)
    reached, died = 0, 0
    for lines in result["killed"]:
        first, last = (int(lines[i].split()[-1]) for i in (0, -1 if "epoch" in lines[-1] else -2))
        over = reached == len(SCORES) - 1 and first == 0  # it died behind the end of fit
        assert first in (reached, reached + 1) or over  # or before it said that an epoch begins
        if lines[-1].startswith("end"):
            assert lines[-1] == end
            reached = 0
        else:
            reached, died = last, died + 1
    assert died == kills + 4
    assert not result["left"]


@pytest.mark.parametrize("calibrate", [False, True])
def test_a_run_that_was_interrupted_goes_on_after_the_last_whole_epoch(tmp_path, calibrate):
    arguments = {"calibration_data": data()[0]} if calibrate else {}
    whole, model = net(), net()
    expected, history = fit(whole, None, **arguments)
    interrupted(tmp_path / "a" / "b", **arguments)
    callback, rest = fit(model, tmp_path / "a" / "b", **arguments)
    assert rest.epoch == [2, 3]
    assert rest.history["loss"] == history.history["loss"][2:]
    assert callback.rounds == expected.rounds
    assert callback.plan.to_json() == expected.plan.to_json()
    assert_equal(state(model), state(whole))


def test_a_run_that_is_taken_up_keeps_to_the_rounds_that_were_planned(tmp_path):
    arguments = {"budget": sgdap.Budget(flops=0.15), "epochs": 5, "final_finetune_epochs": "auto"}
    expected, _ = fit(net(), None, **arguments)
    interrupted(tmp_path, **arguments)
    callback, rest = fit(net(), tmp_path, **arguments)
    assert rest.epoch == [2, 3, 4]
    assert callback.rounds == expected.rounds
    assert [r.epoch for r in callback.rounds] == [0, 1]


def test_a_latency_stays_a_fraction_of_what_was_measured_at_the_start(tmp_path):
    busy = []

    def measured(model):
        return sgdap.profile(model, latency=False).flops * 1e-9 * (busy.pop() if busy else 1)

    budget = sgdap.Budget(latency=0.5, runtime=measured)
    whole, model = net(), net()
    fit(whole, None, budget=budget)
    interrupted(tmp_path, budget=budget)
    busy.append(3.0)  # the whole model, when the run is taken up
    fit(model, tmp_path, budget=budget)
    assert not busy
    assert_equal(state(model), state(whole))


def test_a_finished_run_leaves_no_backup_and_the_next_fit_begins_anew(backup):
    (backup / "of someone else").write_text("")
    model = net()
    fit(model, backup)
    assert [path.name for path in backup.iterdir()] == ["of someone else"]
    history = model.fit(*data(), epochs=1, verbose=0)
    assert history.epoch == [0]


def sharing_out() -> keras.Model:
    model = net()
    by_rank = {1: keras.optimizers.SGD(0.01, momentum=0.9), 2: keras.optimizers.Adam(0.01)}
    shared = keras.optimizers.MultiOptimizer(lambda variable: by_rank[len(variable.shape)])
    model.compile(shared, "mse")
    return model


def test_an_optimizer_that_shares_out_by_a_lambda_is_taken_up_as_any_other(tmp_path):
    whole, model = sharing_out(), sharing_out()
    fit(whole, None)
    with pytest.raises(InterruptionError):
        fit(sharing_out(), tmp_path, interrupt_at(2))
    fit(model, tmp_path)
    assert_equal(state(model), state(whole))


def test_a_folder_that_was_there_stays(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    fit(net(), mine)
    assert list(mine.iterdir()) == []
    interrupted(tmp_path / "made")
    fit(net(), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_what_the_brought_model_scored_is_kept_and_not_measured_again(tmp_path, monkeypatch):
    evaluated = []
    measure = runs.validation_metrics
    monkeypatch.setattr(
        runs, "validation_metrics", lambda model: evaluated.append(model) or measure(model)
    )
    arguments = {"max_accuracy_drop": 9.0, "begin_epoch": 2, "validate": True, "epochs": 5}
    whole, model = net(), net()
    expected, _ = fit(whole, None, **arguments)
    with pytest.raises(InterruptionError):
        fit(net(), tmp_path, interrupt_at(1), **arguments)
    callback, _ = fit(model, tmp_path, **arguments)
    assert evaluated[-1] is not model and len(evaluated) == 2
    assert callback.summary == expected.summary
    assert callback.summary.score[0] == net().evaluate(*data(), verbose=0)
    assert_equal(state(model), state(whole))


def test_generators_that_the_process_draws_from_go_on(tmp_path):
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            (np.random.random(), float(keras.random.uniform(())))  # noqa: NPY002
        )
    )
    fit(net(), None, note)
    expected, seen[:] = list(seen), []
    with pytest.raises(InterruptionError):
        fit(net(), tmp_path, note, interrupt_at(2))
    fit(net(), tmp_path, note)
    assert seen == expected


def assert_refused(model: keras.Model, folder: Path, match: str, **arguments) -> None:
    before, content = state(model), (folder / "run.sgdap").read_bytes()
    with pytest.raises(ValueError, match=match):
        fit(model, folder, **arguments)
    assert_equal([v.numpy() for v in model.variables], before[: len(model.variables)])
    assert [layer.units for layer in model.layers] == [model.layers[0].units, 6, 2]
    assert (folder / "run.sgdap").read_bytes() == content


def test_a_backup_of_another_model_is_refused(backup):
    assert_refused(net(9), backup, "is of a run of another model.*delete the file")


def test_a_backup_with_another_optimizer_is_refused(backup):
    assert_refused(net(optimizer="sgd"), backup, "another optimizer")


def test_a_backup_with_other_settings_is_refused(backup):
    match = (
        r"with other settings: budget=Budget\(flops=0\.5\), now Budget\(flops=0\.9\); "
        r"max_accuracy_drop=None, now 0\.1\. Set them as they were, or delete the file"
    )
    other = {"budget": sgdap.Budget(flops=0.9), "max_accuracy_drop": 0.1}
    assert_refused(net(), backup, match, **other)


class Own(sgdap.guidance.Guidance):
    """A criterion that holds an object of which Python says but where it lies."""

    name = "own"

    def __init__(self):
        self.held = object()

    def scores(self, data):
        return np.arange(data.size, dtype=float)


def test_settings_are_the_same_wherever_objects_lie(tmp_path):
    interrupted(tmp_path, guidance=Own())
    callback, rest = fit(net(), tmp_path, guidance=Own())
    assert rest.epoch == [2, 3]


@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_torn_backup_is_refused(backup, part):
    path = backup / "run.sgdap"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert_refused(net(), backup, "torn or damaged.*Delete it to begin anew")


def test_a_backup_with_one_wrong_bit_is_refused(backup):
    path = backup / "run.sgdap"
    content = bytearray(path.read_bytes())
    for place in np.linspace(20, len(content) - 1, 7, dtype=int):
        content[place] ^= 1
        path.write_bytes(content)
        assert_refused(net(), backup, "torn or damaged")
        content[place] ^= 1


@pytest.mark.filterwarnings("ignore:Even though")  # that tests run functions eagerly
def test_a_full_disk_does_not_lose_the_backup_before(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = {}

    def fill_up(epoch, logs):
        if epoch == 1:
            kept["before"] = (tmp_path / "run.sgdap").read_bytes()
            monkeypatch.setattr(os, "fsync", full)

    fill = keras.callbacks.LambdaCallback(on_epoch_begin=fill_up)
    with pytest.warns(
        UserWarning, match=r"after epoch 2 could not be written.*No space left.*before stays"
    ):
        with pytest.raises(InterruptionError):
            fit(net(), tmp_path, fill, interrupt_at(2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "run.sgdap": kept["before"]
    }
    monkeypatch.undo()
    whole, model = net(), net()
    fit(whole, None)
    assert fit(model, tmp_path)[1].epoch == [1, 2, 3]
    assert_equal(state(model), state(whole))


def test_a_layer_whose_config_can_not_be_kept_is_refused_before_the_run(tmp_path):
    class Odd(layers.Dense):
        def __init__(self, units, odd=None, **kwargs):
            super().__init__(units, **kwargs)

        def get_config(self):
            return {**super().get_config(), "name": self.name, "odd": (n for n in ())}

    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), Odd(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"can't be kept in backup_dir"):
        fit(model, tmp_path)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_a_layer_that_holds_a_lambda_is_refused_before_the_run(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, lambda x: x, name="odd")])
    model.add(layers.Dense(2))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"kept in backup_dir: .layer 'odd'. A lambda.*Give"):
        fit(model, tmp_path)
    assert "train_step" not in vars(model)


def test_a_backup_beyond_the_last_epoch_is_refused_and_stays(tmp_path):
    with pytest.raises(InterruptionError):
        fit(net(), tmp_path, interrupt_at(5), epochs=7)
    match = "has done 5 epochs, and this fit ends after {}: nothing would be trained. Train for"
    for epochs in (4, 5):
        assert_refused(net(), tmp_path, match.format(epochs), epochs=epochs)
    assert fit(net(), tmp_path, epochs=7)[1].epoch == [5, 6]
    assert not (tmp_path / "run.sgdap").exists()


@pytest.mark.parametrize("place", ["/proc/nope", "file", "file/below", "/proc/self/mem/x"])
def test_a_folder_that_can_not_be_used_is_refused_before_the_run(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    model, folder = net(), tmp_path / place
    before = state(model)
    with pytest.raises(ValueError, match=f"can be written to backup_dir='{folder}'.*Pass a folder"):
        fit(model, folder)
    assert_equal(state(model), before)
    assert "train_step" not in vars(model)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_full_at_the_start_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No backup can be written.*No space left"):
        fit(net(), tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_made_before_there_is_something_to_keep(tmp_path):
    with pytest.raises(InterruptionError):
        fit(net(), tmp_path / "a" / "b", interrupt_at(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Even though")  # that tests run functions eagerly
def test_a_warning_tells_that_there_is_no_backup_to_go_on_from(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    fill = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: monkeypatch.setattr(os, "fsync", full)
    )
    with pytest.warns(UserWarning, match="after epoch 1 could not be written.*There is none"):
        with pytest.raises(InterruptionError):
            fit(net(), tmp_path, fill, interrupt_at(1))


def test_a_backup_that_can_not_be_read_is_refused_in_words(tmp_path):
    (tmp_path / "run.sgdap").mkdir()
    with pytest.raises(ValueError, match="Is a directory.*Delete it to begin anew"):
        fit(net(), tmp_path)


@pytest.mark.parametrize("folder", [3, "", True])
def test_a_folder_that_is_no_path_is_refused(folder):
    with pytest.raises(TypeError, match="backup_dir must be the path of a folder"):
        sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), backup_dir=folder)
