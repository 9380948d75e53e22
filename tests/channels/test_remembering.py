"""Results are remembered for the same thing only, and no more of them than there is room for."""

import gc
import weakref

import numpy as np
import pytest

from sgdap.channels.remembering import Remembered, key_of


def made_twice() -> list[type]:
    def make():
        class Same:
            pass

        return Same

    return [make(), make()]


def test_a_class_defined_again_under_its_name_is_another_one():
    first, second = made_twice()
    assert repr(first) == repr(second)
    assert key_of(first) != key_of(second)
    assert key_of(first) == key_of(first)


def test_classes_and_functions_are_held_weakly():
    known = Remembered(4)
    own, _ = made_twice()

    def function():
        return known

    known.get(key_of([own, function]), lambda: 1)
    seen = weakref.ref(own), weakref.ref(function)
    del own, function
    gc.collect()
    assert [one() for one in seen] == [None, None]
    assert known.get(key_of(made_twice()), lambda: 2) == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": [1, (2.0, None)]}, {"a": [1, (2.0, None)]}, True),
        (1, True, False),
        (1, 1.0, False),
        ((1,), [1], False),
        (np.zeros(3), np.zeros(3), True),
        (np.arange(10_000), np.arange(10_000) - (np.arange(10_000) == 5000), False),
        (np.zeros(3), np.zeros(3, "float32"), False),
        (slice(1, None), slice(1, None), True),
        (object(), object(), False),
    ],
)
def test_keys_are_equal_for_equal_values_alone(one, other, same):
    assert (key_of(one) == key_of(other)) == same


def test_only_the_results_used_last_are_kept():
    known = Remembered(2)
    for key in "aba":
        assert known.get(key, lambda key=key: key) == key
    known.get("c", lambda: "c")
    assert len(known) == 2
    assert known.get("a", lambda: "found again") == "a"
    assert known.get("b", lambda: "found again") == "found again"


def test_what_fails_is_not_remembered():
    known = Remembered(2)
    with pytest.raises(ZeroDivisionError):
        known.get("a", lambda: 1 / 0)
    assert known.get("a", lambda: 1) == 1
