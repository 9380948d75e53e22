"""One call: stages follow each other, are judged, undone, found by a search, and gone on with."""

import dataclasses
import importlib
import json
import random
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.compression import steps
from sgdap.compression.report import CompressionReport, Measures, StageReport, trained_ranges
from sgdap.compression.stages import Stage
from sgdap.distillation import finish
from sgdap.execution.latency import NoisyClockError
from sgdap.weights import working
from tests.models import functions_compiled, randomise


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(working, "STEPS", 5)
    monkeypatch.setattr(working, "LAST", 10)
    monkeypatch.setattr(finish, "STEPS", 20)


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of one bright quarter, which is the class."""
    random_numbers = np.random.default_rng(seed)
    y = random_numbers.integers(4, size=count)
    x = random_numbers.normal(size=(count, 8, 8, 1)).astype("float32")
    for row, label in zip(x, y, strict=True):
        top, left = divmod(int(label), 2)
        row[4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 1.0
    return x, y


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(24, "relu", name="hidden"),
            layers.Dropout(0.1),
            layers.Dense(4, "softmax", name="end"),
        ],
        name="quarters",
    )
    model.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    with functions_compiled():
        model.fit(*images(512, 0), epochs=4, verbose=0)
    return model


whole = importlib.import_module("sgdap.compression.compress")

DATA, JUDGED = images(512, 0), images(256, 1)


def without_times(report: CompressionReport) -> dict:
    """All entries of a report but times, by their paths."""
    found = {}

    def walk(path, own):
        if isinstance(own, (dict, list)):
            for name, part in own.items() if isinstance(own, dict) else enumerate(own):
                walk(f"{path}/{name}", part)
        elif not path.endswith(("latency", "seconds")):
            found[path] = Path(own).name if isinstance(own, str) else own

    walk("", json.loads(report.to_json()))
    return found


@pytest.mark.compiled
def test_all_stages_in_one_call(trained, tmp_path):
    before = [w.copy() for w in trained.get_weights()]
    state = random.getstate(), np.random.get_state()[1].tolist()
    stages = [
        sgdap.Prune(flops=0.6),
        sgdap.Sparsify(0.5),
        sgdap.Distill(epochs=1),
        sgdap.Quantize("int4"),
        sgdap.Export("small.tflite"),
        sgdap.Pack("small.sgdap"),
    ]
    made = sgdap.compress(
        trained, stages, DATA, validation_data=JUDGED, epochs=1, workdir=tmp_path, verbose=0
    )
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    assert all(np.array_equal(a, b) for a, b in zip(before, trained.get_weights(), strict=True))
    report = made.report
    assert [stage.name for stage in report.stages] == [stage.kind for stage in stages]
    prune, sparse, _, few, file, packed = report.stages
    assert prune.after.flops <= 0.6 * report.before.flops
    assert sparse.after.nonzero < 0.6 * prune.after.params
    kernels = [own for own in few.layers if own.path.endswith("kernel")]
    assert all(own.bits < 8 for own in kernels) and few.after.bytes < prune.after.bytes / 4
    assert sum(own.nonzero for own in kernels) <= sum(own.nonzero for own in sparse.layers)
    assert file.file_bytes == (tmp_path / "small.tflite").stat().st_size
    again = sgdap.unpack(tmp_path / "small.sgdap")
    x = JUDGED[0]
    assert np.array_equal(again.predict(x, verbose=0), made.model.predict(x, verbose=0))
    loss, accuracy = made.model.evaluate(*JUDGED, verbose=0)
    assert accuracy == pytest.approx(report.after.score)
    assert packed.file_bytes == (tmp_path / "small.sgdap").stat().st_size
    assert CompressionReport.from_json((tmp_path / "report.json").read_text()) == report
    assert "quantize" in str(report) and "small.sgdap" in str(report)
    assert sgdap.load_recipe(tmp_path / "recipe.yaml") == stages


@pytest.mark.parametrize("labelled", [True, False])
def test_one_shot_needs_no_labels(trained, labelled):
    data = DATA if labelled else DATA[0]
    stages = [sgdap.Prune(flops=0.5), sgdap.Quantize("int8", compensate="layerwise")]
    made = sgdap.compress(trained, stages, data, epochs=0, teacher=False, verbose=0)
    assert made.report.metric == ("accuracy" if labelled else None)
    assert made.report.after.flops <= 0.5 * made.report.before.flops
    assert made.report.after.bytes < made.report.before.bytes / 3


def test_models_that_are_not_compiled_are_not_judged(trained):
    plain = keras.Sequential.from_config(trained.get_config())
    plain.set_weights(trained.get_weights())
    made = sgdap.compress(plain, [sgdap.Sparsify(0.5)], DATA, verbose=0)
    assert made.report.metric is None and not made.model.compiled
    kernels = [own.nonzero for own in made.report.stages[0].layers]
    assert sum(kernels) < 0.6 * sum(w.size for w in plain.get_weights() if w.ndim > 1)


class OwnStage(Stage):
    """A stage that sgdap does not know."""


DROP = 0.003


def test_a_stage_that_costs_too_much_is_tried_milder(trained):
    stages = [sgdap.Quantize("binary", compensate=False, fold=False)]
    made = sgdap.compress(
        trained, stages, DATA, validation_data=JUDGED, max_accuracy_drop=DROP, epochs=0, verbose=0
    )
    (stage,) = made.report.stages
    assert stage.asked == {"quantize": {"scheme": "binary", "compensate": False, "fold": False}}
    assert stage.tried and stage.done is not None and stage.done != stage.asked
    assert stage.after.score >= made.report.before.score - DROP
    assert all(score < made.report.before.score - DROP for _, score in stage.tried)


def test_a_stage_that_always_costs_too_much_is_undone(trained):
    stages = [sgdap.Sparsify(0.9, "1:3", "random", layers=["conv"]), sgdap.Quantize("int8")]
    made = sgdap.compress(
        trained, stages, DATA, validation_data=JUDGED, max_accuracy_drop=0.0, epochs=0, verbose=0
    )
    undone, _ = made.report.stages
    assert undone.done is None and undone.tried
    assert undone.after.nonzero == made.report.before.nonzero
    assert "sparsify (undone)" in str(made.report)


@pytest.mark.parametrize("made_of", [("dynamic", "float16", None), ()])
def test_a_file_that_cant_be_made_is_tried_of_larger_numbers(
    trained, made_of, tmp_path, monkeypatch
):
    def export(model, path, *, quantize=None, **options):
        if quantize not in made_of:
            raise RuntimeError(f"There is no file of {quantize} numbers.")
        return sgdap.export(model, path, quantize=quantize, **options)

    monkeypatch.setattr(steps, "export", export)
    monkeypatch.chdir(tmp_path)
    stages = [
        sgdap.Sparsify(0.5, guidance="magnitude"),
        sgdap.Export("a.tflite", quantize="int8"),
    ]
    made = sgdap.compress(trained, stages, DATA, epochs=0, verbose=0)
    before, stage = made.report.stages
    assert made.report.after.nonzero == before.after.nonzero  # what was done before is not lost
    told = str(made.report)
    if made_of:
        assert stage.done["export"]["quantize"] == "dynamic" and Path("a.tflite").exists()
        assert [score for _, score in stage.tried] == [None]
        assert "quantize: int8} was tried: no file." in told
        assert "There is no file of int8 numbers." in told
    else:
        assert stage.done is None and len(stage.tried) == 4
        assert "There is no file of float16 numbers." in told and "export (undone)" in told


@pytest.mark.parametrize("size", ["auto", 6])
def test_a_file_is_judged_in_its_own_runtime(trained, size, tmp_path):
    stages = [sgdap.Export(str(tmp_path / "a.tflite"), quantize="int8", batch_size=size)]
    made = sgdap.compress(trained, stages, DATA, validation_data=JUDGED, epochs=0, verbose=0)
    (stage,) = made.report.stages
    assert stage.file_score == pytest.approx(made.report.before.score, abs=0.02)
    samples = 1 if size == "auto" else 6
    assert (stage.runtime, stage.file_batch_size) == ("LiteRT", samples) and stage.file_seconds > 0
    told = " ".join(str(made.report).split())
    assert f"ms{'' if samples == 1 else ' for 6 samples'} in LiteRT." in told
    assert "one sample in a compiled function of TensorFlow" in told


@pytest.mark.compiled
def test_growth_rates_are_trained_used_and_folded_away(trained, tmp_path):
    stages = [sgdap.Grow(epochs=1), sgdap.Prune(flops=0.6, guidance="growth", epochs=0)]
    made = sgdap.compress(
        *(trained, stages, DATA),
        validation_data=JUDGED,
        teacher=False,
        workdir=tmp_path,
        verbose=0,
    )
    grow, prune = made.report.stages
    grown = keras.models.load_model(tmp_path / "stage-1.keras", compile=False)
    (hidden,) = [own for own in grown.layers if own.name == "hidden_dra"]
    assert np.ptp(hidden.growth_rate.numpy()) > 0 and grow.after.params > prune.after.params
    assert prune.after.flops <= 0.6 * made.report.before.flops and prune.done == prune.asked
    assert not any(type(own) is sgdap.layers.DynamicRangeActivation for own in made.model.layers)
    assert sgdap.load_recipe(tmp_path / "recipe.yaml") == stages


@pytest.mark.compiled
def test_growth_that_nothing_reads_is_folded_away_at_once(trained):
    stages = [sgdap.Grow("statistics", ["hidden"])]
    made = sgdap.compress(trained, stages, DATA, epochs=1, verbose=0)
    assert not any(type(own) is sgdap.layers.DynamicRangeActivation for own in made.model.layers)
    assert made.model.count_params() == trained.count_params()
    assert not np.array_equal(made.model.get_weights()[0], trained.get_weights()[0])


@pytest.mark.compiled
def test_channels_are_chosen_otherwise_where_growth_was_undone(trained, monkeypatch):
    real = whole.carried_out

    def spoilt(stage, model, work, limit):
        made = real(stage, model, work, limit)
        if stage.kind == "grow":
            made.model.set_weights([np.zeros_like(w) for w in made.model.get_weights()])
        return made

    monkeypatch.setattr(whole, "carried_out", spoilt)
    stages = [sgdap.Grow(epochs=1), sgdap.Prune(flops=0.6, guidance="growth", epochs=0)]
    made = sgdap.compress(
        trained, stages, DATA, validation_data=JUDGED, max_accuracy_drop=0.5, verbose=0
    )
    grow, prune = made.report.stages
    assert grow.done is None and prune.asked["prune"]["guidance"] == "growth"
    assert "guidance" not in prune.done["prune"] and "the LASSO chose" in prune.notes[-1]


def trained_ranges_and_file(model, folder):
    return sgdap.compress(
        model,
        [
            sgdap.Quantize("int8", activations="int8", compensate=False, epochs=2),
            sgdap.Export("small.tflite", quantize="int8"),
        ],
        DATA,
        validation_data=JUDGED,
        teacher=False,
        workdir=folder,
        verbose=0,
    )


@pytest.mark.compiled
def test_ranges_that_training_found_are_those_of_the_file(trained, tmp_path, monkeypatch):
    report = trained_ranges_and_file(trained, tmp_path / "whole").report
    ranges = report.stages[0].ranges
    assert ranges["hidden"][0] == pytest.approx(0, abs=1e-6) and ranges["hidden"][1] > 0
    assert CompressionReport.from_json(report.to_json()) == report

    from ai_edge_litert.interpreter import Interpreter

    file = Interpreter(str(tmp_path / "whole" / "small.tflite"))
    steps = [own["quantization"][0] for own in file.get_tensor_details()]
    assert any(step == pytest.approx(ranges["hidden"][1] / 255, rel=1e-3) for step in steps), (
        "no tensor of the file has the range that was trained"
    )

    real, given = whole.carried_out, []

    def killed(stage, model, work, limit):
        if stage.kind == "export":
            given.append(work.ranges)
            if len(given) == 1:
                raise _Killed
        return real(stage, model, work, limit)

    monkeypatch.setattr(whole, "carried_out", killed)
    with pytest.raises(_Killed):
        trained_ranges_and_file(trained, tmp_path / "killed")
    again = trained_ranges_and_file(trained, tmp_path / "killed").report
    assert given[1] == given[0] == again.stages[0].ranges
    assert without_times(again) == pytest.approx(without_times(report), rel=1e-5)


def test_ranges_hold_until_another_stage_changes_the_model():
    ranges, costs = {"a": (0.0, 1.0)}, Measures(1, 1, 1, 32.0, 4, None, 1.0)

    def stage(name, **own):
        return StageReport({name: {}}, {name: {}}, costs, **own)

    few = stage("quantize", ranges=ranges)
    packed = stage("pack", path="a.sgdap")
    undone = dataclasses.replace(stage("distill"), done=None)
    assert trained_ranges([few, packed, undone]) == (ranges, "")
    none, why = trained_ranges([few, stage("distill"), packed])
    assert not none and "distill changed the model after" in why
    assert trained_ranges([few, stage("distill"), few]) == (ranges, "")
    assert trained_ranges([stage("prune")]) == ({}, "")


@pytest.mark.compiled
def test_a_budget_alone_finds_its_stages(trained):
    share = 0.3
    budget = sgdap.Budget(bytes=share)
    made = sgdap.compress(
        trained, None, DATA, validation_data=JUDGED, budget=budget, epochs=0, verbose=0
    )
    report = made.report
    assert report.after.bytes <= share * report.before.bytes and not report.missed
    assert len(report.search) > 2
    best = min(report.search, key=lambda own: own[1])[0]
    assert [stage.asked for stage in report.stages] == list(best)


@pytest.mark.parametrize("limits", [{"flops": 0.4}, {"params": 0.3, "flops": 0.5}])
def test_widths_are_found_in_several_ways_where_bytes_do_not_count(trained, limits):
    made = sgdap.compress(
        trained, None, DATA, budget=sgdap.Budget(**limits), epochs=0, teacher=False, verbose=0
    )
    report = made.report
    assert all(getattr(report.after, n) <= v * getattr(report.before, n) for n, v in limits.items())
    best, _ = min(report.search, key=lambda own: own[1])
    assert [stage.asked for stage in report.stages] == list(best)
    ways = {stages[0]["prune"].get("allocation", "global") for stages, _ in report.search}
    assert ways == {"global", "layerwise", "measured"}
    assert str(report).count("divergence") == 3


@pytest.mark.parametrize(
    "limits", [{"bytes": 0.15, "flops": 0.5}, {"bytes": 0.12, "params": 2400.0, "flops": 9000.0}]
)
def test_all_limits_of_a_budget_are_met_together(trained, limits):
    made = sgdap.compress(
        trained, None, DATA, budget=sgdap.Budget(**limits), epochs=0, teacher=False, verbose=0
    )
    report = made.report
    assert not report.missed
    for name, limit in limits.items():
        whole = getattr(report.before, name)
        assert getattr(report.after, name) <= (limit * whole if limit <= 1 else limit)
    assert any("sparsify" in own for stages, _ in report.search for own in stages)


def test_time_is_measured_in_the_runtime_of_the_budget(trained, tmp_path):
    def seconds(model):
        """A clock without noise: each channel of `hidden` takes a millisecond."""
        return 1e-3 * model.get_layer("hidden").units

    def compressed(limit):
        budget = sgdap.Budget(latency=limit, runtime=seconds, batch_size=2)
        return sgdap.compress(
            *(trained, None, DATA),
            budget=budget,
            epochs=0,
            teacher=False,
            workdir=tmp_path,
            verbose=0,
        ).report

    report = compressed(0.5)
    assert report.timed.runtime == "seconds" and report.timed.batch_size == 2
    assert report.timed.before == pytest.approx(0.024)
    assert report.timed.seconds <= report.timed.allowed == pytest.approx(0.012)
    assert not report.missed and "ms in seconds, before 24 ms" in " ".join(str(report).split())
    assert CompressionReport.from_json(report.to_json()) == report
    assert compressed(0.5) == report


def test_time_that_stages_do_not_save_is_told(trained):
    def clock(model):
        return 1e-3

    budget = sgdap.Budget(latency="0.9ms", runtime=clock)
    stages = [sgdap.Quantize("int8", compensate=False)]
    report = sgdap.compress(trained, stages, DATA, budget=budget, epochs=0, verbose=0).report
    assert "The budget is not met: A batch of 1 takes 1 ms in clock" in report.missed
    assert "0.9 ms were allowed" in report.missed


def test_a_clock_that_is_too_noisy_is_told(trained):
    def noisy(model):
        raise NoisyClockError("The time can't be told.")

    budget = sgdap.Budget(latency="0.9ms", runtime=noisy)
    stages = [sgdap.Quantize("int8", compensate=False)]
    report = sgdap.compress(trained, stages, DATA, budget=budget, epochs=0, verbose=0).report
    assert report.timed is None and not report.missed
    assert report.notes == ("The time can't be told.",)


def test_a_budget_that_no_stages_meet_is_refused_with_the_reason(trained):
    with pytest.raises(ValueError, match="can't be met by fewer channels: .*still needs"):
        sgdap.compress(trained, None, DATA, budget=sgdap.Budget(flops=0.0001), epochs=0, verbose=0)


def test_a_budget_that_stages_do_not_meet_is_told(trained):
    made = sgdap.compress(
        trained,
        [sgdap.Quantize("int8", compensate=False)],
        DATA,
        budget=sgdap.Budget(bytes=0.1),
        epochs=0,
        verbose=0,
    )
    assert "bytes are" in made.report.missed and made.report.missed in str(made.report)


class _Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def little():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, "relu"),
            layers.Dropout(0.2),
            layers.Dense(3, "softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def two_stages(model, folder):
    x = np.random.default_rng(0).normal(size=(128, 6)).astype("float32")
    return sgdap.compress(
        model,
        [
            sgdap.Prune(flops=0.7, epochs=2),
            sgdap.Quantize("int8", compensate=False, epochs=0),
            sgdap.Pack("small.sgdap"),
        ],
        (x, x[:, :3].argmax(-1)),
        workdir=folder,
        seed=3,
        verbose=0,
    )


@pytest.fixture(scope="module")
def unkilled(little, tmp_path_factory):
    return without_times(two_stages(little, tmp_path_factory.mktemp("whole")).report)


@pytest.mark.parametrize(
    "place, call",
    [
        *(("carried_out", 2), ("measures", 1), ("measures", 3), ("keep", 2), ("saved", 1)),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not_killed(
    little, unkilled, place, call, tmp_path, monkeypatch
):
    owner = whole if hasattr(whole, place) else whole.Workdir
    real, calls = getattr(owner, place), []

    def killed(*args, **kwargs):
        calls.append(place)
        if len(calls) == call:
            raise _Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, place, killed)
        with pytest.raises(_Killed):
            two_stages(little, tmp_path)
    assert without_times(two_stages(little, tmp_path).report) == pytest.approx(unkilled, rel=1e-5)


def test_what_a_kill_left_half_made_is_taken_away(little, tmp_path):
    two_stages(little, tmp_path)
    half = tmp_path / "files" / ".sgdap-stale"
    half.mkdir(parents=True)
    (half / "small.tflite").write_text("half")
    two_stages(little, tmp_path)
    assert not half.exists() and (tmp_path / "small.sgdap").exists()


def test_a_model_that_no_file_holds_is_refused_before_it_is_begun(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x), layers.Dense(2)])
    x = np.ones((50, 4), "float32")
    with pytest.raises(ValueError, match="Leave workdir out"):
        sgdap.compress(model, [sgdap.Sparsify(0.5)], x, workdir=tmp_path / "a", verbose=0)
    assert not (tmp_path / "a").exists()


def test_layers_leave_as_a_whole(trained):
    stages = [sgdap.Depth(0.3), sgdap.Prune(flops=0.6, depth=True)]
    made = sgdap.compress(trained, stages, DATA, epochs=0, teacher=False, verbose=0)
    shallow, slim = made.report.stages
    assert len(made.model.layers) < len(trained.layers)
    assert shallow.after.params < made.report.before.params
    assert slim.after.flops <= 0.6 * made.report.before.flops
    assert sgdap.Depth(0.3).milder() == sgdap.Depth(0.15) and sgdap.Depth(0.04).milder() is None


def test_a_folder_of_another_compression_is_refused(trained, tmp_path):
    stages = [sgdap.Quantize("int8", compensate=False)]
    sgdap.compress(trained, stages, DATA, epochs=0, workdir=tmp_path, verbose=0)
    with pytest.raises(ValueError, match="other arguments"):
        sgdap.compress(trained, stages, DATA, epochs=0, workdir=tmp_path, seed=1, verbose=0)


def test_a_folder_in_which_no_stage_came_to_its_end_may_be_used_again(little, tmp_path):
    x = np.ones((64, 6), "float32")
    data = x, x[:, 0]
    stages = [sgdap.Prune(flops=0.5)]
    with pytest.raises(ValueError, match="Train for more epochs"):
        sgdap.compress(little, stages, data, epochs=1, workdir=tmp_path, verbose=0)
    made = sgdap.compress(little, stages, data, epochs=2, workdir=tmp_path, verbose=0)
    assert made.report.stages[0].after.flops <= 0.5 * made.report.before.flops


@pytest.mark.parametrize(
    "stages, arguments, error, words",
    [
        ([sgdap.Quantize(), sgdap.Sparsify(0.5)], {}, ValueError, "Put Sparsify before Quantize"),
        ([sgdap.Sparsify(0.5), sgdap.Prune(flops=0.5)], {}, ValueError, "Put Prune before"),
        ([sgdap.Quantize(), sgdap.Quantize("int4")], {}, ValueError, "Quantize once"),
        ([sgdap.Sparsify(0.5), sgdap.Grow()], {}, ValueError, "Put Grow before Sparsify"),
        ([sgdap.Sparsify(0.5), sgdap.Depth()], {}, ValueError, "Put Depth before Sparsify"),
        ([sgdap.Prune(flops=0.5, depth=["nix"])], {}, ValueError, "'nix', as depth says"),
        ([sgdap.Grow()], {"epochs": 0}, ValueError, "Grow gets no epochs"),
        ([sgdap.Grow(layers=["nix"])], {}, ValueError, "nix"),
        ([sgdap.Prune(flops=0.5, guidance="growth")], {}, ValueError, "DynamicRangeActivation"),
        ([sgdap.Pack("a"), sgdap.Export("a")], {}, ValueError, "Two stages write a"),
        ([sgdap.Pack("a.keras")], {}, ValueError, r"no .keras files: end their names in '.sgdap'"),
        ([], {}, ValueError, "no stage"),
        (sgdap.Prune(flops=0.5), {}, TypeError, "must be a list"),
        (["prune"], {}, TypeError, "A stage is sgdap.Grow"),
        ([OwnStage()], {}, TypeError, "A stage is sgdap.Grow"),
        (None, {}, ValueError, "Say what is to be done"),
        ([sgdap.Sparsify(0.5)], {"max_accuracy_drop": 5}, ValueError, "Did you mean"),
        ([sgdap.Sparsify(0.5)], {"epochs": -1}, ValueError, "epochs"),
        ([sgdap.Sparsify(0.5)], {"epochs": "many"}, ValueError, "'auto'"),
        ([sgdap.Sparsify(0.5)], {"verbose": 3}, ValueError, "verbose"),
        ([sgdap.Prune(flops=0.5, layers=["nix"])], {}, ValueError, "nix"),
        ([sgdap.Sparsify(0.5, layers=["nix"])], {}, ValueError, "nix"),
        ([sgdap.Sparsify(0.5, "2:4")], {}, ValueError, "no multiple of 4"),
        ([sgdap.Sparsify(0.5), sgdap.Quantize(layers=["nix"])], {}, ValueError, "nix"),
        ([sgdap.Sparsify(0.5), sgdap.Export("a.txt")], {}, ValueError, "No format"),
        ([sgdap.Export("a.onnx", quantize="int8")], {}, ValueError, "for LiteRT files"),
        ([sgdap.Sparsify(0.5)], {"teacher": 3}, TypeError, "teacher"),
        ([sgdap.Quantize(activations="int8")], {"epochs": 0}, ValueError, "gets no epochs"),
        ([sgdap.Quantize("lloyd_max", learned_scales=True)], {}, ValueError, "learned_scales"),
    ],
)
def test_what_makes_no_sense_is_refused(trained, stages, arguments, error, words, tmp_path):
    folder = tmp_path / "work"
    with pytest.raises(error, match=words):
        sgdap.compress(trained, stages, DATA, workdir=folder, **{"verbose": 0} | arguments)
    assert not folder.exists()


def test_one_sample_alone_is_refused_where_some_are_held_back(trained):
    x, y = DATA
    with pytest.raises(ValueError, match="One sample is too few.*validation_data"):
        sgdap.compress(trained, [sgdap.Prune(flops=0.5)], (x[:1], y[:1]), verbose=0)


def test_strings_in_arrays_are_refused_with_what_serves():
    words = layers.TextVectorization(output_sequence_length=4)
    words.adapt(["a b c", "d e"])
    model = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            words,
            layers.Embedding(9, 4),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2, "softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = np.array(["a b", "d c"] * 20), np.array([0, 1] * 20)
    stages = [sgdap.Quantize("int8", compensate=False, epochs=0)]
    for strings in (x, x.astype(object), tf.constant(x)):
        with pytest.raises(ValueError, match="Pass batches: tf.data"):
            sgdap.compress(model, stages, (strings, y), verbose=0)
    batched = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    assert sgdap.compress(model, stages, batched, verbose=0).report.after.bits < 32


def test_growth_where_there_is_no_activation_to_replace_is_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(3, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    data = np.ones((50, 4)), np.zeros(50)
    with pytest.raises(ValueError, match="no activation|there is none that is a layer"):
        sgdap.compress(model, [sgdap.Grow()], data, verbose=0)


@pytest.mark.parametrize("epochs, course", [(0, None), (None, None), (3, 3)])
def test_distillation_in_one_shot_stops_by_itself(little, epochs, course, monkeypatch):
    asked = []
    monkeypatch.setattr(steps, "distill", lambda *_, **options: asked.append(options["epochs"]))
    x = np.ones((64, 6), "float32")
    sgdap.compress(little, [sgdap.Distill(epochs=epochs)], (x, x[:, 0]), epochs=7, verbose=0)
    assert asked == [course]


def test_training_without_targets_is_refused(trained):
    with pytest.raises(ValueError, match="needs targets"):
        sgdap.compress(trained, [sgdap.Sparsify(0.5)], DATA[0], epochs=2, verbose=0)
    with pytest.raises(ValueError, match="something to judge by"):
        sgdap.compress(trained, [sgdap.Sparsify(0.5)], DATA[0], max_accuracy_drop=0.1, verbose=0)
    endless = tf.data.Dataset.from_tensor_slices(DATA).batch(64).repeat()
    with pytest.raises(ValueError, match="never ends"):
        sgdap.compress(trained, [sgdap.Sparsify(0.5)], endless, verbose=0)
    with pytest.raises(ValueError, match="an iterator gives its samples once"):
        sgdap.compress(trained, [sgdap.Sparsify(0.5)], iter([DATA]), verbose=0)


def test_batches_serve_as_data(trained):
    data = tf.data.Dataset.from_tensor_slices(DATA).batch(64)
    judged = tf.data.Dataset.from_tensor_slices(JUDGED).batch(64)
    made = sgdap.compress(
        trained, [sgdap.Prune(flops=0.7)], data, validation_data=judged, epochs=1, verbose=0
    )
    assert made.report.metric == "accuracy" and made.report.after.score > 0.5


def test_outputs_of_several_heads_are_judged_in_the_files_runtime(tmp_path):
    start = keras.Input((6,), name="start")
    trunk = layers.Dense(12, "relu")(start)
    heads = [layers.Dense(3, "softmax", name="kind")(trunk), layers.Dense(1, name="size")(trunk)]
    model = randomise(keras.Model(start, heads))
    model.compile(
        "sgd",
        {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        metrics={"kind": ["accuracy"]},
    )
    x = np.random.default_rng(0).normal(size=(300, 6)).astype("float32")
    kind, size = model.predict(x, verbose=0)
    targets = {"kind": kind.argmax(-1), "size": size}
    stages = [sgdap.Export(str(tmp_path / "a.tflite"), quantize="dynamic")]
    made = sgdap.compress(model, stages, (x, targets), epochs=0, verbose=0)
    assert made.report.metric == "kind_accuracy"
    assert made.report.stages[0].file_score > 0.95


def test_flops_that_are_not_counted_are_told():
    class Own(layers.Layer):
        def build(self, shape):
            self.own = self.add_weight(shape=(shape[-1], 4), name="own")

        def call(self, x):
            return tf.ensure_shape(tf.numpy_function(np.sort, [x], x.dtype), x.shape) @ self.own

    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), Own(), layers.Dense(3)])
    x = np.ones((60, 6), "float32")
    stages = [sgdap.Quantize("int8", layers=["dense*"], compensate=False, fold=False)]
    report = sgdap.compress(model, stages, x, verbose=0).report
    assert report.notes == sgdap.profile(model, latency=False).notes
    assert "not counted" in report.notes[0] and "not counted" in str(report)


def test_the_report_draws_itself(trained):
    made = sgdap.compress(
        trained, [sgdap.Quantize("int4", compensate=False)], DATA, epochs=0, verbose=0
    )
    figure = made.report.plot()
    assert figure.axes[0].get_xlabel() == "bytes of weights"
    with pytest.raises(ValueError, match="no stage wrote one"):
        made.report.node_data()
    with pytest.raises(ValueError, match="no report"):
        CompressionReport.from_json("[]")


@pytest.mark.parametrize(
    "scheme, quantize, bits",
    [("ternary", None, [4, 4]), ("int8", "int8", [8, 8]), ("int8", "float32", [32, 32])],
)
def test_node_data_tell_of_the_kernels_in_the_file(scheme, quantize, bits, tmp_path):
    model = randomise(
        keras.Sequential(
            [
                keras.Input((9, 9, 3)),
                layers.Conv2D(8, 3, name="conv"),
                layers.Flatten(),
                layers.Dense(5, name="end"),
            ]
        )
    )
    x = np.random.default_rng(0).normal(size=(64, 9, 9, 3)).astype("float32")
    stages = [
        sgdap.Quantize(scheme, compensate=False),
        sgdap.Export(str(tmp_path / "a.tflite"), quantize=quantize),
    ]
    made = sgdap.compress(model, stages, x, epochs=0, verbose=0)
    told = {
        value: [
            own["value"]
            for own in json.loads(made.report.node_data(value))["main"]["results"].values()
        ]
        for value in ("bits", "width", "weights", "sparsity")
    }
    kernels = [w for w in made.model.get_weights() if w.ndim > 1]
    assert told["bits"] == bits
    assert told["width"] == [8, 5] and told["weights"] == [w.size for w in kernels]
    assert told["sparsity"] == pytest.approx([float((w == 0).mean()) for w in kernels])
    with pytest.raises(ValueError, match="colour"):
        made.report.node_data("colour")


def test_stages_are_plain_values():
    stage = sgdap.Prune(sgdap.Budget(flops=0.5, params=0.4), layers=["conv*"])
    assert stage == sgdap.Prune(flops=0.5, params=0.4, layers=["conv*"])
    assert repr(stage) == "Prune(flops=0.5, params=0.4, layers=['conv*'])"
    assert stage.milder().budget.flops == pytest.approx(0.5**0.5)
    assert dataclasses.replace(stage, epochs=3).epochs == 3
    assert sgdap.Prune(params=5000.0).milder() is None
    assert sgdap.Sparsify(0.75).milder().sparsity == pytest.approx(0.5)
    assert sgdap.Sparsify(0.5, "2:4").milder() is None
    schemes = ["binary", "ternary", "int3", "int4", "int6", "int8"]
    for scheme, milder in zip(schemes, schemes[1:], strict=False):
        assert sgdap.Quantize(scheme).milder().scheme == milder
    assert sgdap.Quantize("int8").milder() is None
    assert sgdap.Export("a", quantize="int8").milder().quantize == "dynamic"
    assert sgdap.Export("a").milder() is None


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: sgdap.Prune(sgdap.Budget(flops=0.5), flops=0.5), "not both"),
        (lambda: sgdap.Prune(flops=0.5, guidance="laso"), "laso"),
        (lambda: sgdap.Sparsify(1.0), "share of zeros"),
        (lambda: sgdap.Sparsify(0.5, "3:2"), "3:2"),
        (lambda: sgdap.Quantize("int9"), "int9"),
        (lambda: sgdap.Quantize(activations="int4"), "activations"),
        (lambda: sgdap.Quantize(activations="int8", epochs=0), "epochs=0 trains nothing"),
        (lambda: sgdap.Quantize(learned_scales=True, epochs=0), "epochs=0 trains nothing"),
        (lambda: sgdap.Depth(1.5), "above 0 and below 1"),
        (lambda: sgdap.Grow("fast"), "growth"),
        (lambda: sgdap.Grow(epochs=0), "epochs=0 trains nothing"),
        (lambda: sgdap.Distill(temperature=-1.0), "temperature"),
        (lambda: sgdap.Distill(learning_rate=0), "learning_rate"),
        (lambda: sgdap.Sparsify(0.5, guidance="size"), "guidance"),
        (lambda: sgdap.Sparsify(0.5, allocation="measured"), "allocation"),
        (lambda: sgdap.Export("a.tflite", batch_size=0), "batch_size"),
        (lambda: sgdap.Export(), "needs the path"),
        (lambda: sgdap.Pack(""), "needs the path"),
        (lambda: sgdap.Export("a", epochs=2), "trains nothing"),
        (lambda: sgdap.Prune(flops=0.5, epochs=-1), "epochs"),
    ],
)
def test_stages_check_what_they_are_asked_for(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


@pytest.mark.parametrize("kind", [list, dict])
def test_models_of_several_inputs_and_outputs_train_in_stages(kind):
    inputs = [keras.Input((4,), name="a"), keras.Input((3,), name="b")]
    x = layers.Dense(8, "relu", name="hidden")(layers.Concatenate()(inputs))
    outputs = [layers.Dense(2, name="c")(x), layers.Dense(1, name="d")(x)]
    random_numbers = np.random.default_rng(0)
    x = [random_numbers.normal(size=(40, n)).astype("float32") for n in (4, 3)]
    y = [random_numbers.normal(size=(40, n)).astype("float32") for n in (2, 1)]
    losses = ["mse", "mae"]
    if kind is dict:
        inputs, x = (dict(zip("ab", own, strict=True)) for own in (inputs, x))
        outputs, y, losses = (dict(zip("cd", own, strict=True)) for own in (outputs, y, losses))
    model = keras.Model(inputs, outputs)
    model.compile("adam", losses)
    made = sgdap.compress(model, [sgdap.Prune(flops=0.5)], (x, y), epochs=2, verbose=0)
    assert made.report.after.flops <= 0.5 * made.report.before.flops
