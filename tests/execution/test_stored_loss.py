import keras
import numpy as np
from keras import layers, ops

from sgdap.channels.grouping import channel_graph
from sgdap.execution.losses import KnownLoss
from sgdap.execution.stored_loss import StoredLoss, gradient_powers

GENERATOR = np.random.default_rng(0)


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, "tanh"), layers.Dropout(0.5), layers.Dense(3)]
    )


def squared(x, y, made, weight):
    return ops.mean(ops.square(made - y))


def test_batches_add_up_to_the_loss_and_gradient_of_all_samples():
    model = network()
    x, y = (GENERATOR.normal(size=(50, n)).astype("float32") for n in (5, 3))
    stored = StoredLoss(model, model.trainable_variables, (x, y, None), squared, 16)
    value, gradients = stored.value_and_gradients()
    made = model.predict(x, verbose=0)
    np.testing.assert_allclose(value, ((made - y) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(stored.value(), value, rtol=1e-6)
    kernel, step = model.layers[0].kernel, 1e-2
    for sign in (1, -1):
        kernel.assign_add(sign * step * np.eye(5, 4, dtype="float32"))
        value -= sign * ((model.predict(x, verbose=0) - y) ** 2).mean()
        kernel.assign_add(-sign * step * np.eye(5, 4, dtype="float32"))
    higher = value - ((made - y) ** 2).mean()  # what is left of both differences
    np.testing.assert_allclose(-higher / (2 * step), np.trace(gradients[0][:4]), rtol=1e-2)


def test_powers_are_the_mean_squares_of_each_samples_gradient():
    """A squared error of unit curvature draws gradients of unit power at each output."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    x = GENERATOR.normal(size=(4000, 5)).astype("float32")
    losses = [KnownLoss(0, "squared", 0.5)]
    graph = channel_graph(model)
    (found,) = gradient_powers(
        graph, [model.layers[0].kernel], losses, x, batch_size=8, samples=None, seed=0
    )
    wanted = (x**2).mean(axis=0)[:, None] / 3  # the mean over the outputs' entries
    np.testing.assert_allclose(found, np.repeat(wanted, 3, 1), rtol=0.25)
