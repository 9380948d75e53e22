"""Inside `fit` the budget is met, failed rounds are undone, and nothing is left behind."""

import contextlib
import copy
import csv
import io
import pickle
import re
import warnings

import joblib
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow_model_optimization.sparsity.keras import ConstantSparsity, PolynomialDecay

import sgdap
from sgdap.pipeline import making
from sgdap.training import channel_run as run_module
from sgdap.training import xla
from tests.models import convnet, digits_like, outputs

HALF = sgdap.Budget(flops=0.5)

X, Y = digits_like(128)
XLA = pytest.param(True, marks=pytest.mark.compiled)
THIRD = sgdap.Budget(flops=0.33)
QUICK = {"guidance": "magnitude", "allocation": "layerwise", "reconstruction": False}
"""Channels leave by their weights alone: for tests of when they do."""


def network(**compile_arguments) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Flatten(),
            layers.Dense(12, "relu", name="hidden_1"),
            layers.Dense(10, "relu", name="hidden_2"),
            layers.Dense(3, "softmax", name="end"),
        ]
    )
    arguments = {"optimizer": keras.optimizers.Adagrad(0.1), "metrics": ["accuracy"]}
    model.compile(loss="sparse_categorical_crossentropy", **(arguments | compile_arguments))
    return model


def fit(model: keras.Model, callback, epochs: int = 4, **arguments):
    arguments = {"validation_data": (X[:64], Y[:64]), "batch_size": 128} | arguments
    return model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[callback], **arguments)


def pruner(budget=THIRD, **arguments) -> sgdap.SGDAPCallback:
    """A silent one that does not ask after each round whether XLA pays."""
    return sgdap.SGDAPCallback(budget, **({"verbose": 0, "jit_compile": None} | arguments))


@contextlib.contextmanager
def warned(match: str):
    """Expects a warning; what TensorFlow warns of beside it does not count."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    assert any(re.search(match, str(warning.message)) for warning in found)


def cost(model: keras.Model) -> tuple[int, int]:
    found = sgdap.profile(model, latency=False)
    return found.params, found.flops


# Meeting the budget


@pytest.mark.parametrize(
    "schedule", [pytest.param("geometric", marks=pytest.mark.compiled), "one_shot"]
)
def test_the_model_that_went_in_meets_the_budget_when_fit_returns(schedule):
    model = convnet(optimizer=keras.optimizers.Adam(0.01), metrics=["accuracy"])
    optimizer, (_, flops) = model.optimizer, cost(model)
    callback = pruner(schedule=schedule, final_finetune_epochs=1)
    fit(model, callback, epochs=3)
    assert cost(model)[1] <= 0.33 * flops
    assert len(callback.rounds) == (1 if schedule == "one_shot" else 2)
    widths = [sum(r.widths.values()) for r in callback.rounds]
    assert widths == sorted(widths, reverse=True)
    assert all(r.decision == "kept" for r in callback.rounds)
    assert callback.plan.widths["conv_1"] == model.get_layer("conv_1").filters
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 3


def test_each_epoch_logs_parameters_and_flops_and_widths_are_beside(tmp_path):
    model, log = network(), tmp_path / "log.csv"
    history = keras.callbacks.History()
    callback = pruner()
    callbacks = [
        callback,
        keras.callbacks.CSVLogger(log),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
        history,
    ]
    whole = cost(model)
    model.fit(X, Y, epochs=3, verbose=0, callbacks=callbacks)
    logs = history.history
    assert logs["params"][0] == whole[0], "the model that the first epoch's metrics are of"
    assert (logs["params"][-1], logs["flops"][-1]) == cost(model)
    first, second = (model.get_layer(name).units for name in ("hidden_1", "hidden_2"))
    assert callback.widths[0] == {"hidden_1": 12, "hidden_2": 10}
    assert callback.widths[-1] == {"hidden_1": first, "hidden_2": second}
    assert len(callback.widths) == 3
    with log.open() as file:
        assert [float(row["flops"]) for row in csv.DictReader(file)] == logs["flops"]
    shown = {name for name in logs if not name.startswith("val_")}
    assert shown == {"loss", "accuracy", "params", "flops"}
    assert all(type(value) is float for name in ("params", "flops") for value in logs[name])
    loaded = keras.models.load_model(tmp_path / "3.keras")
    assert np.array_equal(outputs(loaded, X), outputs(model, X))


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantSparsity(0.6, begin_step=2, frequency=2),
        PolynomialDecay(0.2, 0.6, begin_step=0, end_step=4, frequency=2),
    ],
    ids=["ConstantSparsity", "PolynomialDecay"],
)
def test_tfmot_schedules_say_when_and_how_much_goes(schedule):
    model = network()
    flops = cost(model)[1]
    callback = pruner(None, schedule=schedule, **QUICK)
    history = fit(model, callback, batch_size=64).history["flops"]
    assert cost(model)[1] <= 0.4 * flops
    if isinstance(schedule, ConstantSparsity):
        assert [r.epoch for r in callback.rounds] == [1]
        assert history[:2] == [flops, flops]
    else:
        assert [r.epoch for r in callback.rounds] == [0, 1, 2]
        assert flops == history[0] > history[1] > history[2] > history[3]


def test_a_tfmot_schedule_and_a_budget_lead_to_the_budget():
    model = network()
    params = cost(model)[0]
    callback = pruner(sgdap.Budget(params=0.5), schedule=ConstantSparsity(0.9, 0, frequency=4))
    fit(model, callback, batch_size=64)
    assert cost(model)[0] <= 0.5 * params


@pytest.mark.parametrize("jit_compile", ["auto", XLA, False, None])
def test_jit_compile_is_set_as_told(jit_compile):
    model = network(jit_compile=False)
    fit(model, pruner(jit_compile=jit_compile), epochs=2, validation_data=None)
    assert model.jit_compile is (jit_compile is True)
    assert model.get_layer("hidden_1").units < 12


def test_bytes_and_parameters_are_limits_too():
    model = network()
    saved = sum(weight.numpy().nbytes for weight in model.weights)
    fit(model, pruner(sgdap.Budget(bytes=0.4, flops=0.6), schedule=sgdap.Cubic(rounds=2)))
    assert sum(weight.numpy().nbytes for weight in model.weights) <= 0.4 * saved


def test_a_latency_is_a_limit():
    """On a machine that takes a nanosecond for each FLOP."""

    def measured(model):
        return cost(model)[1] * 1e-9

    model = network()
    seconds = 0.5 * measured(model)
    budget = sgdap.Budget(latency=f"{seconds * 1e6:.3f}us", runtime=measured)
    callback = pruner(budget, schedule="linear", final_finetune_epochs=1)
    fit(model, callback, epochs=3)
    assert 0.8 * seconds < measured(model) <= seconds
    assert len(callback.rounds) == 2
    with pytest.raises(ValueError, match="cannot be met: the narrowest model still takes"):
        fit(network(), pruner(sgdap.Budget(latency="0.001us", runtime=measured)))


def test_a_share_of_the_latency_shrinks_the_model_though_it_is_measured_faster_now():
    times = []

    def measured(model):
        times.append(1.0 if not times else 0.3)  # the machine was busy at the start
        return times[-1] * cost(model)[1] * 1e-9

    model = network()
    budget = sgdap.Budget(latency=0.8, runtime=measured)
    fit(model, pruner(budget, schedule="one_shot"), epochs=2)
    assert cost(model)[1] < cost(network())[1]


def test_a_machine_that_gets_busy_does_not_end_the_run():
    slow = []

    def measured(model):
        return cost(model)[1] * 1e-9 * (1000 if slow else 1)

    half = 0.5 * measured(network()) * 1e6
    budget = sgdap.Budget(latency=f"{half:.3f}us", runtime=measured)
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: slow.append(epoch))
    model = network()
    with warned("Going by the latency measured before.*narrowest"):
        fit(model, [note, pruner(budget, schedule="one_shot")], epochs=2)
    assert cost(model)[1] <= 0.5 * cost(network())[1]


def test_a_metric_that_is_never_finite_is_named():
    model = network()
    never = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(own=float("nan"))
    )
    callback = pruner(max_accuracy_drop=0.1, monitor="own", mode="max")
    with warned("stopped short.*own was never a finite number"):
        fit(model, [never, callback])


def test_overrides_hold_for_the_whole_run():
    model = network()
    fit(model, pruner(sgdap.Budget(flops=0.5), overrides={"hidden_2": 0.5}, round_to=5))
    assert model.get_layer("hidden_2").units == 5
    assert model.get_layer("hidden_1").units % 5 == 0


def test_a_summary_tells_of_the_whole_run_in_the_end(capsys):
    model = network()
    callback = pruner(max_accuracy_drop=0.99, final_finetune_epochs=1, verbose=1)
    before = cost(model)
    assert callback.summary is None
    scored = model.evaluate(X[:64], Y[:64], batch_size=64, verbose=0)[1]
    fit(model, callback)
    found = callback.summary
    assert (found.params, found.flops) == tuple(zip(before, cost(model), strict=True))
    assert found.widths == {
        name: (width, model.get_layer(name).units)
        for name, width in (("hidden_1", 12), ("hidden_2", 10))
    }
    assert (found.metric, found.rounds, found.undone) == ("val_accuracy", 3, 0)
    left = model.evaluate(X[:64], Y[:64], verbose=0)[1]
    assert found.score == (pytest.approx(scored), pytest.approx(left))
    assert capsys.readouterr().out.splitlines()[-1] == f"SGDAP: {found.line}"


def test_the_summary_of_a_run_whose_rounds_are_undone_is_of_the_model_that_is_left(settled):
    brought = settled.evaluate(X[:64], Y[:64], verbose=0)[1]
    callback = careless(max_accuracy_drop=0.0, patience=1, schedule="one_shot")
    with stopping_short():
        fit(settled, callback, epochs=2)
    assert callback.summary.params[0] == callback.summary.params[1] == settled.count_params()
    assert callback.summary.score == (pytest.approx(brought), pytest.approx(brought))
    assert (callback.summary.rounds, callback.summary.undone) == (0, 1)


def test_without_a_guard_the_summary_holds_the_metric_before_the_rounds_and_of_the_last_epoch():
    callback = pruner(sgdap.Budget(flops=0.6), schedule="one_shot")
    logs = fit(network(), callback, epochs=3).history["val_accuracy"]
    assert callback.summary.score == (logs[0], logs[-1])


def test_fit_needs_no_validation_data():
    model = network()
    flops = cost(model)[1]
    callback = pruner(max_accuracy_drop=0.9)
    fit(model, callback, validation_data=None, epochs=3)
    assert cost(model)[1] <= 0.33 * flops
    assert all(r.after is not None for r in callback.rounds)


def test_a_callback_serves_a_second_fit():
    model, callback = network(), pruner(sgdap.Budget(flops=0.6))
    fit(model, callback, epochs=2)
    flops = cost(model)[1]
    fit(model, callback, epochs=2)
    assert cost(model)[1] <= 0.6 * flops
    assert len(callback.rounds) == 1


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda held: pickle.loads(pickle.dumps(held)),
    "joblib": lambda held: joblib.load(dumped(held)),
}


def dumped(held) -> io.BytesIO:
    file = io.BytesIO()
    joblib.dump(held, file)
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def left() -> tuple:
    """A callback and the history of its run."""
    callback = pruner(max_accuracy_drop=0.99, schedule="one_shot")
    return callback, fit(network(), callback, epochs=3)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_what_a_run_leaves_can_be_copied_and_stored(left, copied):
    callback, history = left
    again, found = copied(callback), copied(history)
    assert found.history == copied(history.history) == history.history
    assert callback.rounds and callback.plan is not None
    for name in ("rounds", "plan", "widths"):
        assert getattr(again, name) == getattr(callback, name)
    model = network()
    fit(model, again, epochs=3)
    assert cost(model)[1] <= 0.33 * cost(network())[1]


def test_the_callback_of_an_interrupted_run_can_be_stored_too():
    def interrupt(epoch, logs):
        if epoch == 2:
            raise KeyboardInterrupt

    callback = pruner()
    with pytest.raises(KeyboardInterrupt):
        fit(network(), [callback, keras.callbacks.LambdaCallback(on_epoch_begin=interrupt)])
    again = pickle.loads(pickle.dumps(callback))
    assert again.rounds == callback.rounds != []
    assert again.widths == callback.widths
    assert callback.model.predict(X, verbose=0).shape == (128, 3)


# The default places of rounds


@pytest.mark.parametrize(
    ("flops", "epochs", "rounds"),
    [(0.3, 8, [0]), (0.1, 8, [0, 1]), (0.1, 4, [0, 1]), (0.1, 3, [0]), (0.1, 2, [0])],
)
def test_rounds_lie_at_the_beginning_and_the_budget_is_met(flops, epochs, rounds):
    model = network(metrics=[])
    whole = cost(model)[1]
    callback = pruner(sgdap.Budget(flops=flops), **QUICK)
    fit(model, callback, epochs=epochs, validation_data=None)
    assert [r.epoch for r in callback.rounds] == rounds
    assert cost(model)[1] <= flops * whole


def test_rounds_that_are_judged_are_smaller():
    callback = pruner(sgdap.Budget(flops=0.3), max_accuracy_drop=0.99, **QUICK)
    fit(network(), callback, epochs=8)
    assert [r.epoch for r in callback.rounds] == [0, 1, 2, 3]


def test_a_schedule_that_needs_more_rounds_than_lie_in_the_first_half_gets_them():
    for schedule, rounds, how in (
        (sgdap.Linear(5), 5, QUICK),
        (sgdap.Adaptive(cut=0.25), 4, {"reconstruction": False}),
    ):
        callback = pruner(schedule=schedule, round_to=1, **how)
        fit(network(metrics=[]), callback, epochs=6, validation_data=None)
        assert [r.epoch for r in callback.rounds] == list(range(rounds))


def test_a_schedule_over_steps_keeps_its_own_end():
    schedule = PolynomialDecay(0.0, 0.6, begin_step=0, end_step=9, frequency=1)
    callback = pruner(None, schedule=schedule, **QUICK)
    arguments = {"epochs": 6, "validation_data": None, "batch_size": 64}  # two steps an epoch
    fit(network(metrics=[]), callback, **arguments)
    assert callback.rounds[-1].epoch == 4


@pytest.mark.parametrize(
    ("scores", "rounds"),
    [
        ([1, 0, 0, 1, 1, 1, 1, 1], [(0, "kept"), (3, "kept")]),
        ([1, 0, 0, 0, 0, 0, 0, 1], [(0, "undone"), (3, "undone"), (5, "kept")]),
        ([1, 1, 0, 0, 0, 1, 1, 1], [(0, "kept"), (1, "undone"), (4, "kept"), (5, "kept")]),
    ],
    ids=["a round waits for the one before", "two are undone", "the last one is undone"],
)
@pytest.mark.filterwarnings("ignore:SGDAPCallback stopped short")
def test_a_round_has_half_of_the_epochs_left_to_recover_and_others_may_follow(scores, rounds):
    score = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(own=float(scores[epoch]))
    )
    callback = pruner(
        sgdap.Budget(flops=0.1),
        schedule=sgdap.Geometric(rounds=2),
        max_accuracy_drop=0.1,
        monitor="own",
        mode="max",
        **QUICK,
    )
    fit(network(metrics=[]), [score, callback], epochs=8, validation_data=None)
    assert [(r.epoch, r.decision) for r in callback.rounds] == rounds


# Calibration data


def seen_by_statistics(monkeypatch) -> list:
    seen = []
    collect = making.collect_statistics

    def spy(graph, data, **arguments):
        seen.append(data)
        return collect(graph, data, **arguments)

    monkeypatch.setattr(making, "collect_statistics", spy)
    return seen


@pytest.mark.parametrize("jit_compile", [False, XLA])
def test_without_calibration_data_training_batches_are_sampled(monkeypatch, jit_compile):
    seen = seen_by_statistics(monkeypatch)
    model = network(jit_compile=jit_compile)
    fit(model, pruner(samples=100), epochs=2, validation_data=None, batch_size=64)
    (sample,) = keras.tree.flatten(seen)
    known = {x.tobytes() for x in X}
    assert len(sample) == 100
    assert {x.tobytes() for x in sample} <= known
    assert model.jit_compile is jit_compile, "a model compiled with XLA stays so"


@pytest.mark.parametrize("jit_compile", [False, XLA])
def test_targets_are_sampled_with_their_inputs_where_the_loss_needs_them(monkeypatch, jit_compile):
    seen = seen_by_statistics(monkeypatch)
    x = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")
    y = x[:, :1] + [[0.0, 1.0]]

    def own(y, p):
        return keras.ops.mean(keras.ops.square(y - p), axis=-1)

    for loss in (own, "mse"):
        model = mlp_of_two_outputs()
        model.compile("sgd", loss, jit_compile=jit_compile)
        model.fit(x, y, epochs=2, verbose=0, callbacks=[pruner(samples=50)])
    (inputs, targets), alone = seen[0], seen[-1]
    np.testing.assert_allclose(targets, inputs[:, :1] + [[0.0, 1.0]], rtol=1e-6)
    assert len(inputs) == 50
    assert len(alone) == 1, "the squared error needs none"


def mlp_of_two_outputs() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(layers.Dense(8, "relu")(inputs)))


def test_calibration_data_are_used_where_given_and_the_train_step_is_left_alone(monkeypatch):
    seen = seen_by_statistics(monkeypatch)
    model, calibration = network(), X[:50]
    during = []
    spy = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: during.append("train_step" in vars(model))
    )
    callbacks = [pruner(calibration_data=calibration, schedule="one_shot"), spy]
    model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)
    assert all(data is calibration for data in seen)
    assert not any(during)


def test_an_iterator_as_calibration_data_serves_every_round():
    model = network()
    flops = cost(model)[1]
    iterator = ((X[i : i + 20], Y[i : i + 20]) for i in range(0, 120, 20))
    callback = pruner(calibration_data=iterator, samples=64, final_finetune_epochs=1)
    fit(model, callback)
    assert len(callback.rounds) == 3
    assert cost(model)[1] <= 0.33 * flops


def test_a_run_that_ends_early_says_that_the_budget_is_not_met():
    model = network()
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", epoch == 1)
    )
    with stopping_short("The run ended before its last round"):
        model.fit(X, Y, epochs=9, verbose=0, callbacks=[pruner(final_finetune_epochs=1), stop])


def test_the_train_step_is_restored_after_fit():
    model = network()
    fit(model, pruner(schedule="one_shot"), epochs=2)
    assert "train_step" not in vars(model)
    model.fit(X, Y, verbose=0)


def test_models_of_several_inputs_need_no_calibration_data():
    inputs = [keras.Input((4,)), keras.Input((3,))]
    x = layers.Concatenate()([layers.Dense(6, "relu")(tensor) for tensor in inputs])
    model = keras.Model(inputs, layers.Dense(1)(x))
    model.compile("adam", "mse")
    random = np.random.default_rng(0)
    data = [random.normal(size=(64, 4)), random.normal(size=(64, 3))]
    params = model.count_params()
    model.fit(data, random.normal(size=64), epochs=2, verbose=0, callbacks=[pruner()])
    assert model.count_params() < params


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras finds the length so
def test_datasets_of_unknown_length_train_and_prune():
    def stream():
        for start in range(0, 128, 64):
            yield X[start : start + 64], Y[start : start + 64]

    signature = (tf.TensorSpec((None, 8, 8, 2)), tf.TensorSpec((None,), tf.int64))
    data = tf.data.Dataset.from_generator(stream, output_signature=signature)
    model = network()
    flops = cost(model)[1]
    model.fit(data, epochs=2, verbose=0, callbacks=[pruner()], shuffle=False)
    assert cost(model)[1] <= 0.33 * flops


# The guard


@pytest.fixture(scope="module")
def trained() -> list[np.ndarray]:
    model = network()
    model.fit(X, Y, epochs=15, verbose=0)
    return model.get_weights()


@pytest.fixture
def settled(trained) -> keras.Model:
    """A trained model that training changes no more, so no round recovers by itself."""
    model = network(optimizer=keras.optimizers.SGD(0.0))
    model.set_weights(trained)
    return model


@contextlib.contextmanager
def stopping_short(reason: str = "rounds were undone"):
    """Within, the callback must warn that the budget is not met."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="SGDAPCallback stopped short")
        yield
    messages = [str(warning.message) for warning in caught]
    assert any(reason in message for message in messages), messages


def careless(**arguments) -> sgdap.SGDAPCallback:
    """Prunes hard and blindly, after epochs."""
    arguments = {"guidance": "random", "reconstruction": False, "begin_epoch": 0} | arguments
    return pruner(sgdap.Budget(flops=0.1), **arguments)


def test_a_round_that_costs_too_much_is_undone_and_tried_smaller(settled):
    model = settled
    before = model.evaluate(X[:64], Y[:64], verbose=0)[1]
    callback = careless(max_accuracy_drop=0.02, patience=1, schedule="one_shot")
    with stopping_short():
        history = fit(model, callback, epochs=6)
    first, second = callback.rounds[:2]
    assert first.decision == "undone"
    assert first.before == pytest.approx(before)
    assert first.after < before - 0.02
    assert second.progress == pytest.approx(first.progress / 2)
    assert second.before == first.before, "the value of the weights that it starts from"
    assert second.flops[0] == first.flops[0]
    assert model.evaluate(X[:64], Y[:64], verbose=0)[1] >= before - 0.02
    assert history.history["val_accuracy"][1] == pytest.approx(first.after)


def test_after_an_undone_round_the_costliest_groups_get_their_channels_back_first(settled, capsys):
    callback = careless(max_accuracy_drop=0.02, patience=1, schedule="one_shot")
    callback.verbose = 1
    with stopping_short():
        fit(settled, callback, epochs=3)
    first, second = callback.rounds
    (held,) = second.held
    (costliest,) = {"hidden_1", "hidden_2"} - {held}
    assert first.held == ()
    assert second.widths[held] == first.widths[held]
    assert second.widths[costliest] > first.widths[costliest]
    assert f"Channels come back to {costliest} first." in capsys.readouterr().out


def test_without_a_budget_the_model_gets_as_small_as_the_guard_allows(settled):
    before = settled.evaluate(X[:64], Y[:64], verbose=0)[1]
    callback = pruner(None, max_accuracy_drop=0.1, patience=1)
    fit(settled, callback, epochs=9)
    kept = [r for r in callback.rounds if r.decision == "kept"]
    assert kept[0].flops[1] <= 0.7 * kept[0].flops[0]
    assert cost(settled)[1] == kept[-1].flops[1] < 0.4 * kept[0].flops[0]
    assert settled.evaluate(X[:64], Y[:64], verbose=0)[1] >= before - 0.1


@pytest.mark.parametrize("drop", [None, 0.0])
def test_a_round_that_removes_nothing_is_none(drop):
    model = network()
    weights, flops = model.get_weights(), cost(model)[1]
    callback = pruner(sgdap.Budget(flops=flops), max_accuracy_drop=drop)
    fit(model, callback, epochs=3)
    assert callback.rounds == []
    assert [w.shape for w in model.get_weights()] == [w.shape for w in weights]


def test_each_decision_is_a_line_and_a_setting_that_stays_is_none(capsys):
    options = {"final_finetune_epochs": 1, "jit_compile": "auto", "verbose": 1}
    fit(network(), pruner(max_accuracy_drop=0.99, **options))
    lines = capsys.readouterr().out.splitlines()
    rounds = [line for line in lines if "SGDAP keeps" in line and "FLOPs" in line]
    kept = [line for line in lines if "SGDAP keeps the round after epoch" in line]
    assert len(rounds) == len(kept) == 3
    assert not any("jit_compile=" in line for line in lines)
    assert sum("SGDAP compares rounds with" in line for line in lines) == 1


def test_what_xla_gains_is_measured_after_each_round_and_the_gain_decides(monkeypatch, capsys):
    answers = iter([(True, "half the time"), (True, "a third of it"), (False, "no gain")])
    shapes, chosen = [], []

    def choose(program, data, steps, compiles):
        shapes.append(program.model.get_layer("hidden_1").units)
        return next(answers)

    monkeypatch.setattr(run_module, "choose_jit_compile", choose)
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: chosen.append(model.jit_compile)
    )
    model = network(jit_compile=False)
    fit(model, [pruner(verbose=1, final_finetune_epochs=1, jit_compile="auto"), note])
    assert len(set(shapes)) == 3
    assert chosen == [False, True, True, False]
    lines = [line for line in capsys.readouterr().out.splitlines() if "jit_compile=" in line]
    assert lines == [
        "SGDAP: jit_compile=True (half the time)",
        "SGDAP: jit_compile=False (no gain)",
    ]


def test_steps_that_are_timed_train_nothing(monkeypatch):
    def timed(function, **_):
        function()
        return 10.0, 10.0

    monkeypatch.setattr(xla, "_seconds", timed)
    states = []
    for choice in ("auto", None):
        keras.utils.set_random_seed(0)
        model = network(jit_compile=False)
        fit(model, pruner(jit_compile=choice))
        states.append([v.numpy() for v in [*model.variables, *model.optimizer.variables]])
    assert all(map(np.array_equal, *states))


def test_rounds_tell_the_metric_before_and_after_without_a_guard_too():
    callback = pruner(final_finetune_epochs=1)
    history = fit(network(), callback).history["val_accuracy"]
    assert [r.before for r in callback.rounds] == history[:3]
    assert [r.after for r in callback.rounds] == history[1:]


def spoil(model: keras.Model) -> keras.callbacks.Callback:
    """Lets the first epoch ruin what a model has learnt."""
    kernel = model.get_layer("end").kernel
    return keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epoch or kernel.assign(-kernel)
    )


def baseline_of(capsys) -> str:
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("SGDAP compares rounds with"))
    return line.removeprefix("SGDAP compares rounds with val_accuracy ")


SPOILED = {"max_accuracy_drop": 0.02, "patience": 1, "schedule": "one_shot", "verbose": 1}
SPOILED |= {"begin_epoch": 0}


def test_rounds_are_compared_with_the_model_that_fit_was_given(settled, capsys):
    brought = settled.evaluate(X[:64], Y[:64], verbose=0)[1]
    callback = pruner(**SPOILED)
    with stopping_short(f"already, and the baseline is {brought:.4f}: lower the learning rate"):
        history = fit(settled, [callback, spoil(settled)])
    first = history.history["val_accuracy"][0]
    assert first < brought - 0.02 and callback.rounds[0].before == first
    assert callback.rounds[0].decision == "undone"
    assert baseline_of(capsys) == (
        f"{brought:.4f}, of the model that fit was given; before the first round it is {first:.4f}."
    )


def test_they_can_be_compared_with_the_epochs_before_alone(settled, capsys):
    callback = pruner(baseline="first_epoch", **(SPOILED | {"max_accuracy_drop": 0.99}))
    history = fit(settled, [callback, spoil(settled)], epochs=2)
    assert callback.rounds[0].decision == "kept"
    first = history.history["val_accuracy"][0]
    assert baseline_of(capsys) == f"{first:.4f}, the best before the first round."


def test_they_can_be_compared_with_a_number(settled, capsys):
    fit(settled, careless(baseline=0.0, **SPOILED), epochs=2)
    assert baseline_of(capsys).startswith("0.0000, the baseline that was given; before the first")


def test_a_model_that_is_first_trained_is_compared_with_what_it_learnt(capsys):
    model = network()
    model.get_layer("end").kernel.assign(0 * model.get_layer("end").kernel)
    callback = pruner(max_accuracy_drop=0.99, begin_epoch=3, verbose=1)
    history = fit(model, callback, epochs=6)
    best = max(history.history["val_accuracy"][:4])
    assert baseline_of(capsys).startswith(f"{best:.4f}, the best before the first round; the model")


def test_without_an_evaluation_the_line_says_why(capsys):
    own = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(val_accuracy=0.5, own=0.5)
    )
    arguments = {"max_accuracy_drop": 0.99, "verbose": 1, "mode": "max"}
    fit(network(), [own, pruner(monitor="own", **arguments)], epochs=2)
    assert "best before the first round: evaluate gives no finite value of it." in baseline_of(
        capsys
    )
    fit(network(), [own, pruner(**arguments)], epochs=2, validation_data=None)
    assert baseline_of(capsys).endswith("before the first round: fit has no validation data.")


def test_undoing_brings_the_weights_back_exactly(settled):
    model = settled
    before = model.get_weights()
    with stopping_short():
        fit(model, careless(max_accuracy_drop=0.0, patience=1, schedule="one_shot"), epochs=2)
    assert all(map(np.array_equal, before, model.get_weights()))
    model.fit(X, Y, verbose=0)


def test_without_a_guard_nothing_is_undone(settled):
    model = settled
    callback = careless(schedule="one_shot")
    fit(model, callback, epochs=3)
    assert [r.decision for r in callback.rounds] == ["kept"]
    assert cost(model)[1] <= 0.1 * callback.rounds[0].flops[0]


def test_a_round_may_recover_for_as_many_epochs_as_patience_allows(settled):
    callback = careless(max_accuracy_drop=0.02, patience=3, schedule="one_shot")
    with stopping_short():
        fit(settled, callback, epochs=7)
    assert callback.rounds[0].epoch == 0
    assert callback.rounds[1].epoch == 3


@pytest.mark.parametrize(("mode", "decision"), [("auto", "undone"), ("max", "kept")])
def test_mode_says_which_way_is_better(settled, mode, decision):
    callback = careless(
        max_accuracy_drop=0.02, monitor="val_loss", mode=mode, patience=1, schedule="one_shot"
    )
    with stopping_short() if decision == "undone" else contextlib.nullcontext():
        fit(settled, callback, epochs=2)
    assert callback.rounds[0].decision == decision


def test_the_best_weights_within_the_last_widths_are_left():
    model = network(optimizer=keras.optimizers.SGD(3.0))  # so wild that epochs differ
    callback = pruner(max_accuracy_drop=0.99, schedule="one_shot", monitor="val_accuracy")
    history = fit(model, callback, epochs=6)
    best = max(history.history["val_accuracy"][1:])
    assert model.evaluate(X[:64], Y[:64], verbose=0)[1] == pytest.approx(best)


# What can't work is refused before anything changed


def test_a_model_that_is_not_built_is_refused():
    model = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(3)], name="raw")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="'raw' is not built.*keras.Input"):
        model.fit(X, Y, verbose=0, callbacks=[pruner()])


REFUSED = {
    "too few epochs": (
        {"budget": THIRD, "begin_epoch": 4},
        r"no epoch for a round: of 4 epochs.*after epoch 4.*1 are left.*more epochs",
    ),
    "an impossible budget": (
        {"budget": sgdap.Budget(flops=0.001)},
        r"Budget\(flops=0\.001\) cannot be met",
    ),
    "an unknown layer": ({"budget": THIRD, "layers": ["conv_9"]}, "'conv_9'. There are: hidden_1"),
    "calibration data of another shape": (
        {"budget": THIRD, "calibration_data": X[:, 1:]},
        r"do not fit model.*\(None, 8, 8, 2\). Received: an input of shape \(32, 7, 8, 2\)",
    ),
    "empty calibration data": ({"budget": THIRD, "calibration_data": X[:0]}, "data are empty"),
    "more rounds than epochs": (
        {"budget": THIRD, "schedule": sgdap.Linear(rounds=4)},
        r"Linear\(rounds=4\) needs 4 rounds, and there are epochs for 3. Train for more epochs",
    ),
    "a schedule that ends after the run": (
        {"budget": THIRD, "schedule": PolynomialDecay(0.2, 0.6, 0, end_step=20, frequency=2)},
        "ends in step 20 with a sparsity of 0.6, but only in 6 steps of this run",
    ),
    "a schedule beyond the run": (
        {"budget": THIRD, "schedule": ConstantSparsity(0.5, begin_step=10_000)},
        "does not prune in any of the 6 steps",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_before_training(arguments, message):
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(model, sgdap.SGDAPCallback(**arguments), batch_size=64)
    assert all(map(np.array_equal, before, model.get_weights()))
    assert "train_step" not in vars(model)


def test_an_unknown_metric_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'val_f1'.*not among.*accuracy, loss, val_accuracy"):
        fit(network(), pruner(monitor="val_f1"))


def test_a_schedule_over_steps_needs_their_number():
    data = tf.data.Dataset.from_generator(
        lambda: iter([(X, Y)]),
        output_signature=(tf.TensorSpec((None, 8, 8, 2)), tf.TensorSpec((None,), tf.int64)),
    )
    callback = pruner(None, schedule=ConstantSparsity(0.5, 0))
    with pytest.raises(ValueError, match="needs to know how many.*steps_per_epoch"):
        network().fit(data, epochs=2, verbose=0, callbacks=[callback], shuffle=False)


def test_without_budget_and_guard_the_lasso_chooses_the_widths_in_one_round():
    model = network()
    for name in ("hidden_1", "hidden_2"):  # dead channels are free
        kernel, bias = model.get_layer(name).get_weights()
        kernel[:, :3], bias[:3] = 0.0, -1.0
        model.get_layer(name).set_weights([kernel, bias])
    callback = pruner(None)
    fit(model, callback, epochs=3)
    assert len(callback.rounds) == 1
    assert all(width <= 12 - 3 for width in callback.rounds[0].widths.values())
    assert model.get_layer("hidden_1").units <= 9


ARGUMENTS = {
    "no budget": ({"budget": None, "schedule": "cubic"}, TypeError, "must be a sgdap.Budget"),
    "nothing that says how many channels stay": (
        {"budget": None, "guidance": "magnitude"},
        ValueError,
        "guidance='magnitude' says in which order",
    ),
    "a number as budget": ({"budget": 0.3}, TypeError, "Received: 0.3"),
    "guidance": ({"guidance": "lazo"}, ValueError, "No guidance is called 'lazo'"),
    "schedule": ({"schedule": "fast"}, ValueError, "No schedule is called 'fast'"),
    "drop": ({"max_accuracy_drop": -0.1}, ValueError, "max_accuracy_drop must be a finite number"),
    "an endless drop": ({"max_accuracy_drop": float("inf")}, ValueError, "Received: .*=inf"),
    "drop of a wrong type": ({"max_accuracy_drop": "1%"}, ValueError, "Received: .*'1%'"),
    "patience": ({"patience": -1}, ValueError, "patience must be an integer of at least 0"),
    "final epochs": (
        {"final_finetune_epochs": "half"},
        ValueError,
        "final_finetune_epochs must be an integer of at least 0. Received: .*='half'",
    ),
    "frequency": ({"frequency": 0}, ValueError, "frequency must be an integer of at least 1"),
    "samples": ({"samples": 2.5}, ValueError, "samples must be an integer of at least 5"),
    "mode": ({"mode": "up"}, ValueError, "mode must be 'auto', 'min' or 'max'"),
    "allocation": ({"allocation": "best"}, ValueError, "allocation must be 'global'"),
    "a number for a flag": ({"reconstruction": 1}, ValueError, "must be True or False.*=1"),
    "reconstruction": ({"reconstruction": "no"}, ValueError, "must be True or False.*'no'"),
    "a guard without an epoch to judge by": (
        {"max_accuracy_drop": 0.1, "final_finetune_epochs": 0},
        ValueError,
        "needs an epoch after the last round",
    ),
    "a schedule that leads nowhere": (
        {"budget": None, "max_accuracy_drop": 0.1, "schedule": "linear"},
        ValueError,
        "as small as it can.*Received: schedule='linear'",
    ),
    "jit_compile": ({"jit_compile": "yes"}, ValueError, "jit_compile must be 'auto'"),
    "folds": ({"folds": 1}, ValueError, "folds must be an integer of at least 2"),
    "fewer samples than folds": (
        {"folds": 9, "samples": 8},
        ValueError,
        "samples must be an integer of at least 9. Received: samples=8",
    ),
    "positions": ({"positions": 0}, ValueError, "positions must be an integer of at least 1"),
    "memory_limit": ({"memory_limit": 0}, ValueError, "memory_limit must be an integer of at"),
    "a pattern that is no list": ({"layers": "conv*"}, TypeError, "layers must be a list"),
    "an override that is no share": ({"overrides": {"a": 4}}, ValueError, "shares of channels"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_without_meaning_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        sgdap.SGDAPCallback(**({"budget": THIRD} | arguments))


@pytest.mark.parametrize("verbose", [0, 1])
def test_it_prints_only_where_asked(verbose, capsys):
    fit(network(), pruner(schedule="one_shot", verbose=verbose), epochs=2)
    printed = capsys.readouterr().out
    assert ("After epoch 1: SGDAP keeps" in printed) == bool(verbose)
    assert bool(printed) == bool(verbose)


def test_a_run_that_begins_later_goes_the_whole_way_from_there():
    model, (x, y) = convnet(optimizer="adam"), digits_like(48)
    full = sgdap.profile(model, latency=False).flops
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.3), schedule="linear", final_finetune_epochs=1, verbose=0
    )
    model.fit(x, y, epochs=10, initial_epoch=6, verbose=0, callbacks=[callback])
    assert [r.epoch for r in callback.rounds] == [6, 7, 8]
    assert callback.rounds[0].flops[1] > 0.6 * full
    assert callback.rounds[-1].flops[1] <= 0.3 * full


def test_a_run_that_begins_too_late_is_refused_and_leaves_no_tap():
    model, (x, y) = convnet(optimizer="adam"), digits_like(48)
    before = model.get_weights()
    with pytest.raises(ValueError, match="no epoch for a round"):
        model.fit(
            x,
            y,
            epochs=10,
            initial_epoch=9,
            verbose=0,
            callbacks=[sgdap.SGDAPCallback(sgdap.Budget(flops=0.3))],
        )
    assert all(map(np.array_equal, before, model.get_weights()))
    assert "train_step" not in vars(model)


class Forgetful(layers.Dense):
    """A layer that can't be made without an argument of which nothing tells any more."""

    def __init__(self, units, gain, **kwargs):
        super().__init__(units, **kwargs)
        self.gained = 2 * gain


class Gained(layers.Dense):
    """A layer whose config lacks an argument that has a default."""

    def __init__(self, units, gain=1.0, **kwargs):
        super().__init__(units, **kwargs)
        self.gain = gain


def dense_after(layer):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(3, "softmax", name="end")(layer(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model, np.random.rand(64, 8), np.random.randint(3, size=64)


def test_what_surgery_could_not_rebuild_is_refused_before_training():
    model, x, y = dense_after(Forgetful(16, gain=2.0, name="odd"))
    before = model.get_weights()
    with pytest.raises(ValueError, match="'odd' .* can't be rebuilt from its config"):
        model.fit(x, y, epochs=2, verbose=0, callbacks=[sgdap.SGDAPCallback(HALF)])
    assert all(map(np.array_equal, before, model.get_weights()))
    assert "train_step" not in vars(model)


def test_what_a_config_forgot_is_kept():
    model, x, y = dense_after(Gained(16, gain=5.0, name="gained"))
    model.fit(x, y, epochs=2, verbose=0, callbacks=[sgdap.SGDAPCallback(HALF, verbose=0)])
    assert model.get_layer("gained").units < 16
    assert model.get_layer("gained").gain == 5.0


def test_two_of_them_in_one_fit_are_refused():
    model, (x, y) = convnet(optimizer="adam"), digits_like(48)
    callbacks = [sgdap.SGDAPCallback(sgdap.Budget(flops=0.3)) for _ in range(2)]
    with pytest.raises(ValueError, match="more than one"):
        model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)


def test_embeddings_shrink_in_fit():
    inputs = keras.Input((7,), dtype="int32")
    y = layers.GlobalAveragePooling1D()(layers.Embedding(50, 16)(inputs))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(y))
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = np.random.randint(50, size=(64, 7)), np.random.randint(3, size=64)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[sgdap.SGDAPCallback(HALF, verbose=0)])
    assert model.layers[1].output_dim < 16


@pytest.mark.compiled
def test_a_model_that_shrank_in_fit_exports_with_its_optimizer(tmp_path):
    rate = keras.optimizers.schedules.CosineDecay(1e-3, 30)
    model, (x, y) = convnet(optimizer=keras.optimizers.Adam(rate)), digits_like(48)
    callbacks = [sgdap.SGDAPCallback(HALF, verbose=0, max_accuracy_drop=0.99)]
    model.fit(x, y, epochs=4, verbose=0, validation_data=(x, y), callbacks=callbacks)
    model.export(tmp_path, verbose=False)
    loaded = tf.saved_model.load(tmp_path)
    served = loaded.serve(x)
    np.testing.assert_allclose(served, outputs(model, x), atol=1e-5)
