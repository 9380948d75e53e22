"""What a model scores before it trains is found on fit's validation data, and leaves no trace."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.training.baseline import validation_metrics
from tests.models import digits_like

X, Y = digits_like(96)
VALIDATION = (X[:40], Y[:40])


@keras.saving.register_keras_serializable()
class AlwaysNoisy(layers.Layer):
    """Draws random numbers in inference too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(3)

    def call(self, x):
        return x + 0.1 * keras.random.normal(keras.ops.shape(x), seed=self.seed_generator)


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Flatten(),
            AlwaysNoisy(),
            layers.Dense(12, "relu", name="one"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(9, "relu", name="two"),
            layers.Dense(3, "softmax", name="end"),
        ]
    )
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adagrad(0.1), loss, metrics=["accuracy"])
    return model


class Asking(keras.callbacks.Callback):
    """Asks when the fit begins, and notes what could have changed."""

    def on_train_begin(self, logs=None):
        before = self.noted()
        self.found = validation_metrics(self.model)
        self.same = [a.tobytes() == b.tobytes() for a, b in zip(before, self.noted(), strict=True)]

    def noted(self) -> list:
        optimizer = self.model.optimizer
        held = [*self.model.variables, *self.model.metrics_variables, *optimizer.variables]
        numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
        return [*(v.numpy() for v in held), numpy_state, np.array(random.getstate()[1])]


def asked(model: keras.Model, **arguments) -> tuple[dict[str, float], str]:
    callback = Asking()
    arguments = {"batch_size": 16, "verbose": 0} | arguments
    model.fit(X, Y, callbacks=[callback], **arguments)
    assert all(callback.same) and len(callback.same) > 10
    return callback.found


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[index * 20 : index * 20 + 20], Y[index * 20 : index * 20 + 20]


WAYS = {
    "arrays": lambda: {"validation_data": VALIDATION},
    "tensors and batches": lambda: {
        "validation_data": tuple(map(tf.constant, VALIDATION)),
        "validation_batch_size": 7,
    },
    "weights": lambda: {"validation_data": (*VALIDATION, np.ones(40))},
    "a dataset": lambda: {
        "validation_data": tf.data.Dataset.from_tensor_slices(VALIDATION).batch(20)
    },
    "a PyDataset": lambda: {"validation_data": Batches(), "validation_freq": 2, "epochs": 2},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_metrics_are_those_of_evaluate_and_nothing_changes(way):
    model = network()
    model.layers[1].seed_generator.state.assign([0, 1])
    expected = model.evaluate(*VALIDATION, batch_size=16, verbose=0, return_dict=True)
    model.layers[1].seed_generator.state.assign([0, 1])
    found, why = asked(model, **way())
    assert found == pytest.approx({f"val_{n}": v for n, v in expected.items()}, abs=0.06)
    assert why == ""


def test_a_share_of_the_training_data_that_validates_is_found_too():
    model = network()
    expected = model.evaluate(X[-24:], Y[-24:], verbose=0, return_dict=True)
    found, _ = asked(model, validation_split=0.25)
    assert found["val_loss"] == pytest.approx(expected["loss"], abs=0.1)


def test_a_model_that_was_trained_and_measured_before_is_left_as_it_was():
    model = network()
    model.fit(X, Y, verbose=0, validation_data=VALIDATION)
    found, _ = asked(model, validation_data=VALIDATION)
    assert set(found) == {"val_loss", "val_accuracy"}


def test_states_of_recurrent_layers_are_left():
    inputs = keras.Input(batch_shape=(4, 3, 2))
    model = keras.Model(inputs, layers.Dense(1)(layers.LSTM(3, stateful=True)(inputs)))
    model.compile("sgd", "mse")
    x, y = np.ones((8, 3, 2)), np.ones((8, 1))
    model.predict(x, batch_size=4, verbose=0)
    states = []

    class Noting(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            for _ in range(2):
                states.append(model.layers[1].states[0].numpy())
                found.append(validation_metrics(model))

    found = []
    model.fit(x, y, batch_size=4, verbose=0, validation_data=(x, y), callbacks=[Noting()])
    assert np.any(states[0]) and np.array_equal(*states)
    assert found[0] == found[1] and found[0][0]["val_loss"] > 0


def stream():
    while True:
        yield VALIDATION


class OwnFit(keras.Model):
    """Trains in a way of its own and tells callbacks of it."""

    def fit(self, x, y, callbacks, **arguments):
        for callback in callbacks:
            callback.set_model(self)
            callback.on_train_begin()


def test_why_there_are_no_metrics_is_told_in_words():
    assert asked(network()) == ({}, "fit has no validation data")
    data = stream()
    found = asked(network(), validation_data=data, validation_steps=1)
    assert found == ({}, "validation data of type generator may be gone after they are read once")
    inputs = keras.Input((8, 8, 2))
    model = OwnFit(inputs, layers.Dense(3)(layers.Flatten()(inputs)))
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    callback = Asking()
    model.fit(X, Y, callbacks=[callback])
    assert callback.found == ({}, "the validation data of this fit can't be reached")


def test_a_metric_of_several_values_is_left_out():
    model = network()
    by_class = keras.metrics.F1Score(average=None, name="f1")
    model.compile("sgd", "categorical_crossentropy", metrics=[by_class])
    model.optimizer.build(model.trainable_variables)
    found = []
    asking = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: found.append(validation_metrics(model))
    )
    y = keras.ops.one_hot(Y, 3).numpy()
    model.fit(X, y, validation_data=(X, y), verbose=0, callbacks=[asking])
    assert [(set(metrics), why) for metrics, why in found] == [({"val_loss"}, "")]


def test_a_metric_that_is_not_finite_is_left_out():
    model = network()
    model.get_layer("end").bias.assign([np.nan] * 3)
    model.evaluate(*VALIDATION, verbose=0)  # makes the metrics' variables
    assert "val_loss" not in asked(model, validation_data=VALIDATION)[0]


@pytest.mark.parametrize("pruner", [sgdap.SGDAPCallback, sgdap.SparsityCallback])
def test_a_drop_that_no_accuracy_can_fall_is_refused_before_the_first_step(pruner):
    model = network()
    before = model.get_weights()
    asked_for = sgdap.Budget(flops=0.5) if pruner is sgdap.SGDAPCallback else 0.5
    callback = pruner(asked_for, max_accuracy_drop=5, verbose=0)
    with pytest.raises(ValueError, match="Did you mean max_accuracy_drop=0.05"):
        model.fit(X, Y, validation_data=VALIDATION, epochs=4, verbose=0, callbacks=[callback])
    assert int(model.optimizer.iterations) == 0
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("pruner", [sgdap.SGDAPCallback, sgdap.SparsityCallback])
@pytest.mark.parametrize(
    ("monitor", "validation", "message"),
    [
        ("val_acuracy", VALIDATION, "'val_acuracy', which is not among.*: .*val_accuracy"),
        ("acuracy", None, "'acuracy', which is not among the metrics of this run: accuracy, loss"),
        ("val_accuracy", None, "no epoch of this run is validated"),
        ("val_rise", VALIDATION, "can't tell whether more of it is better"),
    ],
)
def test_a_metric_that_can_not_judge_is_refused_before_the_first_step(
    pruner, monitor, validation, message
):
    model = network()
    model.compile("sgd", model.loss, metrics=["accuracy", rise])
    before = model.get_weights()
    asked_for = sgdap.Budget(flops=0.5) if pruner is sgdap.SGDAPCallback else 0.5
    options = {"baseline": "first_epoch", "max_accuracy_drop": 0.1, "verbose": 0}
    callback = pruner(asked_for, monitor=monitor, **options)
    with pytest.raises(ValueError, match=message):
        model.fit(X, Y, validation_data=validation, epochs=4, verbose=0, callbacks=[callback])
    assert int(model.optimizer.iterations) == 0
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def rise(y_true, y_pred):
    return keras.ops.mean(y_pred, -1)


def test_a_metric_that_another_callback_adds_to_the_logs_is_found_in_them():
    adding = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: logs.update(own=0.5))
    options = {"monitor": "own", "mode": "max", "max_accuracy_drop": 0.1, "verbose": 0}
    callback = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), **options)
    network().fit(X, Y, epochs=4, verbose=0, callbacks=[adding, callback])
    assert {r.before for r in callback.rounds} == {0.5}


def trained(baseline, **arguments) -> tuple[sgdap.SGDAPCallback, list[np.ndarray]]:
    model = network()
    options = {"max_accuracy_drop": 0.99, "schedule": "one_shot", "jit_compile": None}
    callback = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), baseline=baseline, verbose=0, **options)
    arguments = {"validation_data": VALIDATION, "epochs": 3, "batch_size": 48} | arguments
    model.fit(X, Y, verbose=0, callbacks=[callback], **arguments)
    drawn = [np.random.random(), random.random()]  # noqa: NPY002
    variables = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]
    return callback, [*variables, np.array(drawn), np.array(keras.random.uniform((2,)))]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"validation_data": Batches(), "shuffle": True}],
    ids=["arrays", "a PyDataset"],
)
def test_training_goes_as_it_does_without_the_evaluation(arguments):
    (one, first), (other, second) = (trained(b, **arguments) for b in ("evaluate", "first_epoch"))
    assert one.rounds == other.rounds != []
    assert all(r.decision == "kept" for r in one.rounds)
    assert len(first) == len(second)
    assert all(map(np.array_equal, first, second))
