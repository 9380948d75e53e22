"""Calls of a program as plain data."""

import keras
import numpy as np
import pytest
from keras import ops

from sgdap.model.program import OperationCall
from sgdap.model.tracing import trace


def split_into(parts):
    x = keras.Input((4,))
    (call,) = trace(keras.Model(x, ops.split(x, parts, axis=1))).calls
    return OperationCall.of(call)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (2, 2, True),
        (2, [2], False),
        ([2], [2], True),
        ([1, 3], [1, 2], False),
        ([2], [1, 2], False),
    ],
)
def test_calls_are_the_same_where_config_and_arguments_are(first, second, same):
    assert split_into(first).same_as(split_into(second)) == same


def test_arrays_among_the_arguments_are_compared_by_their_numbers():
    one, same, other = (OperationCall({}, (np.array(x),), {}) for x in ([1, 2], [1, 2], [1, 3]))
    assert one.same_as(same)
    assert not one.same_as(other)


def test_the_tensors_of_a_call_are_numbered_in_its_own_order():
    a, b = keras.Input((4,)), keras.Input((4,))
    *_, last = trace(keras.Model([a, b], ops.relu(a) + ops.relu(b))).calls
    twice = trace(keras.Model(a, a * a)).calls[0]
    for call in (last, twice):
        assert [ref.index for ref in OperationCall.of(call).args] == [0, 1]
