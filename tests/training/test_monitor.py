"""The metric and its direction are found as Keras' own callbacks find them."""

import keras
import numpy as np
import pytest
from keras import layers

from sgdap.training.monitor import Monitor


@pytest.fixture(scope="module")
def model() -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, activation="sigmoid")])
    own = keras.metrics.MeanMetricWrapper(keras.losses.mean_absolute_error, name="score")
    metrics = ["accuracy", "mae", keras.metrics.AUC(name="area"), own]
    model.compile("sgd", "binary_crossentropy", metrics=metrics)
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 1)))
    return model


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["loss", "accuracy", "val_loss", "val_accuracy"], "val_accuracy"),
        (["loss", "accuracy", "val_loss"], "val_loss"),
        (["loss", "accuracy"], "accuracy"),
        (["loss", "mae"], "loss"),
        (["mae"], None),
    ],
)
def test_by_itself_it_takes_the_first_accuracy_else_the_loss(names, found):
    monitor = Monitor()
    value = monitor.read(dict.fromkeys(names, 0.5))
    assert monitor.name == found
    assert value == (None if found is None else 0.5)


@pytest.mark.parametrize(
    ("name", "mode", "sign"),
    [
        ("accuracy", "auto", 1),
        ("area", "auto", 1),
        ("mae", "auto", -1),
        ("loss", "auto", -1),
        ("side_loss", "auto", -1),
        ("loss", "max", 1),
        ("area", "min", -1),
        ("score", "max", 1),
    ],
)
@pytest.mark.parametrize("prefix", ["", "val_"])
def test_which_way_is_better_is_the_metrics_own_direction(model, name, mode, sign, prefix):
    monitor = Monitor(prefix + name, mode)
    assert monitor.read({prefix + name: 0.5}) == 0.5
    assert monitor.sign(model) == sign


def test_where_keras_cannot_tell_the_user_is_asked(model):
    monitor = Monitor("f1")
    assert monitor.read({"f1": 0.5}) == 0.5
    with pytest.raises(ValueError, match="'f1', and Keras can't tell.*Pass mode='max'"):
        monitor.sign(model)


def test_accuracies_and_losses_that_only_a_train_step_knows_are_known_by_name():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    for name, sign in (("val_my_accuracy", 1), ("my_loss", -1)):
        monitor = Monitor(name)
        monitor.read({name: 0.5})
        assert monitor.sign(model) == sign


def test_metrics_of_single_outputs_are_found():
    inputs = keras.Input((3,))
    ends = {n: layers.Dense(1, activation="sigmoid", name=n)(inputs) for n in ("up", "down")}
    model = keras.Model(inputs, ends)
    model.compile("sgd", "mse", metrics={n: keras.metrics.AUC(name="area") for n in ends})
    model.train_on_batch(np.ones((4, 3)), {n: np.ones((4, 1)) for n in ends})
    monitor = Monitor("val_down_area")
    monitor.read({"val_down_area": 0.5})
    assert monitor.sign(model) == 1


def test_a_validation_metric_may_come_in_a_later_epoch():
    monitor = Monitor("val_accuracy")
    assert monitor.read({"loss": 1.0}) is None
    assert monitor.read({"loss": 1.0, "val_accuracy": 0.7}) == 0.7
    assert monitor.read({"loss": 1.0}) is None


def test_by_itself_it_waits_for_the_epochs_that_are_validated():
    trained, validated = {"accuracy": 0.5}, {"accuracy": 0.6, "val_accuracy": 0.4}
    monitor = Monitor(validated=[1, 3])
    assert [monitor.read(logs) for logs in (trained, validated, trained)] == [None, 0.4, None]
    assert Monitor(validated=[]).read(trained) == 0.5


@pytest.mark.parametrize(
    ("metric", "validated", "epochs"),
    [
        ("auto", [1, 3], [1, 3]),
        ("val_loss", [1, 3], [1, 3]),
        ("loss", [1, 3], None),
        ("auto", [], None),
        ("val_loss", None, None),
    ],
)
def test_it_knows_which_epochs_have_the_metric(metric, validated, epochs):
    assert Monitor(metric, validated=validated).epochs == epochs


def test_a_metric_on_validation_data_is_refused_where_no_epoch_is_validated():
    with pytest.raises(ValueError, match="'val_loss', and no epoch.*Pass validation_data to fit"):
        Monitor("val_loss", validated=[])


def test_a_metric_that_never_comes_is_refused():
    with pytest.raises(ValueError, match="'f1', which is not among.*: accuracy, loss. Pass one"):
        Monitor("f1").read({"loss": 1.0, "accuracy": 0.5})


@pytest.mark.parametrize(("drop", "meant"), [(5, "0.05"), (1, "0.01"), (1000, "0.01")])
def test_a_drop_that_no_accuracy_can_make_is_refused_with_what_is_meant(drop, meant):
    monitor = Monitor()
    monitor.check_drop(drop)  # it may still be a loss
    monitor.read({"loss": 2.0, "val_accuracy": 0.9})
    for each in (monitor, Monitor("val_accuracy"), Monitor("out_acc")):
        with pytest.raises(ValueError, match=rf"Did you mean max_accuracy_drop={meant},"):
            each.check_drop(drop)


def test_a_loss_may_rise_by_more_than_1():
    monitor = Monitor()
    monitor.read({"loss": 2.0})
    monitor.check_drop(5)
