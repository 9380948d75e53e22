"""Allocation meets the budget at the least expected loss."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

import sgdap
from sgdap.guidance import ErrorCurve
from sgdap.planning.allocation import allocate, check_budget_can_be_met, hull_slopes, narrowest
from sgdap.planning.cost import cost_model
from sgdap.planning.widths import WidthRules


@pytest.fixture(scope="module")
def graph() -> sgdap.ChannelGraph:
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(7, name="first"),
            layers.Dense(5, name="second"),
            layers.Dense(6, name="third"),
            layers.Dense(3, name="end"),
        ]
    )
    return sgdap.channel_graph(model)


def convex_curves(graph: sgdap.ChannelGraph, seed: int) -> dict[str, ErrorCurve]:
    random = np.random.default_rng(seed)
    curves = {}
    for group in graph.groups:
        steps = np.sort(random.exponential(size=group.size) ** 2)
        order = random.permutation(group.size)
        curves[group.name] = ErrorCurve(order, np.append(0.0, np.cumsum(steps)))
    return curves


def allocated(graph, curves, budget, **options) -> dict[str, np.ndarray]:
    """The channels that stay, by group."""
    groups = [group for group in graph.groups if group.prunable]
    model = cost_model(graph)
    full = model.cost(model.lengths(np.ones(graph.count, bool)))
    kept = allocate(groups, curves, model, budget, full=full, **options)
    return {group.name: np.flatnonzero(kept[group.channels]) for group in graph.groups}


def cost(widths: tuple[int, int, int]) -> np.ndarray:
    """Parameters, FLOPs and bytes of the model with some widths, by hand."""
    chain = (6, *widths, 3)
    products = [a * b for a, b in itertools.pairwise(chain)]
    params = sum(products) + sum(chain[1:])
    return np.array([params, 2 * sum(products), 4 * params])


FULL = cost((7, 5, 6))


@given(st.floats(0.1, 1), st.integers(0, 1000), st.sampled_from(["global", "layerwise"]))
def test_the_budget_is_met_no_layer_is_emptied_and_channels_leave_in_order(share, seed, allocation):
    graph = sgdap.channel_graph(
        keras.Sequential(
            [keras.Input((6,)), layers.Dense(7), layers.Dense(5), layers.Dense(6), layers.Dense(3)]
        )
    )
    curves = convex_curves(graph, seed)
    budget = sgdap.Budget(flops=share, params=min(1.0, share + 0.1))
    kept = allocated(graph, curves, budget, allocation=allocation)
    widths = tuple(len(stays) for stays in kept.values())[:3]
    assert (cost(widths) <= budget.targets(FULL)).all()
    assert min(widths) >= 1
    for name, stays in kept.items():
        order = curves[name].order
        assert set(stays) == set(order[len(order) - len(stays) :])


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_global_allocation_is_close_to_the_best_of_all_widths_that_are_not_too_narrow(
    graph, share, seed
):
    curves = convex_curves(graph, seed)
    budget = sgdap.Budget(flops=share)

    def loss(widths):
        names = ("first", "second", "third")
        return sum(
            curves[n].errors[graph.group(n).size - w] for n, w in zip(names, widths, strict=True)
        )

    alike = allocated(graph, curves, budget, allocation="layerwise")
    least = [max(int(0.75 * len(alike[name])), 1) for name in ("first", "second", "third")]
    fitting = [
        widths
        for widths in itertools.product(*map(range, least, (8, 6, 7)))
        if cost(widths)[1] <= share * FULL[1]
    ]
    kept = allocated(graph, curves, budget)
    assert all(len(stays) >= width for stays, width in zip(kept.values(), least, strict=False))
    mine = loss(tuple(len(kept[name]) for name in ("first", "second", "third")))
    best = min(map(loss, fitting))
    assert mine <= 1.1 * best + 1e-9


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.9])
def test_layerwise_allocation_keeps_the_same_share_of_every_group(graph, share):
    """`N_new = max(floor(p · N), 1)` with the largest p that meets the budget."""
    kept = allocated(
        graph, convex_curves(graph, 0), sgdap.Budget(flops=share), allocation="layerwise"
    )
    sizes = (7, 5, 6)
    possible = [tuple(max(int(p * n), 1) for n in sizes) for p in np.linspace(0, 1, 10_001)]
    expected = [w for w in possible if cost(w)[1] <= share * FULL[1]][-1]
    assert tuple(len(kept[name]) for name in ("first", "second", "third")) == expected


@pytest.mark.parametrize("allocation", ["global", "layerwise"])
def test_no_group_gets_narrower_than_min_channels(graph, allocation):
    kept = allocated(
        graph,
        convex_curves(graph, 0),
        sgdap.Budget(flops=0.4),
        allocation=allocation,
        rules=WidthRules(min_channels=3),
    )
    assert min(map(len, kept.values())) >= 3
    assert len(kept["end"]) == 3


@pytest.mark.parametrize("allocation", ["global", "layerwise"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_widths_are_rounded_to_a_multiple(graph, allocation, share):
    budget, rules = sgdap.Budget(flops=share), WidthRules(round_to=2)
    curves = convex_curves(graph, 1)
    kept = allocated(graph, curves, budget, allocation=allocation, rules=rules)
    widths = tuple(len(kept[name]) for name in ("first", "second", "third"))
    assert cost(widths)[1] <= share * FULL[1]
    for width, whole in zip(widths, (7, 5, 6), strict=True):
        assert width == whole or width % 2 == 0
    for name, stays in kept.items():
        order = curves[name].order
        assert set(stays) == set(order[len(order) - len(stays) :])


@pytest.mark.parametrize("allocation", ["global", "layerwise"])
def test_settled_widths_are_kept_and_the_others_pay(graph, allocation):
    budget, rules = sgdap.Budget(flops=0.6), WidthRules(fixed={"first": 7, "third": 2})
    kept = allocated(graph, convex_curves(graph, 0), budget, allocation=allocation, rules=rules)
    assert (len(kept["first"]), len(kept["third"])) == (7, 2)
    assert cost((7, len(kept["second"]), 2))[1] <= 0.6 * FULL[1]


@pytest.mark.parametrize("allocation", ["global", "layerwise"])
def test_a_budget_that_cannot_be_met_is_refused_with_what_is_needed(graph, allocation):
    least = cost((1, 1, 1))[1] / FULL[1]
    with pytest.raises(
        ValueError,
        match=rf"Budget\(flops=0\.01\) cannot be met: with 1 channel per group .*{least:.3g} of "
        r"its flops.*Raise the budget, lower min_channels.*inspect\(model\) shows which",
    ):
        allocated(graph, convex_curves(graph, 0), sgdap.Budget(flops=0.01), allocation=allocation)


def test_an_unknown_allocation_is_refused(graph):
    with pytest.raises(ValueError, match="'layerwise' or 'measured'. Received: .*'greedy'"):
        allocated(graph, convex_curves(graph, 0), sgdap.Budget(flops=0.5), allocation="greedy")


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12))
def test_hull_slopes_are_those_of_the_largest_convex_curve_below(steps):
    errors = np.append(0.0, np.cumsum(steps))
    slopes = hull_slopes(errors)
    hull = np.append(0.0, np.cumsum(slopes))
    n = len(steps)
    for i in range(n + 1):  # the lowest chord over i between any two points of the curve
        chords = [
            errors[a] + (errors[b] - errors[a]) * (i - a) / (b - a)
            for a in range(i + 1)
            for b in range(i, n + 1)
            if a < b
        ]
        assert hull[i] == pytest.approx(min(chords), abs=1e-9)
    assert (np.diff(slopes) >= -1e-9).all()


def test_the_narrowest_model_keeps_the_rules(graph):
    groups = [group for group in graph.groups if group.prunable]
    rules = WidthRules(min_channels=2, fixed={"second": 4})
    kept = narrowest(groups, cost_model(graph), rules)
    assert [int(kept[group.channels].sum()) for group in graph.groups] == [2, 4, 2, 3]


@pytest.mark.parametrize("limits", [{"params": 40}, {"flops": 60}, {"params": 0.5, "bytes": 99}])
def test_a_percentage_is_not_taken_for_an_absolute_number(limits):
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(3000, name="wide"), layers.Dense(1, name="end")]
    )
    graph = sgdap.channel_graph(model)
    name, limit = list(limits.items())[-1]
    with pytest.raises(ValueError, match=rf"Did you mean {name}={limit / 100}, that is {limit} %"):
        check_budget_can_be_met(graph, graph.groups[:1], sgdap.Budget(**limits), WidthRules())


@pytest.mark.parametrize("limits", [{"params": 40}, {"flops": 99.0}])
def test_an_absolute_number_stays_one_where_no_percentage_can_be_meant(graph, limits):
    groups = [group for group in graph.groups if group.prunable]
    check_budget_can_be_met(graph, groups, sgdap.Budget(**limits), WidthRules())


def test_where_nothing_can_be_saved_the_error_says_so():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, name="a"), layers.Dense(2)])
    graph = sgdap.channel_graph(model)
    with pytest.raises(ValueError, match="the model still needs all of its params"):
        check_budget_can_be_met(graph, [], sgdap.Budget(params=0.5), WidthRules())
