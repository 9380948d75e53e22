"""Which epochs have a round and how far it goes follows from the schedule and the last round."""

import pytest
from tensorflow_model_optimization.sparsity.keras import ConstantSparsity

import sgdap
from sgdap.training.calendar import Calendar
from sgdap.training.course import Course
from sgdap.training.guard import Round
from sgdap.training.schedule import Schedule, StepSchedule


def course(schedule: Schedule, epochs: int = 6, frequency: int = 1) -> Course:
    calendar = Calendar(epochs, earliest=0, frequency=frequency, final=1)
    return Course(calendar, schedule, calendar.rounds()[: schedule.rounds])


def last(epoch: int, decision: str = "kept") -> Round:
    return Round(epoch, 0.5, (9, 4), (9, 4), {}, None, None, decision)


def test_each_planned_epoch_goes_its_share_of_the_way():
    found = [course(sgdap.Linear()).progress(e, None, 0) for e in range(5)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    found = [course(sgdap.Linear(2)).progress(e, None, 0) for e in range(5)]
    assert found == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0])


def test_rounds_keep_their_distance_but_from_one_that_was_undone():
    rarely = course(sgdap.Linear(), frequency=3)
    assert rarely.progress(2, last(0), 0) is None
    assert rarely.progress(3, last(0), 0) == 1.0
    assert rarely.progress(1, last(0, "undone"), 0) == 0.5


def test_a_run_that_begins_later_has_the_rounds_that_are_left():
    later = course(sgdap.Linear()).begun_at(3)
    assert later.epochs == [3, 4]
    assert later.progress(3, None, 0) == 0.5
    assert [later.allows(epoch) for epoch in (0, 4, 5)] == [False, True, False]


def test_a_schedule_over_steps_looks_at_the_steps_since_the_last_round():
    calendar = Calendar(6, earliest=0, frequency=1, final=1)
    steps = StepSchedule(ConstantSparsity(0.5, begin_step=10, frequency=100), 50)
    by_steps = Course(calendar, Schedule(), calendar.rounds(), steps, steps_per_epoch=10)
    assert by_steps.steps_until(1) == 20
    assert by_steps.progress(0, None, 0) is None
    assert by_steps.progress(1, None, 10) == pytest.approx(1.0)
    assert by_steps.progress(2, last(1), 20) is None
    assert by_steps.progress(2, last(1, "undone"), 20) == pytest.approx(1.0), "from the beginning"
