"""Errors show what was received in one short line, and names that are near."""

import numpy as np
import pytest
import tensorflow as tf

import sgdap
from sgdap._arguments import check_integer, check_share, choices_for, shown
from tests.models import mlp

LARGE = np.zeros((200, 28, 28, 1))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (LARGE, "<ndarray of shape (200, 28, 28, 1)>"),
        ([LARGE, 3], "[<ndarray of shape (200, 28, 28, 1)>, 3]"),
        ({"x": tf.zeros((2, 3))}, "{'x': <EagerTensor of shape (2, 3)>}"),
        ("conv*", "'conv*'"),
        (0.5, "0.5"),
        (None, "None"),
        (["a", "b"], "['a', 'b']"),
    ],
)
def test_arrays_are_shown_by_their_shape_and_short_values_as_they_are(value, words):
    assert shown(value) == words


@pytest.mark.parametrize("value", [list(range(9999)), "x" * 9999, {i: i for i in range(999)}])
def test_long_values_are_one_short_line(value):
    assert len(shown(value)) < 120 and "\n" not in shown(value)


@pytest.mark.parametrize(
    "check", [lambda x: check_integer("n", x, 1), lambda x: check_share("n", x)]
)
def test_checks_never_print_an_array(check):
    with pytest.raises(ValueError, match=r"Received: n=<ndarray of shape \(200, 28, 28, 1\)>"):
        check(LARGE)


def test_names_that_are_near_are_told_by_their_end_too():
    names = ["net/conv_1", "net/conv_2", "head"]
    assert choices_for("conv_11", names).endswith("Did you mean 'net/conv_1' or 'net/conv_2'?")
    assert choices_for("nothing", names) == "There are: net/conv_1, net/conv_2, head."
    assert "… (99 in all)" in choices_for("nothing", map(str, range(99)))


@pytest.mark.parametrize(
    "call",
    [
        lambda model: sgdap.export(3, model),
        lambda model: sgdap.pack(model, model),
        lambda model: sgdap.unpack(model),
        lambda model: sgdap.Plan.load(model),
    ],
)
def test_what_is_no_path_is_refused_by_its_name(call):
    with pytest.raises(TypeError, match="path must be a path.*Received: <Sequential"):
        call(mlp())
