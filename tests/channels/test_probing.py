"""Which inputs an operation depends on is found without knowing the operation."""

import itertools

import numpy as np
import pytest

from sgdap.channels.probing import (
    agree,
    fits,
    halves,
    line_of,
    random_inputs,
    sources,
    taken,
    treats_each_alone,
)

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
    assert {frozenset(pair) for pair in pairs.tolist()} == {
        frozenset(pair) for pair in ((0, 3), (1, 4), (2, 5))
    }
    assert sorted(line) == [3, 4, 5]


def test_shapes_fit_where_known_sizes_are_theirs():
    assert fits([(2, 3), ()], [(None, 3), ()])
    assert not fits([(2, 3)], [(None, 4)])
    assert not fits([(2, 3)], [(None, 3, 1)])
    assert not fits([(2, 3)], [])


def test_masks_take_what_they_hold():
    x = np.arange(6).reshape(2, 3)
    assert taken(x, [None, np.array([True, False, True])]).tolist() == [[0, 2], [3, 5]]


@pytest.mark.parametrize("sizes", [[2], [3], [8], [20], [21], [8, 8], [5, 3, 2, 4], [4] * 9])
def test_every_label_leaves_once_while_any_other_one_stays(sizes):
    found = halves(sizes)
    for one, other in itertools.permutations(range(sum(sizes)), 2):
        assert (found[:, one] & ~found[:, other]).any()
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        if size in (2, 4, 8):
            assert set(found[:, start : start + size].sum(1)) == {size // 2}


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


ALONE = {
    "relu": (lambda x: np.maximum(x, 0), True),
    "sign": (np.sign, True),
    "centred over the batch": (lambda x: x - x.mean(0), True),
    "minus the first": (lambda x: x - x[..., :1], False),
    "minus the last": (lambda x: x - x[..., -1:], False),
    "minus one in the middle": (lambda x: x - x[..., 5:6], False),
    "one meets one other": (lambda x: x + 0.01 * np.eye(x.shape[-1])[3] * x[..., :1], False),
    "plus the next": (lambda x: x + np.roll(x, 1, -1), False),
    "flipped": (lambda x: x[..., ::-1], False),
    "plus the sum": (lambda x: x + x.sum(-1, keepdims=True), False),
    "softmax": (softmax, False),
    "times the width": (lambda x: x * x.shape[-1], False),
    "wide ones otherwise": (lambda x: x if x.shape[-1] < 8 else x * 2, False),
    "numbered": (lambda x: x * np.arange(x.shape[-1]), False),
    "halves exchanged": (lambda x: np.concatenate(np.array_split(x, 2, -1)[::-1], -1), False),
    "of one width": (lambda x: x * np.arange(9), False),
    "without a tail": (lambda x: x[..., :-1], False),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_function_that_treats_each_column_alone_is_told_from_all_others(name):
    function, alone = ALONE[name]
    try:
        found = treats_each_alone(function, 9)
    except ValueError:
        found = False
    assert found == alone


def test_arrays_agree_but_for_rounding_and_not_for_a_hundredth():
    x = np.array([1.0, 2.0, np.nan], "float32")
    assert agree([x], [x * (1 + 1e-6)])
    assert not agree([x], [x * 1.01])
    assert not agree([x], [x[:2]])
    assert not agree([np.array([1, 2])], [np.array([1, 3])])
