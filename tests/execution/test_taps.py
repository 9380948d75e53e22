"""Tests of how calls of layers are observed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from keras import layers

import sgdap
from tests.models import outputs, randomise, samples


def sequences() -> keras.Model:
    """An LSTM, attention and convolutions with activations, one of them wrapped."""
    inputs = keras.Input((6, 8))
    x = layers.LSTM(6, return_sequences=True)(inputs)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.Conv1D(6, 3, activation="relu")(x)
    x = layers.TimeDistributed(layers.Dense(5, activation="tanh"))(x)
    x = layers.Flatten()(x)
    x = layers.Dense(12, activation="relu")(x)
    return randomise(keras.Model(inputs, layers.Dense(3)(x)))


def attributes_of(model: keras.Model) -> list[tuple[set[str], object]]:
    """Which attributes each layer has, and its activation."""
    parts = model._flatten_layers()
    return [(set(vars(part)), getattr(part, "activation", None)) for part in parts]


def test_no_layer_is_changed_while_it_is_observed():
    model = sequences()
    seen = []

    def watched(x):
        seen.append(attributes_of(model))
        return keras.ops.relu(x)

    for layer in model.layers:
        if isinstance(layer, layers.Dense):
            layer.activation = watched
    outputs(model, samples(model, 2))  # Keras adds attributes of its own
    whole = attributes_of(model)
    sgdap.plan(model, samples(model, 16), sgdap.Budget(flops=0.6))
    assert len(seen) > 4
    assert all(there == whole for there in seen)


def test_threads_that_plan_one_model_at_once_find_what_each_finds_alone():
    model = sequences()
    x = samples(model, 16)
    expected = outputs(model, x)
    alone = sgdap.plan(model, x, sgdap.Budget(flops=0.6)).widths
    together = threading.Barrier(5)

    def planned(number: int) -> dict[str, int]:
        together.wait()
        return sgdap.plan(model, x, sgdap.Budget(flops=0.6)).widths

    def predicted(number: int) -> list[np.ndarray]:
        together.wait()
        return [outputs(model, x) for _ in range(20)]

    with ThreadPoolExecutor(5) as pool:
        plans = [pool.submit(planned, number) for number in range(4)]
        made = pool.submit(predicted, 0).result()
    assert [plan.result() for plan in plans] == [alone] * 4
    for mine in [*made, outputs(model, x)]:
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
