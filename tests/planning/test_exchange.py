"""Widths are exchanged between groups only for a better measure, and always within the budget."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.allocation import allocate
from sgdap.planning.cost import cost_model
from sgdap.planning.exchange import better_of, exchange
from sgdap.planning.widths import WidthRules
from sgdap.reconstruction.trial import Trials
from tests.models import digits_like, outputs, randomise

MODEL = keras.Sequential([keras.Input((8, 8, 2)), layers.Flatten()])
for size in (16, 14, 12):
    MODEL.add(layers.Dense(size, "relu"))
MODEL.add(layers.Dense(3, "softmax"))
randomise(MODEL)
GRAPH = sgdap.channel_graph(MODEL)
GROUPS = [group for group in GRAPH.groups if group.prunable]
COST = cost_model(GRAPH)
FULL = COST.cost(COST.lengths(np.ones(GRAPH.count, bool)))
BUDGET, LITTLE = sgdap.Budget(flops=0.4), sgdap.Budget(flops=0.25)


def curves(cheap: str) -> dict[str, ErrorCurve]:
    """The channels of one group look cheap, those of all others dear."""
    found = {}
    for group in GROUPS:
        order = np.flatnonzero(group.removable)
        rise = 0.01 if group.name == cheap else 1.0
        found[group.name] = ErrorCurve(order, rise * np.arange(len(order) + 1.0))
    return found


def widths(kept) -> dict[str, int]:
    return {group.name: int(kept[group.channels].sum()) for group in GROUPS}


def exchanged(judge, tries=200, rules=None):
    rules = rules or WidthRules()
    known = curves(GROUPS[0].name)
    start = allocate(GROUPS, known, COST, BUDGET, full=FULL, rules=rules)
    found = exchange(GROUPS, known, COST, BUDGET, start, judge, full=FULL, rules=rules, tries=tries)
    assert (COST.cost(COST.lengths(found)) <= BUDGET.targets(FULL) * (1 + 1e-9)).all()
    return start, found


def test_what_the_curves_got_wrong_the_measure_puts_right():
    first = GROUPS[0]
    start, found = exchanged(lambda kept: 1.0 / kept[first.channels].sum())
    assert widths(found)[first.name] > widths(start)[first.name]


def test_without_a_better_one_the_widths_stay():
    start, found = exchanged(lambda kept: 1.0)
    assert np.array_equal(start, found)


def test_no_more_are_measured_than_allowed_and_none_twice():
    asked = []

    def judge(kept):
        asked.append(kept.tobytes())
        return float(1 / len(asked))

    exchanged(judge, tries=2)
    assert len(asked) == len(set(asked)) == 2


def test_widths_that_the_user_set_are_not_exchanged():
    name = GROUPS[1].name
    rules = WidthRules(fixed={name: GROUPS[1].size - 1})
    _, found = exchanged(lambda kept: 1.0 / kept[GROUPS[1].channels].sum(), rules=rules)
    assert widths(found)[name] == GROUPS[1].size - 1


@pytest.mark.parametrize("reconstruction", [True, False])
def test_a_measured_plan_meets_the_budget_and_loses_no_more_on_its_own_data(reconstruction):
    x, _ = digits_like(90)

    def divergence(allocation):
        plan = sgdap.plan(
            MODEL, x, BUDGET, allocation=allocation, reconstruction=reconstruction, seed=1
        )
        assert plan.flops[1] <= 0.4 * plan.flops[0]
        p, q = outputs(MODEL, x[:30]), outputs(sgdap.apply(MODEL, plan), x[:30])
        return float((p * np.log((p + 1e-9) / (q + 1e-9))).sum(axis=1).mean())

    assert divergence("measured") <= divergence("global") * 1.05


@pytest.mark.parametrize(("fall", "taken"), [(0.01, False), (0.03, True)])
def test_a_fall_that_may_be_noise_of_the_samples_changes_no_width(fall, taken):
    apart = np.tile([-1.0, 1.0], 500)  # half of the standard error is 0.016
    first = []

    def judge(kept):
        first.append(kept)
        return 2 + (apart - fall if len(first) > 1 else 0.0) * np.ones(1000)

    start, found = exchanged(judge, tries=2)
    assert (not np.array_equal(start, found)) is taken


def test_an_improvement_at_every_sample_is_taken_however_the_samples_differ():
    first = GROUPS[0]
    spread = np.random.default_rng(0).normal(size=1000) ** 2

    def judge(kept):
        return 10 * spread + 1 / kept[first.channels].sum()

    _, found = exchanged(judge)
    start, _ = exchanged(lambda kept: 1.0)
    assert widths(found)[first.name] > widths(start)[first.name]


@pytest.mark.parametrize(("fall", "taken"), [(-0.01, False), (0.025, False), (0.04, True)])
def test_of_two_masks_the_second_is_taken_if_it_is_better_by_more_than_chance(fall, taken):
    apart = np.tile([-1.0, 1.0], 500)  # a standard error of the difference is 0.032
    first, second = np.ones(3, bool), np.array([True, False, True])
    losses = {first.tobytes(): np.full(1000, 2.0), second.tobytes(): 2 + apart - fall}
    found = better_of(first, second, lambda kept: losses[kept.tobytes()])
    assert found is (second if taken else first)


@pytest.mark.parametrize("equal", [True, False])
def test_a_global_plan_takes_the_shares_that_are_measured_to_be_better(equal, monkeypatch):
    x, _ = digits_like(90)
    sizes = [int(group.removable.sum()) for group in GROUPS]
    asked = []

    def losses_of(self, kept):
        unlike = np.ptp([kept[g.channels].sum() / n for g, n in zip(GROUPS, sizes, strict=True)])
        asked.append(unlike if equal else -unlike)
        return 2 + asked[-1]

    monkeypatch.setattr(Trials, "losses_of", losses_of)
    plan = sgdap.plan(MODEL, x, LITTLE, round_to=1)
    shares = [plan.widths[g.name] / n for g, n in zip(GROUPS, sizes, strict=True)]
    assert len(asked) == 2
    assert abs(np.ptp(shares)) == pytest.approx(abs(min(asked)))
    assert plan.flops[1] <= 0.25 * plan.flops[0]


def test_a_global_plan_measures_nothing_where_enough_is_left_or_widths_stand_or_were_timed(
    monkeypatch,
):
    monkeypatch.setattr(Trials, "__init__", lambda self, *args, **options: pytest.fail("measured"))
    x, _ = digits_like(20)
    sgdap.plan(MODEL, x, BUDGET)
    sgdap.plan(MODEL, x, LITTLE, overrides={group.name: 0.2 for group in GROUPS})
    sgdap.plan(MODEL, x, LITTLE, reconstruction=False)
    sgdap.plan(MODEL, x, sgdap.Budget(latency=0.25, runtime=a_nanosecond_a_flop))


def a_nanosecond_a_flop(model) -> float:
    return sgdap.profile(model, latency=False).flops * 1e-9
