"""Which epochs may have a round."""

from dataclasses import replace

import pytest

from sgdap.training.calendar import Calendar


@pytest.mark.parametrize(
    ("calendar", "first", "rounds"),
    [
        (Calendar(6, earliest=0, frequency=1, final=1), 0, [0, 1, 2, 3, 4]),
        (Calendar(6, earliest=1, frequency=2, final=1), 0, [1, 3]),
        (Calendar(6, earliest=0, frequency=1, final=2), 3, [3]),
        # Each round lies between two epochs that are measured.
        (Calendar(8, earliest=0, frequency=1, final=1, measured=[1, 3, 5, 7]), 0, [1, 3, 5]),
        (Calendar(8, earliest=0, frequency=3, final=1, measured=[1, 3, 5, 7]), 0, [1, 5]),
        (Calendar(8, earliest=0, frequency=1, final=1, measured=[1, 4]), 0, [1]),
    ],
)
def test_rounds_keep_to_the_calendar(calendar, first, rounds):
    assert replace(calendar, first=first).rounds() == rounds


def test_without_an_epoch_for_a_round_it_says_what_to_change():
    with pytest.raises(ValueError, match="of 3 epochs, pruning begins after epoch 2 .* and 1 are"):
        Calendar(3, earliest=2, frequency=1, final=1).rounds()
    with pytest.raises(ValueError, match="validation_freq leaves 1 of them"):
        Calendar(5, earliest=0, frequency=1, final=1, measured=[4], first=4).rounds()


@pytest.mark.parametrize(
    ("epochs", "places"), [(2, 1), (3, 1), (4, 2), (5, 2), (8, 4), (9, 4), (32, 16)]
)
def test_without_a_number_rounds_lie_in_the_first_half(epochs, places):
    calendar = Calendar(epochs, earliest=0, frequency=1, final=None)
    assert calendar.rounds() == list(range(places))
    assert calendar.end == epochs - 1, "a round that was undone may be tried again later"


def test_the_first_half_is_of_the_epochs_that_are_left():
    assert Calendar(12, earliest=4, frequency=1, final=None).rounds() == [4, 5, 6, 7]
    later = Calendar(12, earliest=4, frequency=2, final=None, first=6)
    assert later.rounds() == [6, 8]
    assert Calendar(12, earliest=10, frequency=1, final=None).rounds() == [10]


def test_no_more_rounds_are_planned_than_are_wanted_and_no_fewer_than_are_needed():
    wanted = Calendar(8, earliest=0, frequency=1, final=None, most=2)
    assert wanted.rounds() == [0, 1]
    needed = Calendar(8, earliest=0, frequency=1, final=None, least=6)
    assert needed.rounds() == [0, 1, 2, 3, 4, 5]
    more_than_fit = Calendar(8, earliest=0, frequency=1, final=None, least=9)
    assert more_than_fit.rounds() == [0, 1, 2, 3, 4, 5, 6]


def test_a_late_metric_still_leaves_a_round():
    assert Calendar(8, earliest=0, frequency=1, final=None, measured=[5, 7]).rounds() == [5]
    with pytest.raises(ValueError, match="of 1 epochs, .* and 1 are left for fine-tuning"):
        Calendar(1, earliest=0, frequency=1, final=None).rounds()


def test_only_epochs_with_the_metric_are_left_to_recover():
    assert Calendar(8, earliest=0, frequency=1, final=1).left(2) == 5
    assert Calendar(8, earliest=0, frequency=1, final=1, measured=[1, 3, 5, 7]).left(3) == 2
