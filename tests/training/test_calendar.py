"""Which epochs may have a round."""

import pytest

from sgdap.training.calendar import Calendar


@pytest.mark.parametrize(
    ("calendar", "first", "rounds"),
    [
        (Calendar(6, begin=0, frequency=1, final=1), 0, [0, 1, 2, 3, 4]),
        (Calendar(6, begin=1, frequency=2, final=1), 0, [1, 3]),
        (Calendar(6, begin=0, frequency=1, final=2), 3, [3]),
        # Each round lies between two epochs that are measured.
        (Calendar(8, begin=0, frequency=1, final=1, measured=[1, 3, 5, 7]), 0, [1, 3, 5]),
        (Calendar(8, begin=0, frequency=3, final=1, measured=[1, 3, 5, 7]), 0, [1, 5]),
        (Calendar(8, begin=0, frequency=1, final=1, measured=[1, 4]), 0, [1]),
    ],
)
def test_rounds_keep_to_the_calendar(calendar, first, rounds):
    assert calendar.rounds(first) == rounds


def test_without_an_epoch_for_a_round_it_says_what_to_change():
    with pytest.raises(ValueError, match="of 3 epochs, pruning begins after epoch 2 .* and 1 are"):
        Calendar(3, begin=2, frequency=1, final=1).rounds()
    with pytest.raises(ValueError, match="validation_freq leaves 1 of them"):
        Calendar(5, begin=0, frequency=1, final=1, measured=[4]).rounds(4)
