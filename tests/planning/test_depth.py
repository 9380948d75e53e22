"""What a model without units costs, which units leave, and plans by which they do."""

import json
import re

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.depth import removable_units, shallower
from sgdap.depth.costs import unit_costs
from sgdap.depth.shallower import incompatible
from sgdap.planning.cost import cost_model
from sgdap.planning.depth import cheapest_units, thinned
from sgdap.reconstruction.held_back import HeldBack
from tests.depth.models import ALL, chain, residual, samples, transformer
from tests.depth.oracle import random_bypass, trains_every_weight


@pytest.mark.parametrize("make", ALL)
def test_the_cost_without_units_is_that_of_the_model_without_them(make):
    model, rng = make(), np.random.default_rng(0)
    graph = sgdap.channel_graph(model)
    units = removable_units(graph)
    together = []
    for unit in units:
        if not incompatible(graph, [*together, unit]):
            together.append(unit)
    for removed in (together, *([unit] for unit in units[:3])):
        costs, alive = thinned(graph, removed)
        made = shallower(graph, [random_bypass(graph, unit, rng) for unit in removed])
        assert alive == made.paths.keys()
        np.testing.assert_allclose(
            costs.whole, cost_model(sgdap.channel_graph(made.model)).whole, rtol=1e-6
        )


def without_an_effect(make, end):
    """A model of which one branch makes zeros."""
    model = make()
    model.compile("adam", "mse")
    for variable in model.get_layer(end).variables:
        variable.assign(0 * variable)
    return model


@pytest.mark.parametrize(("make", "end"), [(residual, "a2"), (transformer, "down0")])
def test_what_does_nothing_leaves_and_no_output_changes(make, end):
    model = without_an_effect(make, end)
    x = samples(model, 64)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.85), depth=True, round_to=1)
    assert any(unit.name.endswith(f"… {end}") for unit in plan.bypassed)
    only = sgdap.plan(model, x, sgdap.Budget(params=1.0), depth=1e-9)
    (unit,) = only.bypassed
    assert unit.error < 1e-9
    slim = sgdap.apply(model, only)
    np.testing.assert_allclose(slim.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.parametrize("make", [chain, residual, transformer])
def test_the_slim_model_costs_what_the_plan_says_in_place_too(make, tmp_path):
    model = make()
    model.compile("adam", "mse")
    x = samples(model, 64)
    model.fit(x, np.ones((64, 3)), verbose=0)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.6), depth=0.3, round_to=1)
    assert plan.bypassed
    slim, optimizer = sgdap.apply(model, plan, optimizer=model.optimizer)
    profile = sgdap.profile(slim)
    assert (slim.count_params(), profile.flops) == (plan.params[1], plan.flops[1])
    assert plan.params[0] == model.count_params()
    assert len(optimizer.variables) < len(model.optimizer.variables)
    held, whole = model.optimizer, model
    assert sgdap.apply(model, plan, in_place=True) is whole and model.optimizer is held
    np.testing.assert_allclose(model.predict(x, verbose=0), slim.predict(x, verbose=0), atol=1e-6)
    assert trains_every_weight(model, x, np.zeros((64, 3)))


def test_consumers_are_refitted_to_the_whole_model():
    model = residual()
    model.compile(loss="mse")
    x = samples(model, 300)
    lacking = {}
    for reconstruction in (False, True):
        plan = sgdap.plan(
            model, x, sgdap.Budget(params=1.0), depth=0.4, reconstruction=reconstruction
        )
        made = sgdap.apply(model, plan).predict(x, verbose=0)
        lacking[reconstruction] = ((made - model.predict(x, verbose=0)) ** 2).mean()
    assert lacking[True] < 0.5 * lacking[False]


def test_a_plan_is_read_back_bit_by_bit_and_shown(tmp_path):
    model = chain()
    plan = sgdap.plan(model, samples(model, 64), sgdap.Budget(flops=0.5), depth=0.3)
    assert sgdap.Plan.from_json(plan.to_json()) == plan
    plan.save(tmp_path / "plan")
    assert sgdap.Plan.load(tmp_path / "plan") == plan
    name = plan.bypassed[0].name
    assert re.search(rf"{name}.*leaves", str(plan))
    assert f"without {len(plan.bypassed)} unit" in repr(plan)
    old = {k: v for k, v in json.loads(plan.to_json()).items() if k not in ("bypassed", "whole")}
    assert sgdap.Plan.from_json(json.dumps(old)).bypassed == ()


def test_a_plan_for_another_model_is_refused():
    model = chain()
    plan = sgdap.plan(model, samples(model, 64), sgdap.Budget(flops=0.5), depth=0.3)
    with pytest.raises(ValueError, match="made for another model"):
        sgdap.apply(residual(), plan)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1)
    with pytest.raises(ValueError, match="weights of model .* changed"):
        sgdap.apply(model, plan, in_place=True)
    assert len(model.layers) == 4  # nothing left


def test_only_layers_that_are_named_leave():
    model = transformer()
    x = samples(model, 64)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.3), depth=["up1", "down1"], round_to=1)
    assert {unit.name for unit in plan.bypassed} <= {"up1", "up1 … down1"}


@pytest.mark.parametrize(
    ("depth", "error", "message"),
    [
        (["nothing"], ValueError, "'nothing', as depth says"),
        ("up1", TypeError, "a list of names"),
        (1.5, ValueError, "above 0 and below 1"),
        (None, TypeError, "depth must be"),
        ([3], TypeError, "depth must be a list"),
    ],
)
def test_what_makes_no_sense_is_refused(depth, error, message):
    model = transformer()
    with pytest.raises(error, match=message):
        sgdap.plan(model, samples(model), sgdap.Budget(flops=0.5), depth=depth)


def test_a_unit_behind_which_nothing_could_shrink_any_more_stays():
    """Without `in`, all channels would be the model's inputs."""
    inputs = keras.Input((8,))
    shared = layers.Dense(8, "relu", name="shared")
    x = layers.Dense(8, name="in")(inputs)
    for _ in range(2):
        x = x + shared(x)
    model = keras.Model(inputs, layers.Dense(3, name="end")(x))
    x = samples(model, 64)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.5), depth=True)
    assert not plan.bypassed and plan.flops[1] <= 0.5 * plan.flops[0]
    with pytest.raises(ValueError, match="cannot be met"):
        sgdap.plan(model, x, sgdap.Budget(flops=0.5), depth=0.5)


def test_units_inside_one_that_leaves_are_gone_with_it():
    model = transformer()
    graph = sgdap.channel_graph(model)
    units = removable_units(graph)
    costs = unit_costs(graph, units, samples(model, 32))
    for share in (0.2, 0.5, 0.99):
        chosen = cheapest_units(graph, costs, share)
        gone = {path for own in chosen for path in own.unit.layers}
        count = sum(gone.issuperset(unit.layers) for unit in units)
        assert count >= share * len(units)
        for own in chosen:
            others = [set(other.unit.layers) for other in chosen if other is not own]
            assert not any(other >= set(own.unit.layers) for other in others)


def test_subclassed_models_and_models_in_models_get_a_functional_copy():
    inner = keras.Sequential(
        [keras.Input((5,)), layers.Dense(6, "relu", name="one"), layers.Dense(5, name="two")],
        name="inner",
    )
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(3, name="end")(inputs + inner(inputs)))
    x = samples(model, 64)
    plan = sgdap.plan(model, x, sgdap.Budget(params=1.0), depth=0.3)
    assert plan.bypassed and "inner/" in plan.bypassed[0].name
    assert sgdap.apply(model, plan).count_params() == plan.params[1] < model.count_params()
    with pytest.raises(ValueError, match=r"'inner' inside it.*sgdap.functional"):
        sgdap.apply(model, plan, in_place=True)


def two_microseconds_a_layer(model) -> float:
    profile = sgdap.profile(model, latency=False)
    return 1e-9 * profile.flops + 2e-6 * sum(bool(layer.weights) for layer in model.layers)


@pytest.mark.filterwarnings("ignore:.*leaves 1.*% of the FLOPs:UserWarning")
def test_fewer_layers_leave_more_flops_for_the_same_time():
    model = residual()
    model.compile(loss="mse")
    x = samples(model, 64)
    limit = 0.36 * two_microseconds_a_layer(model)
    budget = sgdap.Budget(latency=0.36, runtime=two_microseconds_a_layer)
    narrow = sgdap.plan(model, x, budget, round_to=1)
    made = sgdap.plan(model, x, budget, round_to=1, depth=0.3)
    assert made.bypassed and made.flops[1] > narrow.flops[1]
    assert 0.9 * limit < two_microseconds_a_layer(sgdap.apply(model, made)) <= limit
    (told,) = [note for note in made.notes if note.startswith("Latency")]
    assert f"({two_microseconds_a_layer(model) * 1e3:.3g} ms before" in told


def deep():
    """Many layers of much work, of which all but the first change little."""
    x = inputs = keras.Input((12,))
    x = layers.Dense(24, "relu", name="stem")(x)
    for number in range(3):
        y = layers.Dense(48, "relu", name=f"{number}_wide")(x)
        x = layers.Add()([x, layers.Dense(24, name=f"{number}_back")(y)])
    model = keras.Model(inputs, layers.Dense(4, name="end")(x))
    for number in range(1, 3):
        back = model.get_layer(f"{number}_back")
        back.kernel.assign(0.02 * back.kernel)
    return model


@pytest.mark.filterwarnings("ignore:.*of the FLOPs:UserWarning")
def test_for_a_time_slim_models_without_units_are_measured(monkeypatch):
    model = deep()
    model.compile(loss="mse")
    x = samples(model, 300)
    budget = sgdap.Budget(latency=0.6, runtime=two_microseconds_a_layer)
    measured = []
    losses_of = HeldBack.losses_of

    def told(self, graph, kept, weights):
        losses = losses_of(self, graph, kept, weights)
        measured.append((len(graph.program.layers()), float(losses.mean())))
        return losses

    monkeypatch.setattr(HeldBack, "losses_of", told)
    plan = sgdap.plan(model, x, budget, round_to=1, depth=True)
    assert len(measured) == 3 and measured[0][0] > measured[1][0]
    best = min(measured, key=lambda own: own[1])
    slim = sgdap.apply(model, plan)
    assert len(sgdap.channel_graph(slim).program.layers()) == best[0] < measured[0][0]
    narrow = sgdap.plan(model, x, budget, round_to=1)
    assert plan.flops[1] > narrow.flops[1]
    limit = 0.6 * two_microseconds_a_layer(model)
    assert 0.9 * limit < two_microseconds_a_layer(slim) <= limit
    alone = sgdap.apply(model, narrow)
    error, error_alone = (float(((own(x) - model(x)).numpy() ** 2).mean()) for own in (slim, alone))
    assert error < 0.5 * error_alone


def test_a_time_that_only_fewer_layers_can_meet():
    model = deep()
    x = samples(model, 100)
    limit = 0.4 * two_microseconds_a_layer(model)
    budget = sgdap.Budget(latency=0.4, runtime=two_microseconds_a_layer)
    with pytest.raises(ValueError, match="the narrowest model still takes"):
        sgdap.plan(model, x, budget)
    slim = sgdap.apply(model, sgdap.plan(model, x, budget, depth=True))
    assert two_microseconds_a_layer(slim) <= limit
    with pytest.raises(ValueError, match="the narrowest model still takes"):
        sgdap.plan(model, x, budget, depth=["0_wide"])


def test_a_budget_that_only_units_can_meet():
    model = residual()
    x = samples(model, 64)
    budget = sgdap.Budget(flops=0.5)
    held = {"overrides": {"*": 1.0}}
    with pytest.raises(ValueError, match="cannot be met"):
        sgdap.plan(model, x, budget, **held)
    made = sgdap.plan(model, x, budget, depth=True, **held)
    assert made.bypassed and made.flops[1] <= 0.5 * made.flops[0]
    with pytest.raises(ValueError, match="cannot be met"):
        sgdap.plan(model, x, sgdap.Budget(flops=0.001), depth=True, **held)


def test_a_share_of_the_units_leaves_where_no_channel_can():
    x = inputs = keras.Input((6, 4))
    for n in range(2):
        y = keras.layers.LayerNormalization()(keras.layers.Dense(4, name=f"branch_{n}")(x))
        x = keras.layers.Add()([x, y])
    model = keras.Model(inputs, keras.layers.LayerNormalization()(x))
    assert not any(group.prunable for group in sgdap.channel_graph(model).groups)
    plan = sgdap.plan(model, samples(model, 32), sgdap.Budget(params=1.0), depth=0.5)
    assert len(plan.bypassed) == 1
    assert len(sgdap.apply(model, plan).layers) == len(model.layers) - 3
