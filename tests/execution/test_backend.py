"""Under another backend of Keras models are read, and one sentence says that no more is done."""

import keras
import pytest

import sgdap
from tests.models import mlp, samples


@pytest.fixture
def model(monkeypatch):
    made = mlp()
    made.compile("sgd", "mse")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    return made


def refused():
    return pytest.raises(RuntimeError, match="the backend 'jax'.*KERAS_BACKEND=tensorflow")


def test_planning_is_refused_before_the_data_are_read(model):
    read = []
    data = (read.append(x) or x for x in samples(model, 4))
    with refused():
        sgdap.plan(model, data, sgdap.Budget(flops=0.5))
    assert not read


def test_statistics_are_refused(model):
    with refused():
        sgdap.collect_statistics(sgdap.channel_graph(model), samples(model, 8))


def test_training_is_refused_before_anything_is_changed(model):
    callback = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5))
    callback.set_model(model)
    before = vars(callback).copy()
    with refused():
        callback.on_train_begin()
    assert vars(callback) == before


def test_reading_goes_on(model):
    assert sgdap.channel_graph(model).groups
    assert sgdap.profile(model, latency=False) is not None
