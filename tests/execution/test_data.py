"""Batches come out of everything that `fit` takes, never more than asked for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sgdap.execution.data import batches, joined, known_length, reusable

X = np.arange(20.0).reshape(10, 2)
Y = np.arange(10)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[3 * index : 3 * index + 3], Y[3 * index : 3 * index + 3]


FORMS = {
    "array": lambda: X,
    "tensor": lambda: tf.constant(X),
    "tuple of x": lambda: (X,),
    "tuple of x and y": lambda: (X, Y),
    "tuple with weights": lambda: (X, Y, np.ones(10)),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(4),
    "PyDataset": Batches,
    "generator": lambda: ((X[i : i + 4], Y[i : i + 4]) for i in (0, 4, 8)),
    "list of batches": lambda: iter([X[:5], X[5:]]),
    "dict": lambda: {"a": X},
    "list of one input": lambda: [X],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_length_of_arrays_is_known_before(form):
    arrays = not {"dataset", "PyDataset", "generator", "list of batches"} & {form}
    assert known_length(FORMS[form](), None) == (10 if arrays else None)
    assert known_length(FORMS[form](), 4) == (4 if arrays else None)


def first_input(batch) -> np.ndarray:
    return np.asarray(keras.tree.flatten(batch[0])[0])


@pytest.mark.parametrize("limit", [None, 7, 10, 99])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_samples_come_in_order_up_to_the_limit(form, limit):
    seen = np.concatenate([first_input(batch) for batch in batches(form(), 4, limit)])
    np.testing.assert_array_equal(seen, X[:limit])


def test_targets_and_weights_come_along():
    for x, y, weight in batches((X, Y, Y / 2), 4, 6):
        np.testing.assert_array_equal(y, x[:, 0] / 2)
        np.testing.assert_array_equal(weight, y / 2)


def test_a_list_is_one_of_model_inputs_and_not_of_inputs_and_targets():
    (batch,) = batches([X, Y], 10, None)
    assert batch[1] is None
    assert [len(leaf) for leaf in batch[0]] == [10, 10]


def test_nothing_is_read_beyond_the_limit():
    read = []

    def endless():
        while True:
            read.append(1)
            yield X

    assert sum(len(x) for x, _, _ in batches(endless(), 4, 25)) == 25
    assert len(read) == 3


EMPTY = {
    "array": np.zeros((0, 2)),
    "list": [],
    "tuple": (np.zeros((0, 2)), np.zeros(0)),
    "dataset": tf.data.Dataset.from_tensor_slices(X).batch(4).take(0),
    "generator": iter([]),
    "empty batches": iter([np.zeros((0, 2))] * 3),
}


@pytest.mark.parametrize("data", EMPTY.values(), ids=EMPTY)
def test_empty_data_are_refused(data):
    with pytest.raises(ValueError, match="calibration data are empty.*Pass some hundred inputs"):
        list(batches(data, 4, None))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (None, TypeError, "Calibration data are needed.*Received: None"),
        (7, TypeError, "must be an array.*Received: 7"),
        ([1, 2], TypeError, "must be an array with a batch axis. Received: "),
        ((X, Y[:-1]), ValueError, r"differ in length: \[9, 10\]"),
        ({"a": X, "b": X[:4]}, ValueError, r"differ in length: \[4, 10\]"),
        (tf.data.Dataset.from_tensor_slices((X, Y)), ValueError, r"single samples.*batch\(32\)"),
        (tf.data.Dataset.from_tensor_slices(Y), ValueError, r"single samples.*batch\(32\)"),
    ],
)
def test_data_that_make_no_batches_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        list(batches(data, 4, None))


def test_what_an_iterator_gives_keeps_targets_that_fit_together():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6.0)

    def kept(*targets):
        return reusable(zip((x[:4], x[4:]), targets, strict=True), None)

    inputs, targets = kept(y[:4], y[4:])
    np.testing.assert_array_equal(inputs, x)
    np.testing.assert_array_equal(targets, y)
    for odd in ((None, None), (y[:4], y[4:, None]), ([y[:4], None], [y[4:], None])):
        (alone,) = kept(*odd)
        np.testing.assert_array_equal(alone, x)


def test_so_many_samples_are_joined_of_a_dataset_without_an_end():
    endless = tf.data.Dataset.from_tensor_slices(np.arange(6.0)[:, None]).batch(4).repeat()
    x, y, weight = joined(endless, 7)
    assert (x.shape, y, weight) == ((7, 1), None, None)
