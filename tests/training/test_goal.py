"""What a run may cost on its way, whatever limits it has."""

import numpy as np
import pytest
from tensorflow_model_optimization.sparsity.keras import ConstantSparsity

import sgdap
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.allocation import flat_curves
from sgdap.planning.options import PruningOptions
from sgdap.planning.scope import pruning_scope
from sgdap.training.goal import make_goal
from sgdap.training.schedule import StepSchedule
from tests.models import convnet


def goal(budget, schedule, rounds=4):
    graph = sgdap.channel_graph(convnet())
    scope = pruning_scope(graph, PruningOptions())
    curves = {}
    for group in scope.groups:
        order = np.flatnonzero(group.removable)
        curves[group.name] = ErrorCurve(order, np.arange(len(order) + 1.0))
    made = make_goal(budget, schedule, scope, rounds)
    whole = sgdap.profile(graph.program.model, latency=False)
    return made, made.measured(scope, curves, "global").target, whole


def test_every_limit_is_approached_by_the_schedule():
    _, target, whole = goal(sgdap.Budget(flops=0.25, bytes=0.5), sgdap.Geometric())
    half_way = target(0.5)
    assert half_way.flops == pytest.approx(0.5 * whole.flops)
    assert half_way.bytes == pytest.approx(0.5**0.5 * whole.params * 4)
    assert half_way.params is None
    assert target(1.0).flops == pytest.approx(0.25 * whole.flops)


def test_a_schedule_over_steps_without_a_budget_limits_flops():
    _, target, whole = goal(None, StepSchedule(ConstantSparsity(0.6, 0), 10))
    assert target(1.0).flops == pytest.approx(0.4 * whole.flops)
    assert target(0.5).flops == pytest.approx(0.7 * whole.flops)


def test_without_a_budget_the_first_round_removes_a_share_and_the_last_all_that_may_leave():
    made, target, whole = goal(None, sgdap.Geometric())
    assert target(made.step).flops == pytest.approx(0.7 * whole.flops)
    by_hand = 2 * (36 * 9 * 2 + 36 * 9) + 2 * (9 + 3)  # one channel in each layer
    assert target(1.0).flops <= by_hand
    assert made.missed(np.array([whole.params, whole.flops, 4 * whole.params]), 0.0) == []


def a_nanosecond_a_flop(model) -> float:
    return sgdap.profile(model, latency=False).flops * 1e-9


def test_a_latency_leads_to_the_flops_that_it_takes():
    budget = sgdap.Budget(latency=0.5, params=0.9, runtime=a_nanosecond_a_flop)
    made, target, whole = goal(budget, sgdap.Linear())
    assert 0.35 * whole.flops < target(1.0).flops <= 0.5 * whole.flops
    assert target(0.5).params == pytest.approx(0.95 * whole.params)
    costs = np.array([whole.params // 2, whole.flops, 2 * whole.params])
    assert made.missed(costs, 0.5) == ["more time than allowed"]
    assert made.missed(costs, 1.0) == []


def test_a_share_of_the_time_is_of_what_the_whole_model_takes_now():
    pace = [1.0]
    budget = sgdap.Budget(latency=0.5, runtime=lambda model: pace[0] * a_nanosecond_a_flop(model))
    graph = sgdap.channel_graph(convnet())
    scope = pruning_scope(graph, PruningOptions())
    made = make_goal(budget, sgdap.OneShot(), scope, 1)
    pace[0] = 3.0
    again = made.measured(scope, flat_curves(scope.groups), "layerwise")
    assert again.seconds == pytest.approx(3 * made.seconds)
    assert again.target(1.0).flops == made.target(1.0).flops


def test_what_is_missed_is_said_for_each_limit():
    made, _, whole = goal(sgdap.Budget(flops=0.5, params=0.9), sgdap.Linear())
    costs = np.array([whole.params, 0.6 * whole.flops, 4 * whole.params])
    assert made.missed(costs, 0.5) == ["100.0% of its params", "60.0% of its flops"]


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="needs 5 rounds, and there are epochs for 4"):
        goal(sgdap.Budget(flops=0.5), sgdap.Linear(5))
    with pytest.raises(ValueError, match="leaves 65.6% after the 4 rounds"):
        goal(sgdap.Budget(flops=0.5), sgdap.Adaptive(cut=0.1))
