"""Inner features count in the loss of a step by the formula; NumPy on the layers is the oracle."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.distillation import features as module
from tests.models import outputs

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(1024, 6)).astype("float32")
Y = X[:, :3].argmax(1)
W = RANDOM.uniform(0.2, 3, size=1024).astype("float32")


def network(width=4, optimizer="sgd", **options) -> keras.Model:
    hidden = layers.Dense(width, "tanh", name="hidden")
    model = keras.Sequential([keras.Input((6,)), hidden, layers.Dense(3, "softmax", name="end")])
    if optimizer == "still":
        optimizer = keras.optimizers.SGD(0.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", **options)
    return model


def hidden(model, x=X):
    inside = keras.Model(model.inputs[0], model.get_layer("hidden").output)
    return outputs(inside, x).astype("float64")


def unexplained(s, t, weights=None):
    """The share of the variance of t that the best affine function of s leaves."""
    with_one = np.column_stack([s, np.ones(len(s))])
    errors = ((with_one @ np.linalg.lstsq(with_one, t, rcond=None)[0] - t) ** 2).sum(1)
    return float((errors * (1 if weights is None else weights)).mean() / t.var(axis=0).sum())


def fit(model, teacher, *others, fit=None, **options):
    teaching = sgdap.DistillationCallback(teacher, **({"features": True} | options))
    arguments = {"batch_size": len(X), "verbose": 0, "callbacks": [*others, teaching]} | (fit or {})
    return model.fit(X, Y, **arguments).history


def test_the_loss_is_what_the_least_squares_adapter_leaves_of_the_variance():
    model, teacher = network(optimizer="still"), network(10)
    expected = unexplained(hidden(model), hidden(teacher))
    logs = fit(model, teacher)
    assert logs["feature_loss"][0] == pytest.approx(expected, rel=0.02)
    rest = model.evaluate(X, Y, verbose=0) + logs["distillation_loss"][0]
    assert logs["loss"][0] == pytest.approx(rest + logs["feature_loss"][0], rel=1e-3)
    other = fit(model, teacher, feature_weight=3.0)
    assert other["loss"][0] == pytest.approx(rest + 3 * logs["feature_loss"][0], rel=1e-3)


def test_weights_of_samples_count():
    model, teacher = network(optimizer="still"), network(10)
    expected = unexplained(hidden(model), hidden(teacher), W)
    logs = fit(model, teacher, fit={"sample_weight": W})
    assert logs["feature_loss"][0] == pytest.approx(expected, rel=0.02)


def test_a_copy_of_the_teachers_channels_leaves_no_more_than_the_others_need():
    teacher = network(10)
    student = network(10, "still")
    student.set_weights(teacher.get_weights())
    assert fit(student, teacher)["feature_loss"][0] < 1e-4


@pytest.mark.compiled
def test_features_alone_come_nearer():
    keras.utils.set_random_seed(0)
    model, teacher = network(optimizer=keras.optimizers.Adam(0.05)), network(10)
    end = model.get_layer("end").get_weights()
    before = unexplained(hidden(model), hidden(teacher))
    fit(model, teacher, weight=0, label_weight=0, fit={"epochs": 30})
    assert unexplained(hidden(model), hidden(teacher)) < 0.7 * before
    for mine, other in zip(end, model.get_layer("end").get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_masked_positions_do_not_count():
    def tagger(width):
        inputs = keras.Input((4,))
        x = layers.Embedding(5, width, "normal", mask_zero=True, name="words")(inputs)
        model = keras.Model(inputs, layers.Dense(3, "softmax")(x))
        model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
        return model

    words = RANDOM.integers(5, size=(64, 4))
    model, teacher = tagger(2), tagger(4)
    s, t = (own.get_layer("words").get_weights()[0][words[words > 0]] for own in (model, teacher))
    teaching = sgdap.DistillationCallback(teacher, features=["words"])
    labels = RANDOM.integers(3, size=(64, 4))
    logs = model.fit(words, labels, batch_size=64, verbose=0, callbacks=[teaching]).history
    assert logs["feature_loss"][0] == pytest.approx(unexplained(s, t), rel=0.05)


class Counted(layers.Layer):
    """Counts how often Python runs it."""

    runs = 0

    def call(self, x):
        self.runs += 1
        return 1.0 * x


@pytest.mark.compiled
@pytest.mark.parametrize(("jit", "first"), [(False, True), (True, False)])
def test_the_step_is_compiled_once_for_each_architecture_beside_pruning(jit, first, monkeypatch):
    keras.utils.set_random_seed(0)
    model, counted = network(12, jit_compile=jit), Counted()
    teacher = network(20)
    teacher.add(counted)
    budget = sgdap.Budget(flops=0.5)
    pruner = sgdap.SGDAPCallback(
        budget, schedule="one_shot", begin_epoch=1, jit_compile=None, verbose=0
    )
    teaching = sgdap.DistillationCallback(teacher, features=["hidden"])
    callbacks = [teaching, pruner] if first else [pruner, teaching]
    refits, own = [], module.Features.refit

    def refit(features, *args):
        before = counted.runs
        own(features, *args)
        refits.append(counted.runs - before)

    monkeypatch.setattr(module.Features, "refit", refit)
    counted.runs = 0
    history = model.fit(X, Y, batch_size=256, epochs=4, verbose=0, callbacks=callbacks).history
    assert model.get_layer("hidden").units < 12
    assert len(refits) == 5  # when fit begins, and in each epoch
    assert counted.runs - sum(refits) <= 6  # at most three for each of the two architectures
    assert np.isfinite(history["feature_loss"]).all()
    for layer in (model.get_layer("hidden"), teacher.get_layer("hidden")):
        assert "call" not in vars(layer)
    assert {"train_step", "compute_loss"}.isdisjoint(vars(model))


@pytest.mark.compiled
def test_the_finish_takes_features_too_and_leaves_nothing_behind():
    keras.utils.set_random_seed(0)
    student, teacher = network(), network(10)
    before = unexplained(hidden(student), hidden(teacher))
    data = RANDOM.normal(size=(300, 6)).astype("float32")
    sgdap.distill(student, teacher, data, features=["hidden"], feature_weight=20.0, epochs=20)
    assert unexplained(hidden(student), hidden(teacher)) < before
    assert "call" not in vars(student.get_layer("hidden"))
    assert "call" not in vars(teacher.get_layer("hidden"))


def test_a_model_of_one_sample_at_a_time_is_fitted_on_both_halves():
    def single(width):
        hidden = layers.Dense(width, "tanh", name="hidden")
        inputs = keras.Input((6,), batch_size=1)
        return keras.Model(inputs, layers.Dense(3, "softmax")(hidden(inputs)))

    student, teacher = single(4), single(10)
    sgdap.distill(student, teacher, X[:20], features=["hidden"], epochs=1)


def test_data_that_come_only_once_are_refused_before_anything_changes():
    model = network()
    once = ((X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16))
    with pytest.raises(ValueError, match="read only once.*PyDataset"):
        teaching = sgdap.DistillationCallback(network(10), features=True)
        model.fit(once, verbose=0, shuffle=False, callbacks=[teaching])
    assert {"train_step", "compute_loss"}.isdisjoint(vars(model))


def test_a_train_step_that_runs_the_model_twice_is_refused():
    class Twice(keras.Model):
        def train_step(self, data):
            x, y = data
            self(x, training=True)
            return {"own": self.compute_loss(x, y, self(x, training=True))}

    inputs = keras.Input((6,))
    z = layers.Dense(4, "tanh", name="hidden")(inputs)
    model = Twice(inputs, layers.Dense(3, "softmax")(z))
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="'hidden' of model .* ran 2 times"):
        fit(model, network(10))
    assert {"train_step", "compute_loss"}.isdisjoint(vars(model))
    assert "call" not in vars(model.get_layer("hidden"))


@pytest.mark.parametrize("options", [{"feature_weight": 0}, {"feature_weight": -1.0}])
def test_weights_without_a_meaning_are_refused(options):
    with pytest.raises(ValueError, match="feature_weight"):
        sgdap.DistillationCallback(network(), features=True, **options)
