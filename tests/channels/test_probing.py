"""Which inputs an operation depends on is found without knowing the operation."""

import numpy as np
import pytest

from sgdap.channels.probing import classes_of, line_of, random_inputs, sources, taken

LABELS = np.arange(6)


def found(function, axis: int = 1):
    values, others = (random_inputs([(None, 6)], ["float32"], seed) for seed in (0, 1))
    run = lambda inputs: [function(inputs[0])]  # noqa: E731
    return sources(run, values, others, 0, axis, LABELS)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda x: np.maximum(x, 0), LABELS),
        (lambda x: x[:, ::-1], LABELS[::-1]),
        (lambda x: np.repeat(x, 2, 1), np.repeat(LABELS, 2)),
        (lambda x: np.pad(x, ((0, 0), (1, 0))), np.array([-1, *LABELS])),
        (lambda x: x.mean(0), LABELS),
    ],
)
def test_the_label_of_every_output_is_spelled_by_what_changes(function, line):
    (source,) = found(function)
    _, got, pairs = line_of(source)
    np.testing.assert_array_equal(got, line)
    assert not len(pairs)


@pytest.mark.parametrize(
    "function", [lambda x: x.sum(1), lambda x: x - x.max(1, keepdims=True), np.sort, np.cumsum]
)
def test_an_output_that_depends_on_several_is_found_out(function):
    assert found(function) is None


def test_labels_that_come_to_one_index_are_tied():
    (source,) = found(lambda x: x.reshape(-1, 2, 3))
    axis, line, pairs = line_of(source)
    assert axis == 2
    assert classes_of(6, pairs).tolist() == [0, 1, 2, 0, 1, 2]
    assert sorted(line) == [3, 4, 5]


def test_masks_take_what_they_hold():
    x = np.arange(6).reshape(2, 3)
    assert taken(x, [None, np.array([True, False, True])]).tolist() == [[0, 2], [3, 5]]
