"""In one `fit` with other callbacks: where a round is undone, a run stops early or breaks."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from tests.compatibility.kinds import OwnTrainStep
from tests.models import digits_like, trained_once

X, Y = digits_like(128)


def network(optimizer=None, kind: type = keras.Model, **arguments) -> keras.Model:
    inputs = keras.Input((8, 8, 2))
    x = layers.Dense(12, "relu", name="hidden_1")(layers.Flatten()(inputs))
    x = layers.Dense(10, "relu", name="hidden_2")(x)
    model = kind(inputs, layers.Dense(3, "softmax", name="end")(x))
    arguments = {"metrics": ["accuracy"], "loss": "sparse_categorical_crossentropy"} | arguments
    model.compile(optimizer or keras.optimizers.Adagrad(0.1), **arguments)
    return model


learnt = trained_once(network, X, Y)


def trained() -> keras.Model:
    """A network that was trained, and that no training changes any more."""
    model = learnt()
    model.optimizer.learning_rate = 0.0
    return model


def careless(**arguments) -> sgdap.SGDAPCallback:
    """Prunes hard and blindly after an epoch, and undoes it."""
    arguments = {"max_accuracy_drop": 0.0, "patience": 1, "schedule": "one_shot"} | arguments
    arguments = {"begin_epoch": 0, "jit_compile": None} | arguments
    arguments = {"patience": 2, "final_finetune_epochs": 1} | arguments
    return sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.1), "random", reconstruction=False, verbose=0, **arguments
    )


def fit(model, callbacks, epochs=4, **arguments):
    arguments = {"validation_data": (X[:64], Y[:64]), "batch_size": 128} | arguments
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SGDAPCallback stopped short")
        return model.fit(X, Y, epochs=epochs, verbose=0, callbacks=callbacks, **arguments)


def in_both_places(callback, neighbour, stands: str) -> list:
    return [neighbour, callback] if stands == "before" else [callback, neighbour]


BOTH_PLACES = pytest.mark.parametrize("stands", ["before", "after"])


@BOTH_PLACES
def test_early_stopping_restores_no_weights_of_an_architecture_that_was_undone(stands):
    model = trained()
    shapes = [w.shape for w in model.get_weights()]
    stopping = keras.callbacks.EarlyStopping(
        "val_loss", mode="max", patience=9, restore_best_weights=True
    )
    callback = careless()
    fit(model, in_both_places(callback, stopping, stands), epochs=3)
    assert callback.rounds[0].decision == "undone"
    assert [w.shape for w in model.get_weights()] == shapes
    model.evaluate(X, Y, verbose=0)


@BOTH_PLACES
def test_early_stopping_counts_its_patience_from_the_last_round(stands):
    model = network(keras.optimizers.SGD(0.0))
    stopping = keras.callbacks.EarlyStopping("loss", patience=2)
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.5), begin_epoch=1, frequency=2, schedule=sgdap.Linear(2), verbose=0
    )
    history = fit(model, in_both_places(callback, stopping, stands), epochs=9)
    assert [r.epoch for r in callback.rounds] == [1, 3]
    assert len(history.history["loss"]) == 3 + 1 + 3, "one epoch to compare with, then its patience"


@BOTH_PLACES
def test_a_run_that_diverges_is_brought_back_by_the_guard(stands):
    model = network()
    fit(model, [], epochs=2)
    before = model.get_weights()
    model.optimizer.learning_rate = 0.0
    poison = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: (
            model.get_layer("end").bias.assign([np.nan] * 3) if epoch == 1 else None
        )
    )
    callback = careless(max_accuracy_drop=0.5)
    halt = keras.callbacks.TerminateOnNaN()
    history = fit(model, [*in_both_places(callback, halt, stands), poison])
    assert len(history.history["loss"]) == 2
    assert callback.rounds[0].decision == "undone"
    assert all(map(np.array_equal, before, model.get_weights()))


def test_a_backup_of_keras_is_refused_before_training(tmp_path):
    model = network()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(ValueError, match="BackupAndRestore can't bring back"):
        fit(model, [backup, careless()])
    assert "train_step" not in vars(model)
    fit(model, [careless()], epochs=2)


def test_the_guards_best_model_is_left_with_its_average():
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    model = network(optimizer)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.5), schedule="one_shot", max_accuracy_drop=0.99, verbose=0
    )
    history = fit(model, [swap, callback], epochs=5).history
    best = max(history["val_accuracy"][1:])
    assert model.evaluate(X[:64], Y[:64], verbose=0)[1] == pytest.approx(best)


def test_batches_of_an_unknown_form_need_calibration_data():
    class OwnForm(keras.Model):
        def train_step(self, data):
            return super().train_step((data["x"], data["y"]))

    data = tf.data.Dataset.from_tensor_slices({"x": X, "y": Y}).batch(64)
    arguments = {"epochs": 2, "verbose": 0, "shuffle": False}
    model = network(kind=OwnForm)
    params = model.count_params()
    given = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), calibration_data=X, verbose=0)
    model.fit(data, callbacks=[given], **arguments)
    assert model.count_params() < params
    without = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), verbose=0)
    with pytest.raises(ValueError, match="can't tell the model's inputs. Pass calibration_data"):
        network(kind=OwnForm).fit(data, callbacks=[without], **arguments)


@pytest.mark.parametrize("monitor", ["auto", "val_accuracy"])
@pytest.mark.parametrize("often", [2, [2, 4, 6]])
def test_the_guard_goes_from_one_validated_epoch_to_the_next(monitor, often):
    callback = careless(max_accuracy_drop=0.99, monitor=monitor, schedule="linear")
    logs = fit(network(), [callback], epochs=8, validation_freq=often).history
    values = logs["val_accuracy"]
    assert [r.epoch for r in callback.rounds] == [1, 3, 5][: len(values) - 1]
    assert [r.decision for r in callback.rounds] == ["kept"] * (len(values) - 1)
    assert [(r.before, r.after) for r in callback.rounds] == list(
        zip(values, values[1:], strict=False)
    )
    assert logs["flops"][-1] <= 0.1 * logs["flops"][0], "the last round reaches the budget"


def test_a_round_that_fails_is_undone_by_the_next_validated_epoch():
    model = trained()
    callback = careless()
    logs = fit(model, [callback], epochs=9, validation_freq=3).history
    first, second = callback.rounds
    assert (first.epoch, first.decision, second.epoch) == (2, "undone", 5)
    assert logs["flops"][3:6] == [first.flops[1]] * 3


def test_epochs_without_validation_use_up_no_patience():
    model = trained()
    callback = careless(patience=2)
    fit(model, [callback], epochs=8, validation_freq=2)
    assert [r.epoch for r in callback.rounds] == [1, 5]


def test_too_few_validated_epochs_are_refused_at_the_start():
    model = network()
    with pytest.raises(ValueError, match="no epoch for a round.*validation_freq leaves 1 of them"):
        fit(model, [careless(max_accuracy_drop=0.99)], epochs=5, validation_freq=3)
    with pytest.raises(ValueError, match="needs 3 rounds, and there are epochs for 2"):
        fit(model, [careless(schedule=sgdap.Linear(3))], epochs=7, validation_freq=2)
    assert "train_step" not in vars(model)


def test_without_a_guard_rounds_wait_for_no_validation():
    callback = careless(max_accuracy_drop=None, schedule="linear")
    fit(network(), [callback], epochs=4, validation_freq=4)
    assert [r.epoch for r in callback.rounds] == [0, 1, 2]


# Compilations


def counting(traces: list) -> type:
    class Counting(OwnTrainStep):
        def train_step(self, data):
            traces.append(self.count_params())
            return super().train_step(data)

    return Counting


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("steps_per_execution", "xla", "batch_size"),
    [(1, False, 48), (2, False, 48), (1, True, 64)],  # XLA would compile each size of a batch
)
def test_the_train_step_is_compiled_once_for_each_shape_of_the_model(
    steps_per_execution, xla, batch_size
):
    traces = []
    how = {"steps_per_execution": steps_per_execution, "jit_compile": xla}
    model = network(kind=counting(traces), **how)
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.5),
        "activation",
        reconstruction=False,
        schedule=sgdap.Linear(2),
        begin_epoch=0,
        final_finetune_epochs=2,
        verbose=0,
    )
    batches = {"batch_size": batch_size, "validation_data": None}  # 128 are 48, 48 and 32
    history = fit(model, [callback], epochs=4, **batches)
    shapes = list(dict.fromkeys(history.history["params"]))
    assert len(shapes) == 1 + len(callback.rounds) == 3
    first = [shapes[0]]  # in its first step Keras makes variables, and traces once more
    assert traces == first + shapes
    traces.clear()
    fit(network(kind=counting(traces), **how), [], epochs=2, **batches)
    assert traces == first + first, "as without SGDAPCallback"
