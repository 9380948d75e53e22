"""A plan is what the weights and the data make it, whatever the precision of training."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from tests.models import digits_like, trained_once

X, Y = digits_like(192)


def network(policy: str = "float32") -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(12, 3, 2, activation="relu", name="conv", dtype=policy),
            layers.Flatten(dtype=policy),
            layers.Dense(16, "relu", name="hidden", dtype=policy),
            layers.Dense(3, "softmax", name="end", dtype=policy),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


learnt = trained_once(network, X, Y)


def confident(policy: str) -> keras.Model:
    """A trained model whose probabilities are 0 and 1 in 16 bits."""
    *others, kernel, bias = learnt().get_weights()
    model = network(policy)
    model.set_weights([*others, 2 * kernel, 2 * bias])
    return model


def planned(model: keras.Model, allocation: str) -> sgdap.Plan:
    return sgdap.plan(model, X, sgdap.Budget(flops=0.4), allocation=allocation, round_to=1)


@functools.cache
def planned_in_full(allocation: str) -> sgdap.Plan:
    return planned(confident("float32"), allocation)


@pytest.mark.parametrize("allocation", ["global", "measured"])
@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "mixed_bfloat16"])
def test_a_model_of_half_precision_is_planned_as_in_full(policy, allocation):
    model = confident(policy)
    made, in_full = planned(model, allocation), planned_in_full(allocation)
    for one, other in zip(made.groups, in_full.groups, strict=True):
        assert abs(len(one.kept) - len(other.kept)) <= 1
        np.testing.assert_allclose(one.error, other.error, rtol=0.02, atol=1e-6)
    assert {layer.dtype_policy.name for layer in model.layers} == {policy}


@pytest.mark.parametrize("guidance", ["lasso", "taylor"])
def test_rounds_of_a_fit_in_half_precision_are_those_in_full(guidance):
    widths = []
    for policy in ("float16", "float32"):
        model = confident(policy)
        model.optimizer.learning_rate = 0.0
        callback = sgdap.SGDAPCallback(
            sgdap.Budget(flops=0.4), guidance, round_to=1, calibration_data=X, verbose=0
        )
        model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback])
        widths.append([dict(r.widths) for r in callback.rounds])
    assert widths[0] == widths[1] != []
