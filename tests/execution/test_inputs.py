"""Data that do not fit a model are refused in words."""

import keras
import pytest
import tensorflow as tf
from keras import layers

import sgdap


def words(of_own_code):
    vectorize = layers.TextVectorization(vocabulary=list("abcd"), output_sequence_length=4)
    body = [
        vectorize,
        layers.Embedding(6, 8, name="embedding"),
        layers.GlobalAveragePooling1D(),
        layers.Dense(2, name="end"),
    ]

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = body

        def call(self, x):
            for layer in self.body:
                x = layer(x)
            return x

    if of_own_code:
        model = Own()
        model(tf.constant(["a b"]))
        return model
    return keras.Sequential([keras.Input((), dtype="string"), *body])


def test_strings_are_data_of_a_model_that_takes_strings(recwarn):
    plan = sgdap.plan(words(False), tf.constant(["a b c", "b d"] * 20), sgdap.Budget(flops=0.5))
    assert plan.widths["embedding"] < 8
    assert not recwarn.list and not plan.notes  # all that it computes is counted


def test_strings_for_a_model_that_is_read_on_numbers_are_refused_in_words():
    with pytest.raises(ValueError, match=r"are strings.*read as one of float32.*dtype='string'"):
        sgdap.plan(words(True), tf.constant(["a b c", "b d"] * 20), sgdap.Budget(flops=0.5))


def test_samples_that_come_one_by_one_are_refused_in_words():
    model = keras.Sequential([keras.Input((6, 5)), layers.Dense(4), layers.Dense(2)])
    single = tf.data.Dataset.from_tensor_slices(tf.zeros((8, 6, 5)))
    with pytest.raises(ValueError, match=r"must come in batches: dataset\.batch\(32\)"):
        sgdap.plan(model, single, sgdap.Budget(flops=0.5))
