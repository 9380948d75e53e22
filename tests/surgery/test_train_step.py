"""Steps around a train step come and go in any order, and a plain model is left."""

import keras
import numpy as np
import pytest
from keras import layers

from sgdap.surgery.train_step import (
    give_back_train_step,
    put_around_train_step,
    take_from_train_step,
)

X, Y = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")


def network() -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def noting(notes, name):
    def around(step, data):
        notes.append(name)
        return step(data)

    return around


class During(keras.callbacks.Callback):
    """Does something to the model when an epoch of its `fit` begins."""

    def __init__(self, *actions):
        super().__init__()
        self.actions = actions

    def on_epoch_begin(self, epoch, logs=None):
        self.actions[epoch](self.model)


def test_a_later_step_is_around_those_before_and_each_may_be_taken_away():
    notes: list[str] = []
    one, two = noting(notes, "one"), noting(notes, "two")
    model = network()

    def both(model):
        put_around_train_step(model, one)
        put_around_train_step(model, two)

    actions = [both, lambda m: take_from_train_step(m, one), lambda m: take_from_train_step(m, two)]
    during = During(*actions)
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[during])
    assert notes == ["two", "one", "two"]
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))


def test_a_train_step_that_the_user_set_is_given_back():
    model, notes = network(), []
    own = model.train_step = noting(notes, "own").__get__(model.train_step)
    put_around_train_step(model, noting(notes, "one"))
    give_back_train_step(model)
    assert model.train_step is own
    model.fit(X, Y, batch_size=8, verbose=0)
    assert notes == ["own"]


@pytest.mark.parametrize("use", ["fit", "train_on_batch"])
def test_what_an_interrupted_fit_left_is_taken_away_by_the_next_one(use):
    model, notes = network(), []

    def broken(model):
        put_around_train_step(model, noting(notes, "one"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, verbose=0, callbacks=[During(broken)])
    getattr(model, use)(X, Y)
    assert not notes
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))


def test_a_train_step_called_by_hand_is_the_models_own():
    model, notes = network(), []

    def by_hand(model):
        put_around_train_step(model, noting(notes, "one"))
        model.train_step((X, Y))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, verbose=0, callbacks=[During(by_hand)])
    model.train_step((X, Y))
    assert not notes
