"""What both kinds of models compute, and how far apart it is."""

import keras
import numpy as np
import tensorflow as tf


def inputs_of(model: keras.Model, count: int = 4, size: int = 6):
    """Random inputs for a model; open sizes are `size`."""
    random = np.random.default_rng(0)
    made = []
    for tensor in model.inputs:
        shape = (count, *(n or size for n in tensor.shape[1:]))
        whole = "int" in tensor.dtype
        x = random.integers(0, 10, shape) if whole else random.normal(size=shape)
        if len(shape) == 3 and not whole:
            x[:, -2:] = 0  # masks where there is a Masking
        made.append(x.astype(tensor.dtype))
    return made if len(made) > 1 else made[0]


def outputs_of(model, x) -> list[np.ndarray]:
    """All outputs of a model of either kind."""
    return [y.numpy() for y in tf.nest.flatten(model(x, training=False))]


def assert_same_outputs(first, second, x) -> None:
    """Fails unless both models compute the same, to 1e-5 of the largest output."""
    ours, theirs = outputs_of(first, x), outputs_of(second, x)
    assert [y.shape for y in ours] == [y.shape for y in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * max(1, np.abs(one).max())
