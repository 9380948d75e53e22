"""What layers add to the loss counts as a loss of what they read."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from tests.models import samples


class Endpoint(layers.Layer):
    """Adds a loss of what it reads and passes it on."""

    def __init__(self, function, **arguments):
        super().__init__(**arguments)
        self.function = function

    def call(self, x):
        self.add_loss(self.function(x))
        return x


class Weighted(Endpoint):
    """One that is not looked into, for it has a weight of its own."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", trainable=False)


def model_of(function, unit=1.0, regularizer=None, endpoint=Endpoint) -> keras.Model:
    """A class that is compiled, and a place whose loss a layer adds, from a branch each."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    left, right = (layers.Dense(12, "tanh", name=n)(inputs) for n in ("left", "right"))
    place = layers.Dense(3, name="place")
    ended = endpoint(function, activity_regularizer=regularizer)(place(right))
    model = keras.Model(inputs, [layers.Dense(4, "softmax", name="class")(left), ended])
    place.set_weights([unit * value for value in place.get_weights()])
    model.compile(loss=["categorical_crossentropy", "mse"], loss_weights=[1.0, 0.0])
    return model


def sensitivity(model, count=4000, name="place"):
    x = samples(model, count)
    found = sgdap.collect_statistics(sgdap.channel_graph(model), x, batch_size=1000)
    return found.consumers[name].sensitivity


def squares(x):
    return 5.0 * keras.ops.mean(keras.ops.square(x))


@pytest.mark.parametrize("endpoint", [Endpoint, Weighted])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_an_added_loss_counts_by_its_curvature(unit, endpoint):
    found = sensitivity(model_of(squares, unit, endpoint=endpoint))
    np.testing.assert_allclose(found, 10 / 3 * np.eye(3), atol=0.3)


class Headed(keras.Model):
    """Adds a loss of what a layer makes that nothing else reads."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(12, "tanh", name="hidden")
        self.head, self.end = layers.Dense(3, name="head"), layers.Dense(2, name="end")

    def call(self, x):
        x = self.hidden(x)
        self.add_loss(squares(self.head(x)))
        return self.end(x)


def test_a_layer_that_only_an_added_loss_reads_counts_by_it():
    model, x = Headed(), np.random.default_rng(0).normal(size=(4000, 6)).astype("float32")
    model(x)
    model.compile(loss="mse")
    found = sgdap.collect_statistics(sgdap.channel_graph(model), x, batch_size=1000)
    of_head = found.consumers["head"].sensitivity
    np.testing.assert_allclose(of_head, 10 / 3 * np.eye(3), atol=0.3)


class Shared(keras.Model):
    """Adds a loss that is linear in what an output needs too: squares of what a layer makes."""

    def __init__(self, inside):
        super().__init__()
        self.hidden = layers.Dense(12, "tanh", name="hidden")
        self.place, self.end = layers.Dense(3, name="place"), layers.Dense(2, name="end")
        self.endpoint = Endpoint(lambda x: 5.0 * keras.ops.mean(x)) if inside else None

    def call(self, x):
        squared = keras.ops.square(self.place(self.hidden(x)))
        if self.endpoint is None:
            self.add_loss(5.0 * keras.ops.mean(squared))
        else:
            squared = self.endpoint(squared)
        return self.end(0.0 * squared)


@pytest.mark.parametrize("inside", [False, True], ids=["in the model", "in a layer"])
def test_a_loss_of_what_an_output_needs_too_counts_where_a_layer_makes_it(inside):
    model, x = Shared(inside), np.random.default_rng(0).normal(size=(4000, 6)).astype("float32")
    model(x)
    model.compile(loss="mse")
    found = sgdap.collect_statistics(sgdap.channel_graph(model), x, batch_size=1000)
    of_place = found.consumers["place"].sensitivity
    np.testing.assert_allclose(of_place, 10 / 3 * np.eye(3), atol=0.3)


def test_each_entry_that_is_read_counts_for_itself():
    found = sensitivity(model_of(lambda x: keras.ops.mean(x[:, 0] ** 2 + 9 * x[:, 1] ** 2)))
    np.testing.assert_allclose(np.diag(found), [2, 18, 0], rtol=0.1)


def test_a_branch_that_only_an_added_loss_reads_does_not_die():
    widths = {}
    for function in (squares, lambda x: 0.0 * keras.ops.mean(x)):
        model = model_of(function)
        budget = sgdap.Budget(flops=0.5)
        plan = sgdap.plan(model, samples(model, 200), budget, reconstruction=False, round_to=1)
        widths[function] = {g.layers[0]: len(g.kept) for g in plan.groups}["right"]
    read, unread = widths.values()
    assert read > 1
    assert unread == 1


def test_penalties_on_activations_are_no_reason_to_keep_them():
    found = sensitivity(model_of(lambda x: 0.0 * keras.ops.mean(x), regularizer="l2"), 200)
    np.testing.assert_array_equal(found, 0)
