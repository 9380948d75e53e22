"""Schedules lead from the whole model to the budget."""

import numpy as np
import pytest
from tensorflow_model_optimization.sparsity.keras import ConstantSparsity, PolynomialDecay

import sgdap
from sgdap.planning.schedule import SCHEDULES, StepSchedule, get_schedule


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
    schedule = SCHEDULES["geometric"]
    left = [schedule.fraction(schedule.progress(i / 4), 0.16) for i in range(5)]
    np.testing.assert_allclose(np.divide(left[1:], left[:-1]), 0.16**0.25)


def test_one_shot_goes_all_the_way_in_one_round():
    assert SCHEDULES["one_shot"].progress(0.0) == 1.0
    assert SCHEDULES["one_shot"].rounds == 1


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


def test_a_schedule_that_ends_without_sparsity_is_refused():
    with pytest.raises(ValueError, match="sparsity between 0 and 1. Received: a final sparsity"):
        StepSchedule(ConstantSparsity(0.0, begin_step=0), 50)


def test_schedules_come_by_name_or_as_objects():
    mine = sgdap.Schedule("mine", lambda t: t**2, lambda progress, final: final**progress)
    decay = PolynomialDecay(0.0, 0.5, 0, 10)
    assert get_schedule("cubic") is SCHEDULES["cubic"]
    assert get_schedule(mine) is mine
    assert get_schedule(decay) is decay


def test_an_unknown_schedule_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="No schedule is called 'fast'.*geometric"):
        get_schedule("fast")
    with pytest.raises(TypeError, match=r"schedule must be a name.*Received: 0\.5"):
        get_schedule(0.5)
