"""A latency is met by timing slim copies; the model itself is not touched."""

import numpy as np
import pytest

import sgdap
from sgdap.execution.latency import Stopwatch
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.allocation import allocate
from sgdap.planning.cost import cost_model
from sgdap.planning.widths import WidthRules
from sgdap.training.latency import Latency, flops_within_latency, slim_model
from tests.models import convnet

NANOSECOND = 1e-9


def flops_of(model) -> int:
    return sgdap.profile(model, latency=False).flops


def a_nanosecond_a_flop(model) -> float:
    return flops_of(model) * NANOSECOND


def case(model=None):
    """A model's channels, its groups, and curves by which all channels cost the same."""
    graph = sgdap.channel_graph(model or convnet())
    groups = [group for group in graph.groups if group.prunable]
    curves = {}
    for group in groups:
        order = np.flatnonzero(group.removable)
        curves[group.name] = ErrorCurve(order, np.arange(len(order) + 1.0))
    return graph, groups, curves


def within(budget: sgdap.Budget, seconds: float, model=None) -> tuple[Latency, float]:
    graph, groups, curves = case(model)
    whole = graph.program.model
    watch = Stopwatch(whole, runtime=budget.runtime)
    found = flops_within_latency(
        graph, groups, curves, WidthRules(), "global", budget, seconds, watch
    )
    return found, flops_of(whole)


def allocated_flops(flops: float) -> float:
    """What is left where FLOPs are the limit."""
    graph, groups, curves = case()
    model = cost_model(graph)
    full = model.cost(model.lengths(np.ones(graph.count, bool)))
    kept = allocate(groups, curves, model, sgdap.Budget(flops=flops), full=full)
    return model.cost(model.lengths(kept))[1]


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_most_flops_that_are_fast_enough_are_found(share):
    budget = sgdap.Budget(latency="1ms", runtime=a_nanosecond_a_flop)
    whole = flops_of(convnet())
    found, _ = within(budget, share * whole * NANOSECOND)
    assert found.flops <= share * whole
    assert found.flops >= allocated_flops(0.97 * share * whole), "time and FLOPs are the same here"
    assert found.seconds == pytest.approx(found.flops * NANOSECOND)
    assert found.least < found.seconds < found.whole == pytest.approx(whole * NANOSECOND)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_same_widths_are_timed_once(share):
    timed = []

    def measured(model) -> float:
        timed.append(tuple(tuple(weight.shape) for weight in model.weights))
        return a_nanosecond_a_flop(model)

    limit = share * a_nanosecond_a_flop(convnet())
    within(sgdap.Budget(latency="1ms", runtime=measured), limit)
    assert len({*timed}) == len(timed) > 3


def test_a_model_that_is_fast_enough_stays_whole():
    found, whole = within(sgdap.Budget(latency="1ms", runtime=a_nanosecond_a_flop), 1.0)
    assert found.flops == whole


def test_times_that_differ_a_little_from_call_to_call_lead_to_the_same_widths():
    noise = np.random.default_rng(0)

    def measured(model) -> float:
        return 4e-6 + a_nanosecond_a_flop(model) * noise.uniform(0.99, 1.01)

    budget = sgdap.Budget(latency="1ms", runtime=measured)
    limit = 4e-6 + 0.5 * a_nanosecond_a_flop(convnet())
    found = [within(budget, limit)[0].flops for _ in range(10)]
    assert max(found) <= 1.06 * min(found)


def test_a_latency_that_the_narrowest_model_misses_is_refused_with_what_was_measured():
    model = convnet()
    before = model.get_weights()
    budget = sgdap.Budget(latency="1us", runtime=a_nanosecond_a_flop)
    with pytest.raises(
        ValueError,
        match=r"latency='1us', runtime=.*cannot be met: the narrowest model still takes [\d.e-]+ "
        r"ms.*the whole one [\d.e-]+ ms",
    ):
        within(budget, 1e-9, model)
    assert all(map(np.array_equal, before, model.get_weights()))


def test_a_limit_near_the_floor_is_warned_of():
    """Half of the time is the cost of calling a model, however narrow."""
    model = convnet()
    whole = a_nanosecond_a_flop(model)
    budget = sgdap.Budget(latency=0.6, runtime=lambda m: whole + a_nanosecond_a_flop(m))
    x = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype("float32")
    with pytest.warns(UserWarning, match=r"leaves \d+\.\d% of the FLOPs.*ms at the narrowest"):
        sgdap.plan(model, x, budget)


@pytest.mark.compiled
def test_a_slim_copy_is_really_timed_and_the_model_stays():
    model = convnet()
    before = model.get_weights()
    graph = sgdap.channel_graph(model)
    kept = np.ones(graph.count, bool)
    kept[graph.groups[0].channels[:3]] = False
    slim = slim_model(graph, kept)
    assert flops_of(slim) < flops_of(model)
    assert all(map(np.array_equal, before, model.get_weights()))
