"""Errors of the user's own code and of Keras are told in one sentence."""

import keras
import numpy as np
import pytest

from sgdap.model.user_code import first_sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("It fails. Do this instead.\nMore.", "It fails"),
        ("shapes [2,6] vs. [2,3] differ", "shapes [2,6] vs. [2,3] differ"),
        ("", "no message"),
    ],
)
def test_an_error_is_told_in_its_first_sentence(text, sentence):
    assert first_sentence(ValueError(text)) == sentence


def test_what_keras_and_tensorflow_write_around_an_error_is_left_out():
    product = keras.layers.Lambda(lambda x: x * np.ones((2, 3), "float32"))
    with pytest.raises(Exception, match="Incompatible shapes") as caught:
        product(np.ones((2, 6)))
    assert first_sentence(caught.value) == "Incompatible shapes: [2,6] vs. [2,3]"
