"""Schedules lead from the whole model to the budget."""

import numpy as np
import pytest
from tensorflow_model_optimization.sparsity.keras import ConstantSparsity, PolynomialDecay

import sgdap
from sgdap.training.schedule import SCHEDULES, StepSchedule, get_schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_ends_at_the_budget_and_never_turns_back(name):
    schedule = get_schedule(name)
    way = [schedule.progress(t) for t in np.linspace(0, 1, 11)]
    assert way == sorted(way)
    assert way[-1] == 1.0
    for final in (0.1, 0.7):
        fractions = [schedule.fraction(progress, final) for progress in np.linspace(0, 1, 11)]
        assert fractions == sorted(fractions, reverse=True)
        assert fractions[0] == pytest.approx(1)
        assert fractions[-1] == pytest.approx(final)


def test_geometric_rounds_remove_the_same_share_each():
    schedule = sgdap.Geometric()
    left = [schedule.fraction(schedule.progress(i / 4), 0.16) for i in range(5)]
    np.testing.assert_allclose(np.divide(left[1:], left[:-1]), 0.16**0.25)


def test_linear_rounds_remove_the_same_amount_each():
    schedule = sgdap.Linear()
    left = [schedule.fraction(schedule.progress(i / 4), 0.2) for i in range(5)]
    np.testing.assert_allclose(left, [1, 0.8, 0.6, 0.4, 0.2])


def test_cubic_rounds_follow_zhu_and_gupta():
    schedule, final, initial = sgdap.Cubic(), 0.2, 1.0
    for t in (0.0, 0.3, 0.8, 1.0):
        sparsity = (1 - final) + ((1 - initial) - (1 - final)) * (1 - t) ** 3
        left = schedule.fraction(schedule.progress(t), final)
        assert left == pytest.approx(1 - sparsity)


def test_one_shot_goes_all_the_way_in_one_round():
    assert sgdap.OneShot().progress(0.0) == 1.0
    assert sgdap.OneShot().rounds == 1


def test_adaptive_rounds_remove_what_they_are_told_to():
    schedule, final = sgdap.Adaptive(cut=0.3), 0.2
    step = schedule.step(final)
    assert schedule.progress(0.1) == 1.0, "only the step limits it"
    assert schedule.fraction(2 * step, final) == pytest.approx(0.7**2)
    assert schedule.step(0.9) == 1.0, "one round is more than enough"


@pytest.mark.parametrize(
    ("schedule", "final", "least", "enough", "judged"),
    [
        (sgdap.Geometric(), 0.5, 1, 1, 2),
        (sgdap.Geometric(), 0.3, 1, 1, 4),
        (sgdap.Cubic(), 0.1, 1, 2, 7),
        (sgdap.Linear(), 0.02, 1, 4, 11),
        (sgdap.Linear(), 1.0, 1, 1, 1),
        (sgdap.Cubic(rounds=5), 0.5, 5, 5, 5),
        (sgdap.OneShot(), 0.01, 1, 1, 1),
        (sgdap.Adaptive(cut=0.5), 0.125, 3, None, None),
        (sgdap.Adaptive(cut=0.5), 0.12, 4, None, None),
    ],
)
def test_a_small_budget_takes_more_rounds_and_more_if_they_are_judged(
    schedule, final, least, enough, judged
):
    assert schedule.least(final) == least
    assert schedule.enough(final, judged=False) == enough
    assert schedule.enough(final, judged=True) == judged


CANNOT_END = {
    "more rounds than epochs": (
        sgdap.Linear(rounds=4),
        r"Linear\(rounds=4\) needs 4 rounds.*for 3",
    ),
    "an adaptive step too small": (
        sgdap.Adaptive(cut=0.1),
        r"Adaptive\(cut=0.1\) leaves 72.9% after the 3 rounds.*allows 20.0%.*raise cut",
    ),
}


@pytest.mark.parametrize(("schedule", "message"), CANNOT_END.values(), ids=CANNOT_END)
def test_a_schedule_that_cannot_reach_its_end_is_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedule.check(3, 0.2)
    schedule.check(30, 0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sgdap.Cubic(rounds=0), "rounds must be an integer of at least 1"),
        (lambda: sgdap.Adaptive(cut=1.0), "cut must be a number between 0 and 1. Received: cut=1"),
        (lambda: sgdap.Adaptive(cut="half"), "Received: cut='half'"),
    ],
)
def test_parameters_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_polynomial_decay_follows_zhu_and_gupta():
    decay = PolynomialDecay(0.2, 0.8, begin_step=10, end_step=50, power=3, frequency=10)
    schedule = StepSchedule(decay, 100)
    assert schedule.final == pytest.approx(0.8)
    for end, step in ((21, 20), (45, 40), (60, 50)):
        sparsity = 0.8 + (0.2 - 0.8) * (1 - (step - 10) / 40) ** 3
        assert schedule.progress(end - 15, end) == pytest.approx(sparsity / 0.8, rel=1e-6)


def test_steps_without_pruning_ask_for_no_round():
    schedule = StepSchedule(ConstantSparsity(0.5, begin_step=20, frequency=10), 100)
    assert schedule.progress(0, 20) is None
    assert schedule.progress(20, 21) == pytest.approx(1.0)
    assert schedule.progress(21, 30) is None


def test_a_schedule_that_never_prunes_within_the_run_is_refused():
    with pytest.raises(ValueError, match=r"does not prune in any of the 50 steps.*begin_step"):
        StepSchedule(ConstantSparsity(0.5, begin_step=60), 50)


def test_a_schedule_that_ends_after_the_run_is_refused():
    decay = PolynomialDecay(0.0, 0.5, begin_step=0, end_step=100, frequency=10)
    with pytest.raises(ValueError, match=r"ends in step 100 with a sparsity of 0.5, but only in 5"):
        StepSchedule(decay, 50)
    assert StepSchedule(decay, 101).final == pytest.approx(0.5)


def test_a_schedule_that_ends_without_sparsity_is_refused():
    with pytest.raises(ValueError, match="sparsity between 0 and 1. Received: a final sparsity"):
        StepSchedule(ConstantSparsity(0.0, begin_step=0), 50)


def test_schedules_come_by_name_or_as_objects():
    class Mine(sgdap.Schedule):
        def progress(self, done):
            return done**2

    mine, decay = Mine(rounds=3), PolynomialDecay(0.0, 0.5, 0, 10)
    assert get_schedule("cubic") == sgdap.Cubic()
    assert get_schedule(mine) is mine
    assert get_schedule(decay) is decay


def test_an_unknown_schedule_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="No schedule is called 'fast'.*geometric"):
        get_schedule("fast")
    with pytest.raises(TypeError, match=r"schedule must be a name.*Received: 0\.5"):
        get_schedule(0.5)
