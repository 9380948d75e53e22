"""Masked weights are exactly zero after each train step, whatever moves them."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from sgdap.model.tracing import trace
from sgdap.sparsity.kernels import chosen_kernels
from sgdap.sparsity.patterns import get_pattern
from sgdap.training.masking import Masking

pytestmark = pytest.mark.compiled

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 6)).astype("float32")
Y = X[:, :3].argmax(1)

OPTIMIZERS = {
    kind.__name__: kind
    for kind in vars(keras.optimizers).values()
    if inspect.isclass(kind) and issubclass(kind, keras.optimizers.Optimizer)
}
AROUND = {"LossScaleOptimizer", "MultiOptimizer"}
PLAIN = sorted({*OPTIMIZERS} - AROUND - {"Optimizer"})


def network(optimizer="adam", kind: type = keras.Model, **arguments) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    hidden = layers.Dense(8, "relu", name="hidden")(inputs)
    model = kind(inputs, layers.Dense(3, "softmax", name="end")(hidden))
    arguments = {"jit_compile": False} | arguments
    model.compile(optimizer, "sparse_categorical_crossentropy", **arguments)
    return model


def kernels_of(model):
    return chosen_kernels(trace(model).layers(), get_pattern("unstructured"))


def random_masks(kernels, share=0.6):
    random = np.random.default_rng(1)
    return {k.path: random.random(k.shape) > share for k in kernels}


class Steps(keras.callbacks.Callback):
    """Masks weights after some steps of a `fit`, and looks at them after each later step."""

    def __init__(self, begin: int = 3, watch=None):
        super().__init__()
        self.begin, self.watch, self.seen, self.count = begin, watch, 0, 0

    def on_train_begin(self, logs=None):
        self.kernels = kernels_of(self.model)
        self.masks = random_masks(self.kernels)
        self.masking = Masking(self.model, self.kernels, self.watch)
        self.masking.install()

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1
        if self.count == self.begin:
            self.masking.set(self.masks)
        if self.count >= self.begin:
            self.seen += 1
            for kernel in self.kernels:
                gone = kernel.variable.numpy()[~self.masks[kernel.path]]
                assert gone.tobytes() == bytes(gone.nbytes)

    def on_train_end(self, logs=None):
        self.masking.zero()
        self.masking.remove()


def steps_of(model, epochs=5, rows=16, **arguments) -> Steps:
    steps = Steps(**arguments)
    before = {k.path: k.variable.numpy() for k in kernels_of(model)}
    x, y = np.resize(X, (rows, 6)), np.resize(Y, rows)
    model.fit(x, y, batch_size=2, epochs=epochs, verbose=0, callbacks=[steps])
    for kernel in steps.kernels:
        stays = steps.masks[kernel.path]
        now = kernel.variable.numpy()
        assert (now[stays] != before[kernel.path][stays]).any()
        assert not now[~stays].any() and np.isfinite(now).all()
    return steps


def traced_once(model):
    """Makes the optimizer's variables now: a step that makes them is traced a second time."""
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("name", PLAIN)
def test_masked_weights_are_zero_through_a_hundred_steps_of_every_optimizer(name):
    model = traced_once(network(OPTIMIZERS[name](learning_rate=0.01)))
    assert steps_of(model, 1, rows=208).seen == 102


ADAM = {
    "weight decay": {"weight_decay": 0.1},
    "moving averages": {"use_ema": True},
    "moving averages that are taken over": {"use_ema": True, "ema_overwrite_frequency": 3},
    "accumulated gradients": {"gradient_accumulation_steps": 4},
    "a limit for all gradients": {"global_clipnorm": 0.1},
    "a loss that is scaled": {"loss_scale_factor": 8.0},
    "a schedule": {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.9)},
}


@pytest.mark.parametrize("what", ADAM)
def test_masked_weights_are_zero_with(what):
    steps_of(traced_once(network(keras.optimizers.Adam(**ADAM[what]))))


@pytest.mark.parametrize("inner", ["SGD", "Adam"])
def test_masked_weights_are_zero_where_the_loss_is_scaled_by_itself(inner):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network(OPTIMIZERS[inner](0.05, use_ema=True))
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    steps_of(model)


def test_masked_weights_are_zero_where_several_optimizers_share_the_variables():
    by_rank = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1, 0.9), keras.optimizers.Adam()]
    shared = keras.optimizers.MultiOptimizer(lambda variable: by_rank[len(variable.shape)])
    steps_of(network(shared))


@pytest.mark.parametrize(
    "arguments", [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}], ids=str
)
def test_masked_weights_are_zero_however_steps_are_run(arguments):
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    steps_of(network(optimizer, **arguments), begin=2)


class ByHand(keras.Model):
    """Its train step updates the weights without an optimizer."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        for variable, gradient in zip(
            self.trainable_variables, tape.gradient(loss, self.trainable_variables), strict=True
        ):
            variable.assign_sub(0.1 * gradient)
        return {"loss": loss}


class TwoOptimizers(keras.Model):
    """Its train step updates each layer by an optimizer of its own."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients[:2], variables[:2], strict=True))
        self.other.apply(gradients[2:], variables[2:])
        return {"loss": loss}


@pytest.mark.parametrize("kind", [ByHand, TwoOptimizers])
def test_masked_weights_are_zero_in_a_train_step_of_the_users_own(kind):
    model = network(kind=kind)
    model.other = keras.optimizers.SGD(0.1, momentum=0.9)
    steps_of(model)


@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 0.5}, {"clipnorm": 0.2}], ids=str)
def test_a_masked_model_trains_as_one_without_these_weights(clip):
    """The other one takes its inputs through kernels that are multiplied by the mask."""

    class Multiplied(layers.Dense):
        def call(self, x):
            return self.activation(x @ (self.kernel * self.mask) + self.bias)

    model = network(keras.optimizers.SGD(0.1, momentum=0.9, **clip))
    kernels = kernels_of(model)
    masks = random_masks(kernels)
    inputs = keras.Input((6,))
    hidden = Multiplied(8, "relu", name="hidden")
    end = Multiplied(3, "softmax", name="end")
    for layer, kernel in zip((hidden, end), kernels, strict=True):
        layer.mask = masks[kernel.path].astype("float32")
    other = keras.Model(inputs, end(hidden(inputs)))
    other.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, **clip), "sparse_categorical_crossentropy"
    )
    other.set_weights(model.get_weights())

    class Masked(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            masking = Masking(model, kernels)
            masking.install()
            masking.set(masks)

    arguments = {"batch_size": 4, "epochs": 5, "shuffle": False, "verbose": 0}
    traced_once(model).fit(X, Y, callbacks=[Masked()], **arguments)
    traced_once(other).fit(X, Y, **arguments)
    np.testing.assert_allclose(model.predict(X, verbose=0), other.predict(X, verbose=0), atol=1e-6)


def test_moving_averages_that_are_swapped_in_have_the_zeros_too():
    model = network(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.9))
    swap = keras.callbacks.SwapEMAWeights()
    steps = Steps()

    class Look(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            for kernel in steps.kernels:
                assert not kernel.variable.numpy()[~steps.masks[kernel.path]].any()

    arguments = {"validation_data": (X, Y), "epochs": 4, "batch_size": 4, "verbose": 0}
    model.fit(X, Y, callbacks=[steps, swap, Look()], **arguments)


@pytest.mark.parametrize("optimizer", ["sgd", "loss scaling", "accumulating"])
def test_what_is_watched_is_the_mean_over_the_steps(optimizer):
    made = {
        "sgd": keras.optimizers.SGD(0.0),
        "loss scaling": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0)),
        "accumulating": keras.optimizers.SGD(0.0, gradient_accumulation_steps=2),
    }
    model = network(made[optimizer])
    steps = Steps(begin=99, watch=lambda value, gradient: tf.abs(value * gradient))
    model.fit(X, Y, batch_size=4, epochs=1, shuffle=False, verbose=0, callbacks=[steps])
    wanted = {k.path: np.zeros(k.shape) for k in steps.kernels}
    for first in range(0, 16, 4):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y=Y[first : first + 4], y_pred=model(X[first : first + 4]))
        values = [k.variable.value for k in steps.kernels]
        for kernel, gradient in zip(steps.kernels, tape.gradient(loss, values), strict=True):
            wanted[kernel.path] += np.abs(kernel.variable.numpy() * gradient.numpy()) / 4
    found = steps.masking.means()
    for path, mean in wanted.items():
        np.testing.assert_allclose(found[path], mean, rtol=1e-4, atol=1e-7)
    steps.masking.forget()
    assert not any(mean.any() for mean in steps.masking.means().values())


def test_an_embedding_of_which_a_step_reads_some_rows_is_masked():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Embedding(12, 4, name="table"), layers.Flatten()]
    )
    model.compile(keras.optimizers.Adam(0.1), "mse")
    steps = Steps()
    x = RANDOM.integers(12, size=(16, 3))
    model.fit(x, np.ones((16, 12)), batch_size=4, epochs=3, verbose=0, callbacks=[steps])
    assert [k.layer for k in steps.kernels] == ["table"]
    assert steps.seen == 10


def test_a_plain_model_stays_also_where_fit_is_interrupted():
    model = network()

    class Broken(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=2, verbose=0, callbacks=[Steps(begin=1), Broken()])
    before = set(vars(model))
    model.fit(X, Y, epochs=1, verbose=0)
    assert {"train_step", "make_train_function"} <= before
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))
    assert "apply" not in vars(model.optimizer)
    assert all(k.variable.numpy().all() for k in kernels_of(model))  # all weights train again
