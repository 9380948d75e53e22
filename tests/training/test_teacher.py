"""The model that `fit` was given teaches the slim one; rounds, guard and backups work as before."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from tests.models import trained_once

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :3].argmax(1)
HALF = sgdap.Budget(flops=0.5)


def network(seed=0, width=12) -> keras.Model:
    keras.utils.set_random_seed(seed)
    hidden = layers.Dense(width, "relu", name="one")
    parts = [keras.Input((6,)), hidden, layers.Dense(3, "softmax", name="two")]
    model = keras.Sequential(parts)
    optimizer = keras.optimizers.Adagrad(0.1)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


trained = trained_once(network, X, Y)


def fit(model, *others, epochs=3, **options):
    callback = sgdap.SGDAPCallback(HALF, **({"verbose": 0, "jit_compile": None} | options))
    arguments = {"validation_data": (X, Y), "batch_size": 64, "verbose": 0}
    history = model.fit(X, Y, epochs=epochs, callbacks=[callback, *others], **arguments)
    return callback, history.history


def divergence(p, q, t=4.0):
    p, q = (np.log(own.astype("float64")) / t for own in (p, q))
    p, q = (own - np.log(np.exp(own).sum(-1, keepdims=True)) for own in (p, q))
    return t**2 * (np.exp(p) * (p - q)).sum(-1).mean()


class Outputs(keras.callbacks.Callback):
    """What the model says when each epoch begins, after a round that is due."""

    def __init__(self):
        super().__init__()
        self.made = []

    def on_epoch_begin(self, epoch, logs=None):
        self.made.append(self.model(X).numpy())


def test_the_model_that_fit_was_given_teaches_from_the_first_round_on():
    model, outputs = trained(), Outputs()
    dense = model.predict(X, verbose=0)
    callback, logs = fit(model, outputs, teacher=True)
    assert callback.rounds[0].epoch == -1
    expected = [divergence(dense, made) for made in outputs.made]
    np.testing.assert_allclose(logs["distillation_loss"], expected, rtol=1e-3)
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))


def test_before_the_first_round_nobody_teaches():
    model, teacher = network(), network(1, 20)
    told = []

    def note(epoch, logs):
        told.append(np.isfinite(logs["distillation_loss"]))

    noting = keras.callbacks.LambdaCallback(on_epoch_end=note)
    _, logs = fit(model, noting, teacher=teacher, begin_epoch=1, schedule="one_shot", epochs=4)
    assert told == [False, False, True, True]
    assert len({len(values) for values in logs.values()}) == 1


@pytest.mark.filterwarnings("ignore:SGDAPCallback stopped short")
def test_rounds_are_judged_and_undone_with_a_teacher():
    model = trained()
    model.optimizer.learning_rate = 0.0  # so no round recovers
    options = {"max_accuracy_drop": 0.0, "monitor": "val_loss", "guidance": "random"}
    callback, _ = fit(model, teacher=True, reconstruction=False, epochs=6, **options)
    assert callback.rounds[0].decision == "undone"


class InterruptionError(Exception):
    pass


def interrupt(epoch, logs):
    if epoch == 2:
        raise InterruptionError


def test_a_run_that_is_taken_up_has_the_same_teacher(tmp_path):
    whole = trained()
    fit(whole, teacher=True, epochs=4)
    stop = keras.callbacks.LambdaCallback(on_epoch_begin=interrupt)
    with pytest.raises(InterruptionError):
        fit(trained(), stop, teacher=True, epochs=4, backup_dir=tmp_path / "b")
    other = network(seed=5)  # made with other weights: the backup has those of the teacher
    fit(other, teacher=True, epochs=4, backup_dir=tmp_path / "b")
    for mine, theirs in zip(whole.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_backup_of_a_run_without_a_teacher_is_not_taken_up_with_one(tmp_path):
    stop = keras.callbacks.LambdaCallback(on_epoch_begin=interrupt)
    with pytest.raises(InterruptionError):
        fit(trained(), stop, epochs=4, backup_dir=tmp_path / "b")
    with pytest.raises(ValueError, match="teacher=None, now True"):
        fit(trained(), teacher=True, epochs=4, backup_dir=tmp_path / "b")


def test_the_training_loss_can_not_judge_with_a_teacher():
    model = trained()
    callback = sgdap.SGDAPCallback(HALF, teacher=True, monitor="loss", max_accuracy_drop=0.1)
    with pytest.raises(ValueError, match="can't be judged by it"):
        model.fit(X, Y, epochs=4, verbose=0, callbacks=[callback])
    assert model.layers[0].units == 12


def test_two_teachers_are_refused():
    with pytest.raises(ValueError, match="one teacher"):
        fit(network(), sgdap.DistillationCallback(network(1)), teacher=True)


@pytest.mark.parametrize("teacher", [False, "dense", 3])
def test_what_is_no_teacher_is_refused(teacher):
    with pytest.raises(TypeError, match=r"keras\.Model, True"):
        sgdap.SGDAPCallback(HALF, teacher=teacher)
