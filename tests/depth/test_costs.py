"""What units' removal is expected to cost, against numbers computed by hand."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.depth import removable_units, shallower
from sgdap.depth.costs import unit_costs
from tests.depth.models import chain, residual, samples, transformer


def costs_of(model, x, **options):
    graph = sgdap.channel_graph(model)
    return graph, {
        own.unit.name: own for own in unit_costs(graph, removable_units(graph), x, **options)
    }


def test_the_expected_rise_of_a_squared_error_is_what_it_rises_by():
    """Behind the unit all is linear, so its map is the least-squares optimum of the outputs."""
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, "relu", name="hidden"), layers.Dense(2, name="end")]
    )
    model.compile(loss="mse")
    x = samples(model, 400)
    graph, costs = costs_of(model, x)
    made = shallower(graph, [costs["hidden"].bypass]).model
    lacking = made.predict(x, verbose=0) - model.predict(x, verbose=0)
    design = np.column_stack([x, np.ones(len(x))])
    best = np.linalg.lstsq(design, model.predict(x, verbose=0), rcond=None)[0]
    optimum = design @ best - model.predict(x, verbose=0)
    np.testing.assert_allclose(lacking, optimum, atol=1e-3)
    rise = (lacking**2).mean()
    assert costs["hidden"].error == pytest.approx(rise, rel=0.3)  # gradients are drawn


@pytest.mark.parametrize("make", [residual, transformer])
def test_branches_that_do_nothing_cost_nothing(make):
    model = make()
    model.compile(loss="mse")
    end = "a2" if make is residual else "down0"
    for variable in model.get_layer(end).variables:
        variable.assign(0 * variable)
    _, costs = costs_of(model, samples(model, 64))
    name = next(n for n in costs if n.endswith(end) and "…" in n)
    assert costs[name].error == pytest.approx(0, abs=1e-9)
    assert max(own.error for own in costs.values()) > 1e-4


def test_layers_without_an_activation_cost_nothing_and_leave_the_outputs():
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(7, name="linear"), layers.Dense(3, name="end")]
    )
    x = samples(model, 64)
    graph, costs = costs_of(model, x)
    assert costs["linear"].error < 1e-6
    made = shallower(graph, [costs["linear"].bypass]).model
    np.testing.assert_allclose(made.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4)


def test_the_same_numbers_in_batches_of_any_size():
    model = chain()
    model.compile(loss="mse")
    x = samples(model, 40)
    _, one = costs_of(model, x)
    _, several = costs_of(model, x, memory=8_000)
    for name, own in one.items():
        np.testing.assert_allclose(several[name].bypass.matrix, own.bypass.matrix, atol=1e-4)


class WithLoss(keras.Model):
    """Its code adds a loss of what a branch makes, on which no output depends."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, name="hidden")
        self.branch = layers.Dense(4, name="branch")
        self.sum = layers.Add()
        self.end = layers.Dense(2, name="end")

    def call(self, x):
        h = self.hidden(x)
        self.add_loss(keras.ops.mean(keras.ops.square(self.read(h))))
        return self.end(h)

    def read(self, h):
        return self.sum([h, self.branch(h)])


class InOperations(WithLoss):
    """The same, by operations."""

    def read(self, h):
        return h + self.branch(h)


@pytest.mark.filterwarnings("ignore:.*was called on layer:UserWarning")
@pytest.mark.parametrize("make", [WithLoss, InOperations])
def test_losses_that_code_adds_count(make):
    model = make()
    x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    model(x)
    model.compile(loss="mse")
    _, costs = costs_of(model, x)
    assert costs["branch"].error > 1e-3
