"""`keras.utils.set_random_seed` decides everything that is random in a run."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap


def run(seed: int) -> list[np.ndarray]:
    """All weights and the optimizer's variables after a run with everything random in it."""
    keras.utils.set_random_seed(seed)
    x = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, "relu"),
            layers.GaussianNoise(0.1),
            layers.Dropout(0.2),
            layers.Dense(8, "relu"),
            layers.Dense(3, "softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    callback = sgdap.SGDAPCallback(sgdap.Budget(flops=0.4), samples=24, jit_compile=None, verbose=0)
    model.fit(x, x[:, :3].argmax(1), batch_size=16, epochs=3, verbose=0, callbacks=[callback])
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


@pytest.mark.compiled
def test_the_same_seed_gives_the_same_widths_and_weights_to_the_bit():
    first, again, other = run(3), run(3), run(4)
    assert len(first) == len(again)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
