"""A latency is met by measuring slim copies; the model itself is not touched."""

import numpy as np
import pytest

import sgdap
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.allocation import allocate
from sgdap.planning.cost import cost_model
from sgdap.planning.widths import WidthRules
from sgdap.training import latency
from sgdap.training.latency import (
    compare_latency,
    flops_within_latency,
    measure_latency,
    slim_latency,
)
from tests.models import convnet

NANOSECOND = 1e-9


def flops_of(model) -> int:
    return sgdap.profile(model, latency=False).flops


@pytest.fixture
def a_nanosecond_a_flop(monkeypatch):
    """A machine that takes a nanosecond for each FLOP of each sample."""
    monkeypatch.setattr(
        latency, "measure_latency", lambda model, size: flops_of(model) * size * NANOSECOND
    )


def case(model=None):
    """A model's channels, its groups, and curves by which all channels cost the same."""
    graph = sgdap.channel_graph(model or convnet())
    groups = [group for group in graph.groups if group.prunable]
    curves = {}
    for group in groups:
        order = np.flatnonzero(group.removable)
        curves[group.name] = ErrorCurve(order, np.arange(len(order) + 1.0))
    return graph, groups, curves


def within(budget: sgdap.Budget, seconds: float, model=None) -> tuple[float, float]:
    graph, groups, curves = case(model)
    found = flops_within_latency(
        graph, groups, curves, WidthRules(), "global", budget, seconds, tries=10
    )
    return found, flops_of(graph.program.model)


def allocated_flops(flops: float) -> float:
    """What is left where FLOPs are the limit."""
    graph, groups, curves = case()
    model = cost_model(graph)
    full = model.cost(model.lengths(np.ones(graph.count, bool)))
    kept = allocate(groups, curves, model, sgdap.Budget(flops=flops), full=full)
    return model.cost(model.lengths(kept))[1]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_most_flops_that_are_fast_enough_are_found(a_nanosecond_a_flop, share, batch_size):
    budget = sgdap.Budget(latency="1ms", batch_size=batch_size)
    whole = flops_of(convnet())
    found, _ = within(budget, share * whole * batch_size * NANOSECOND)
    assert found <= share * whole
    assert found >= allocated_flops(0.98 * share * whole), "there, time and FLOPs are the same"


def test_a_model_that_is_fast_enough_stays_whole(a_nanosecond_a_flop):
    found, whole = within(sgdap.Budget(latency="1ms"), 1.0)
    assert found == whole


def test_a_latency_that_the_narrowest_model_misses_is_refused_with_what_was_measured(
    a_nanosecond_a_flop,
):
    model = convnet()
    before = model.get_weights()
    with pytest.raises(
        ValueError,
        match=r"latency='1us'\) cannot be met: the narrowest model still takes [\d.e-]+ ms",
    ):
        within(sgdap.Budget(latency="1us"), 1e-9, model)
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.compiled
def test_a_slim_copy_is_really_measured_and_the_model_stays():
    model = convnet()
    before = model.get_weights()
    graph = sgdap.channel_graph(model)
    kept = np.ones(graph.count, bool)
    kept[graph.groups[0].channels[:3]] = False
    assert 0 < slim_latency(graph, kept, batch_size=2) < 10
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.compiled
def test_latency_is_measured_for_each_model():
    model = convnet()
    both = compare_latency([model, model], batch_size=4, repeats=2)
    assert len(both) == 2
    assert all(0 < seconds < 10 for seconds in (*both, measure_latency(model, repeats=2)))
