"""Rounds are judged by numbers alone: kept, waited for, or undone and tried half as far."""

import math

import pytest

import sgdap
from sgdap.planning.plan import GroupPlan, Plan
from sgdap.training.guard import Guard, Round, costliest_groups


def improved(guard: Guard, value: float | None) -> bool:
    """Shows the guard an epoch's value; whether it is the best until then."""
    better = guard.improves(value)
    if better:
        guard.remember(value)
    return better


def started(drop: float | None = 0.02, baseline: float = 0.9, left: int = 7, **arguments) -> Guard:
    guard = Guard(drop, **arguments)
    improved(guard, baseline)
    guard.begin(left)
    return guard


def round_(progress: float, **arguments) -> Round:
    arguments = {"widths": {"a": 3, "b": 5}, "before": 0.9} | arguments
    return Round(0, progress, (9, 4), (9, 4), **arguments)


@pytest.mark.parametrize(
    ("sign", "value", "decision"),
    [
        (1, 0.88, "kept"),
        (1, 0.95, "kept"),
        (1, 0.8799, "undone"),
        (-1, 0.92, "kept"),
        (-1, 0.9201, "undone"),
        (1, math.nan, "undone"),
        (-1, math.inf, "undone"),
        (1, None, "pending"),
    ],
)
def test_a_round_may_cost_as_much_as_allowed_and_no_more(sign, value, decision):
    guard = started(sign=sign, patience=1)
    assert guard.judge(value, retry=True) == decision


def test_without_a_limit_every_round_is_kept():
    assert started(None).judge(0.1, retry=True) == "kept"
    assert started(None).judge(math.nan, retry=True) == "kept"


def test_patience_counts_the_epochs_that_had_a_metric():
    guard = started(patience=3)
    values = [0.1, None, 0.2, 0.3]
    decisions = [guard.judge(value, retry=True) for value in values]
    assert decisions == ["pending", "pending", "pending", "undone"]


@pytest.mark.parametrize(
    ("left", "epochs"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 2), (6, 3), (7, 3), (15, 7)]
)
def test_without_a_number_a_round_has_half_of_the_epochs_that_are_left(left, epochs):
    guard = started(left=left)
    decisions = [guard.judge(0.1, retry=True) for _ in range(epochs)]
    assert decisions == ["pending"] * (epochs - 1) + ["undone"]


def test_the_last_round_may_recover_to_the_end():
    guard = started(patience=1)
    assert [guard.judge(0.1, retry=False) for _ in range(5)] == ["pending"] * 5
    assert guard.judge(0.9, retry=False) == "kept"


def test_the_first_round_sets_what_all_others_are_compared_with():
    guard = started()
    improved(guard, 0.89)
    guard.keep(round_(0.5))
    assert guard.begin(7) == 0.89, "the metric that the second round starts from"
    assert guard.baseline == 0.9
    assert guard.best is None


@pytest.mark.parametrize(
    ("sign", "brought", "baseline"),
    [
        (1, 0.95, 0.95),
        (1, 0.1, 0.9),
        (-1, 0.95, 0.9),
        (-1, 0.1, 0.1),
        (1, None, 0.9),
        (1, math.nan, 0.9),
        (-1, -math.inf, 0.9),
    ],
)
def test_of_the_model_brought_and_the_epochs_before_the_better_is_the_baseline(
    sign, brought, baseline
):
    guard = started(sign=sign, brought=brought)
    assert guard.baseline == baseline
    assert guard.begin(3) is None and guard.baseline == baseline


def test_a_baseline_that_is_given_stays():
    guard = Guard(0.02, brought=0.99, baseline=0.7)
    improved(guard, 0.9)
    assert guard.begin(3) == 0.9
    assert guard.baseline == 0.7


def test_only_finite_and_better_values_are_the_best():
    guard = Guard(0.1)
    seen = [improved(guard, v) for v in (None, math.nan, 0.5, 0.5, 0.4, 0.6)]
    assert seen == [False, False, True, False, False, True]
    guard = Guard(0.1, sign=-1)
    assert [improved(guard, v) for v in (0.5, 0.6, 0.4)] == [True, False, True]


def test_an_undone_round_is_tried_half_as_far_until_it_holds():
    guard = started()
    guard.keep(round_(0.4))
    guard.undo(round_(0.8), [])
    assert guard.step == pytest.approx(0.2)
    guard.undo(round_(0.6), [])
    assert guard.step == pytest.approx(0.1)
    assert guard.progress == 0.4


def test_after_an_undone_round_the_best_value_is_that_of_the_restored_model():
    guard = started(patience=1)
    improved(guard, 0.95)  # better than before the round, which a later value undoes
    guard.undo(round_(1.0, before=0.9), [])
    assert guard.best == 0.9


def test_the_next_round_holds_the_widths_of_all_but_the_costliest_groups():
    guard = started()
    guard.undo(round_(1.0), ["a"])
    assert guard.widths == {"b": 5}
    guard.keep(round_(0.5))
    assert guard.widths == {}


def test_the_costliest_groups_make_up_half_of_the_expected_loss():
    def plan(**errors: float) -> Plan:
        groups = [
            GroupPlan(n, (n,), 4, (0, 1) if e else (0, 1, 2, 3), e) for n, e in errors.items()
        ]
        return Plan("", "lasso", tuple(groups), (), (9, 4), (9, 4), 10)

    assert costliest_groups(plan(a=0.1, b=0.9, c=0.2)) == ("b",)
    assert costliest_groups(plan(a=0.4, b=0.3, c=0.5, d=0.0)) == ("c", "a")
    assert costliest_groups(plan(a=0.0, b=0.0)) == ()


def test_where_no_loss_is_known_all_groups_that_shrank_get_channels_back():
    kept = {"a": (0,), "b": (0, 1), "c": (0, 1, 2, 3)}
    groups = tuple(GroupPlan(name, (name,), 4, own, None) for name, own in kept.items())
    plan = Plan("", "magnitude", groups, (), (9, 4), (9, 4), 0)
    assert costliest_groups(plan) == ("a", "b")


def test_rounds_are_plain_data():
    assert sgdap.Round is Round
    assert round_(0.5).decision == "pending"
