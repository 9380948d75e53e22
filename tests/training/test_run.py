"""Between the epochs of a run the model is read once a round, and rounds are as in `sgdap.plan`."""

import copy

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.channels import grouping
from sgdap.pipeline import widths
from sgdap.surgery import snapshot
from sgdap.training import start
from tests.models import functions_compiled

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :3].argmax(1)


def network() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, "relu"),
            layers.Dense(10, "relu"),
            layers.Dense(8, "relu"),
            layers.Dense(3, "softmax"),
        ]
    )
    model.compile(
        keras.optimizers.Adagrad(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def fit(callback: sgdap.SGDAPCallback, epochs: int = 4, model=None) -> keras.Model:
    model = model or network()
    arguments = {"validation_data": (X, Y), "batch_size": 64, "verbose": 0}
    model.fit(X, Y, epochs=epochs, callbacks=[callback], **arguments)
    return model


def pruner(**arguments) -> sgdap.SGDAPCallback:
    options = {"final_finetune_epochs": 1, "jit_compile": None, "verbose": 0} | arguments
    return sgdap.SGDAPCallback(sgdap.Budget(flops=0.4), **options)


def counted(monkeypatch, *places) -> list:
    """Notes each call of a function that some modules use."""
    calls = []
    for module, name in places:
        own = getattr(module, name)

        def spy(*arguments, own=own, **options):
            calls.append((arguments, options))
            return own(*arguments, **options)

        monkeypatch.setattr(module, name, spy)
    return calls


@pytest.mark.parametrize("drop", [None, 0.99])
@pytest.mark.parametrize("backup", [False, True])
def test_the_model_is_traced_once_at_the_start_and_once_a_round(
    monkeypatch, tmp_path, drop, backup
):
    traced = counted(monkeypatch, (grouping, "trace"), (snapshot, "trace"))
    callback = pruner(max_accuracy_drop=drop, backup_dir=tmp_path / "b" if backup else None)
    fit(callback)
    assert len(callback.rounds) == 3
    assert len(traced) == 1 + 3


@pytest.mark.filterwarnings("ignore:SGDAPCallback stopped short")
def test_an_undone_round_traces_the_model_once_more(monkeypatch):
    model = network()
    with functions_compiled():
        model.fit(X, Y, epochs=20, batch_size=64, verbose=0)
    model.optimizer.learning_rate = 0.0  # so no round recovers
    traced = counted(monkeypatch, (grouping, "trace"), (snapshot, "trace"))
    callback = pruner(
        guidance="random",
        reconstruction=False,
        schedule="one_shot",
        max_accuracy_drop=0.0,
        patience=1,
    )
    fit(callback, epochs=5, model=model)
    undone = [r.decision for r in callback.rounds].count("undone")
    assert undone
    assert len(traced) == 1 + len(callback.rounds) + undone


def test_consumers_are_refitted_in_turn_on_the_data_of_the_run(monkeypatch):
    refitted = counted(monkeypatch, (widths, "refitted_weights"))
    callback = pruner(samples=40, positions=7, seed=3, memory_limit=10**8)
    fit(callback)
    assert len(refitted) == len(callback.rounds) == 3
    for round_, (arguments, options) in zip(callback.rounds, refitted, strict=True):
        (inputs,) = arguments[4]
        assert len(inputs) == 40 and {x.tobytes() for x in inputs} <= {x.tobytes() for x in X}
        assert (options["positions"], options["seed"]) == (7, 3 + round_.epoch)
        assert options["memory_limit"] == 10**8


def test_without_reconstruction_nothing_is_refitted(monkeypatch):
    refitted = counted(monkeypatch, (widths, "refitted_weights"))
    callback = pruner(reconstruction=False)
    fit(callback)
    assert not refitted
    assert not callback.plan.weights


def test_a_run_keeps_to_its_memory_limit():
    callback = pruner(calibration_data=X, memory_limit=15_000, schedule="one_shot")
    fit(callback, epochs=2)
    assert any("memory_limit" in note for note in callback.plan.notes)
    assert callback.rounds[-1].flops[1] <= 0.4 * callback.rounds[0].flops[0]


def test_a_callback_and_a_plan_make_the_same_model_of_the_same_data():
    model = network()
    plan = sgdap.plan(model, X, sgdap.Budget(flops=0.4))
    model.optimizer.learning_rate = 0.0
    callback = pruner(calibration_data=X, schedule="one_shot")
    expected = sgdap.apply(model, plan).get_weights()
    fit(callback, epochs=2, model=model)
    assert callback.plan.widths == plan.widths
    for mine, theirs in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_a_run_goes_on_when_all_channels_that_may_leave_are_gone():
    inputs = keras.Input((6,))
    hidden = layers.Dense(6, name="hidden")(inputs)
    model = keras.Model(inputs, [hidden[:, :3], layers.Dense(2)(hidden)])
    model.compile("sgd", "mse")
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.5), schedule="cubic", calibration_data=X, verbose=0
    )
    history = model.fit(X, [X[:, :3], X[:, :2]], epochs=5, verbose=0, callbacks=[callback])
    assert model.get_layer("hidden").units == 3
    assert len(callback.rounds) < 4 and len(history.epoch) == 5


def test_fewer_training_inputs_than_asked_for_are_said_once(monkeypatch, capsys):
    monkeypatch.setattr(start, "LIMIT", 20 * X[0].nbytes)
    fit(pruner(verbose=1))
    said = [line for line in capsys.readouterr().out.splitlines() if "training inputs" in line]
    assert said == [
        "SGDAP keeps 20 training inputs for its statistics, not 4096: as many as the memory for "
        "them holds. Pass calibration_data for more."
    ]


def test_training_inputs_too_large_to_keep_some_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(start, "LIMIT", 4 * X[0].nbytes)
    with pytest.raises(ValueError, match="takes 24 bytes, so 4 of them fit.*5 are needed"):
        fit(pruner())


def test_a_callback_can_be_copied_before_and_after_a_run():
    callback = pruner()
    fit(copy.deepcopy(callback))
    assert callback.rounds == []
    fit(callback)
    again = copy.deepcopy(callback)
    assert again.rounds == callback.rounds
    model = fit(again)
    assert model.layers[0].units < 12
