"""A model that knows its targets already is pruned before the first epoch, without a trace."""

import random
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.training.first_sample import known_samples
from tests.models import digits_like, functions_compiled

pytestmark = pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")

X, Y = digits_like(128)
VALIDATION = (X[:48], Y[:48])


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = slice(64 * index, 64 * index + 64)
        return X[rows], Y[rows]


def stream():
    while True:
        yield X[:32], Y[:32]


DATA = {
    "arrays": lambda: {"x": X, "y": Y, "batch_size": 64},
    "tensors": lambda: {"x": tf.constant(X), "y": tf.constant(Y), "batch_size": 64},
    "tf.data": lambda: {"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(64)},
    "PyDataset": lambda: {"x": Batches()},
}


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Flatten(),
            layers.Dense(12, "relu", name="one"),
            layers.BatchNormalization(),
            layers.Dense(9, "relu", name="two"),
            layers.Dense(3, "softmax", name="end"),
        ]
    )
    compiled(model)
    return model


def compiled(model: keras.Model) -> None:
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])


@pytest.fixture(scope="module")
def weights() -> list:
    model = network()
    with functions_compiled():
        model.fit(X, Y, epochs=10, verbose=0)
    return model.get_weights()


@pytest.fixture
def trained(weights) -> keras.Model:
    model = network()
    model.set_weights(weights)
    return model


def pruned(model, epochs=4, budget=0.5, callbacks=(), data="arrays", **arguments):
    fit = {
        key: arguments.pop(key) for key in ("initial_epoch", "validation_data") & arguments.keys()
    }
    arguments = {"jit_compile": None, "verbose": 0} | arguments
    callback = sgdap.SGDAPCallback(sgdap.Budget(flops=budget), **arguments)
    data = DATA[data]() if isinstance(data, str) else data
    model.fit(**data, epochs=epochs, verbose=0, callbacks=[*callbacks, callback], **fit)
    return callback


@pytest.mark.parametrize("data", DATA)
def test_a_trained_model_is_pruned_before_the_first_epoch(trained, data, capsys):
    whole = trained.count_params()
    callback = pruned(trained, epochs=1, data=data, verbose=1)
    assert [r.epoch for r in callback.rounds] == [-1]
    assert trained.count_params() < whole
    assert "Before epoch 1: SGDAP keeps 4" in capsys.readouterr().out


def test_all_rounds_come_an_epoch_earlier(trained):
    callback = pruned(trained, epochs=6, budget=0.2, schedule=sgdap.Linear(3))
    assert [r.epoch for r in callback.rounds] == [-1, 0, 1]
    assert callback.rounds[-1].flops[1] <= 0.2 * callback.rounds[0].flops[0]


def test_a_run_that_begins_later_is_pruned_before_its_own_first_epoch(trained):
    callback = pruned(trained, epochs=7, initial_epoch=5)
    assert [r.epoch for r in callback.rounds] == [4]


def test_a_new_model_and_one_with_a_new_head_are_trained_for_an_epoch_first(trained):
    assert pruned(network()).rounds[0].epoch == 0
    head = layers.Dense(3, "softmax")(trained.layers[-2].output)
    headed = keras.Model(trained.inputs, head)
    compiled(headed)
    assert pruned(headed).rounds[0].epoch == 0


def test_a_sample_of_one_class_tells_nothing(trained):
    order = np.argsort(Y)
    data = tf.data.Dataset.from_tensor_slices((X[order], Y[order])).batch(16)
    assert pruned(trained, data={"x": data}, samples=16).rounds[0].epoch == 0


def test_a_number_says_after_which_epoch(trained):
    assert pruned(trained, begin_epoch=0).rounds[0].epoch == 0


def test_data_that_come_only_once_stay_with_fit(trained):
    once = {"x": stream(), "steps_per_epoch": 4}
    assert pruned(trained, data=once).rounds[0].epoch == 0
    again = {"x": stream(), "steps_per_epoch": 4}
    given = pruned(trained, data=again, budget=0.4, calibration_data=(X, Y))
    assert given.rounds[0].epoch == -1


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_a_regression_that_is_trained_is_known_by_its_loss(loss):
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    data = {"x": x, "y": 40 * x[:, :2] + 7, "batch_size": 64}
    new, model = (
        keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(2)])
        for _ in range(2)
    )
    for one in (new, model):
        one.compile("adam", loss)
    assert pruned(new, epochs=2, data=data).rounds[0].epoch == 0
    signs = np.hstack([np.eye(6, 2), -np.eye(6, 2)])  # relu(x) - relu(-x) = x
    first, last = np.pad(signs, ((0, 0), (0, 4))), 40 * np.pad(signs[:2], ((0, 0), (0, 4))).T
    model.set_weights([first, np.zeros(8), last, np.full(2, 7.0)])
    assert pruned(model, epochs=2, data=data).rounds[0].epoch == -1


def test_a_guard_compares_with_the_model_that_was_brought(trained):
    brought = trained.evaluate(*VALIDATION, verbose=0)[1]
    callback = pruned(trained, max_accuracy_drop=0.9, validation_data=VALIDATION, epochs=8)
    first = callback.rounds[0]
    assert first.epoch == -1
    assert first.before == pytest.approx(brought)
    assert callback.summary.score[0] == pytest.approx(brought)


@pytest.mark.parametrize(
    "arguments",
    [
        {"baseline": "first_epoch", "validation_data": VALIDATION},
        {"monitor": "loss", "mode": "min"},  # the training loss is not known before
        {},  # without validation data nothing is known before
    ],
)
def test_a_guard_without_a_metric_waits_for_the_first_epoch(trained, arguments):
    callback = pruned(trained, max_accuracy_drop=0.9, **arguments)
    assert callback.rounds[0].epoch == 0


def test_a_round_before_the_first_epoch_can_be_undone(trained):
    trained.optimizer.learning_rate = 0.0
    whole = trained.count_params()
    guarded = {"max_accuracy_drop": 0.02, "validation_data": VALIDATION, "patience": 1}
    blind = {"guidance": "random", "reconstruction": False, "schedule": "one_shot"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SGDAPCallback stopped short")
        callback = pruned(trained, epochs=2, budget=0.1, **guarded, **blind)
    assert (callback.rounds[0].epoch, callback.rounds[0].decision) == (-1, "undone")
    assert trained.count_params() >= 0.5 * whole
    assert trained.evaluate(*VALIDATION, verbose=0)[1] >= callback.summary.score[0] - 0.02


class Asking(keras.callbacks.Callback):
    """Asks when the fit begins, and notes what could have changed."""

    def on_train_begin(self, logs=None):
        before = self.noted()
        self.found = known_samples(self.model, None, 50, 2**20, 0)
        after = self.noted()  # and that of metrics which Keras made meanwhile
        self.same = {key: value == after[key] for key, value in before.items()}

    def noted(self) -> dict:
        optimizer = self.model.optimizer
        held = [*self.model.variables, *self.model.metrics_variables, *optimizer.variables]
        drawn = {"python": random.getstate(), "numpy": str(np.random.get_state())}  # noqa: NPY002
        return {variable.path: variable.numpy().tobytes() for variable in held} | drawn


@pytest.mark.parametrize("data", DATA)
def test_the_question_leaves_no_trace(trained, data):
    asking = Asking()
    trained.fit(**DATA[data](), verbose=0, callbacks=[asking])
    assert all(asking.same.values()), asking.same
    x, y = asking.found
    assert x.shape == (50, 8, 8, 2)
    whole = {row.tobytes(): label for row, label in zip(X, Y, strict=True)}
    assert [whole[row.tobytes()] for row in x] == list(y)
    assert len({row.tobytes() for row in x}) == 50


def test_the_sample_is_held_to_its_bytes(trained):
    found = []
    ask = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: found.append(known_samples(trained, None, None, 40_000, 0))
    )
    trained.fit(**DATA["PyDataset"](), verbose=0, callbacks=[ask])
    assert 0 < found[0][0].nbytes <= 40_000


@keras.saving.register_keras_serializable()
class Reconstructing(keras.Model):
    """An autoencoder: its inputs are its targets, and `fit` gets no others."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean((y_pred - x) ** 2)


@pytest.mark.parametrize("calibration", [None, X])
def test_inputs_without_targets_are_trained_on_first(calibration):
    inputs = keras.Input((8, 8, 2))
    x = layers.Dense(12, "relu", name="one")(layers.Flatten()(inputs))
    model = Reconstructing(inputs, layers.Reshape((8, 8, 2))(layers.Dense(128)(x)))
    model.compile("adam")
    callback = pruned(model, data={"x": X}, calibration_data=calibration)
    assert callback.rounds[0].epoch == 0


def test_some_targets_may_be_missing(trained):
    ends = {"a": trained.layers[-1].output, "b": trained.layers[-2].output}
    pair = keras.Model(trained.inputs, ends)
    pair.compile("adam", {"a": "sparse_categorical_crossentropy", "b": None})
    assert pruned(pair, data={"x": X, "y": {"a": Y, "b": None}}).rounds[0].epoch == 0


def test_a_monitor_that_is_not_there_costs_no_channel(trained):
    whole = trained.count_params()
    with pytest.raises(ValueError, match="watches 'val_acc', which is not among"):
        pruned(trained, monitor="val_acc", validation_data=VALIDATION)
    assert trained.count_params() == whole


def texts() -> tf.data.Dataset:
    """Sequences of several lengths, padded to the longest of a batch."""
    random = np.random.default_rng(0)
    rows = tf.ragged.constant([list(range(1, random.integers(3, 9))) for _ in range(40)])
    data = tf.data.Dataset.from_tensor_slices((rows, random.integers(0, 2, 40)))
    return data.map(lambda words, label: (words, label)).padded_batch(10)


@pytest.mark.compiled
def test_a_run_whose_inputs_can_not_be_sampled_leaves_a_model_that_trains():
    inputs = keras.Input((None,), dtype="int32")
    x = layers.GRU(6)(layers.Embedding(50, 8, mask_zero=True)(inputs))
    model = keras.Model(inputs, layers.Dense(2, "softmax")(x))
    compiled(model)
    with pytest.raises(ValueError, match="Pass calibration_data to the callback"):
        pruned(model, data={"x": texts()}, budget=0.7)
    assert "train_step" not in vars(model)
    model.fit(texts(), verbose=0)
    calibration = np.random.default_rng(0).integers(1, 50, (40, 8)).astype("int32")
    assert pruned(model, data={"x": texts()}, budget=0.7, calibration_data=calibration).rounds


def test_a_run_with_calibration_data_does_not_go_on_sampling_for_an_interrupted_one(trained):
    def stop(epoch, logs):
        raise KeyboardInterrupt

    stopping = keras.callbacks.LambdaCallback(on_epoch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        pruned(trained, callbacks=[stopping], begin_epoch=1)
    pruned(trained, calibration_data=X)
    assert "train_step" not in vars(trained)


@pytest.mark.compiled
def test_windows_of_open_size_are_sampled_at_the_size_that_the_model_takes():
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "relu", name="hidden"), layers.Dense(2)]
    )
    model.compile("sgd", "mse")
    series = tf.data.Dataset.from_tensor_slices(np.sin(np.arange(60.0)).astype("float32"))
    windows = series.window(8, shift=1, drop_remainder=True).flat_map(lambda w: w.batch(8))
    data = windows.map(lambda window: (window[:6], window[6:])).batch(16)
    data = data.apply(tf.data.experimental.assert_cardinality(4))
    callback = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), begin_epoch=0, verbose=0)
    model.fit(data, epochs=2, verbose=0, callbacks=[callback])
    assert model.get_layer("hidden").units < 8
