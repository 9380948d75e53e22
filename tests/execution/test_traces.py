"""What runs a model over data leaves no trace in it, and runs it as `predict` does."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.model.tracing import trace
from sgdap.surgery.apply import copy_model
from sgdap.training.xla import choose_jit_compile
from tests.interruption import interrupt
from tests.models import randomise, samples

HALF = sgdap.Budget(flops=0.5)


@keras.saving.register_keras_serializable("sgdap_traces")
class Counting(layers.Layer):
    """Counts its calls, follows the mean of what it passes, draws, measures and has a loss."""

    def build(self, input_shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.average = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.seeds = keras.random.SeedGenerator(3)
        self.metric = keras.metrics.Mean()

    def call(self, x):
        mean = keras.ops.mean(x)
        self.calls.assign_add(1.0)
        self.average.assign(0.9 * self.average + 0.1 * mean)
        self.metric.update_state(mean)
        self.add_loss(mean)
        return x + 0.0 * keras.random.normal((1,), seed=self.seeds)


def writing() -> keras.Model:
    """A network of which four layers write variables when it is called."""
    i = keras.Input(batch_shape=(8, 6, 5))
    x = layers.Dense(12, name="first")(i)
    x = layers.BatchNormalization()(x, training=True)
    x = Counting()(layers.Dense(10, "relu", name="second")(x))
    x = layers.LSTM(6, stateful=True, return_sequences=True)(x)
    return randomise(keras.Model(i, layers.Dense(3, name="end")(x)))


def state(model: keras.Model) -> list[np.ndarray]:
    found = [*model.variables, *model.layers[-2].states, *model.metrics_variables]
    return [variable.numpy() for variable in found]


def assert_same_to_the_bit(model: keras.Model, before: list[np.ndarray]) -> None:
    after = state(model)
    assert [x.tobytes() for x in after] == [x.tobytes() for x in before]
    for loss in model.losses:
        np.asarray(loss)  # a tensor of a graph that is gone has no value


LOOKS = {
    "plan": lambda model, x: sgdap.plan(model, x, HALF),
    "without refit": lambda model, x: sgdap.plan(model, x, HALF, reconstruction=False),
    "statistics": lambda model, x: sgdap.collect_statistics(sgdap.channel_graph(model), x),
    "inspect": lambda model, x: str(sgdap.inspect(model)),
    "profile": lambda model, x: sgdap.profile(model, batch_size=8),
    "xla": lambda model, x: choose_jit_compile(trace(model), x, 1, 1, batch_size=8),
    "functional": lambda model, x: sgdap.functional(model),
    "copy": lambda model, x: copy_model(model),
}


@pytest.mark.compiled
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_looking_at_a_model_leaves_no_trace_in_any_variable(look):
    model = writing()
    before = state(model)
    look(model, samples(model, 32))
    assert_same_to_the_bit(model, before)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_calibration_that_is_interrupted_leaves_no_trace(share):
    """Also where functions run eagerly, each line of a layer by itself."""
    model = writing()
    x = samples(model, 16)
    before = state(model)

    def look():
        sgdap.collect_statistics(sgdap.channel_graph(model), x)

    lines = len(interrupt(look, None))
    interrupt(look, int(share * lines))
    assert_same_to_the_bit(model, before)


@pytest.mark.compiled
def test_a_plan_of_a_model_that_writes_variables_is_accepted():
    model = writing()
    plan = sgdap.plan(model, samples(model, 32), HALF)
    assert plan.weights
    slim = sgdap.apply(model, plan)
    assert slim.count_params() < model.count_params()


def test_a_program_runs_as_predict_does():
    """Keras' `predict` hands `training=False` on, also to calls that were given another."""
    inside = keras.Sequential([keras.Input((5,)), layers.BatchNormalization()])
    i = keras.Input((5,))
    x = layers.BatchNormalization()(i, training=True)
    model = randomise(keras.Model(i, inside(x, training=True)))
    data = samples(model, 16)
    program = trace(model)
    (made,) = program.run_flat(program.flat_inputs(data))
    np.testing.assert_allclose(made, model.predict(data, verbose=0), atol=1e-6)


def test_a_call_of_ones_own_says_itself_whether_it_trains():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNormalization()

        def call(self, x):
            return self.norm(x, training=True)

    model = Own()
    data = np.random.default_rng(0).normal(3, 2, (16, 5)).astype("float32")
    model(data)
    program = trace(model)
    (made,) = program.run_flat(program.flat_inputs(data))
    np.testing.assert_allclose(made, model.predict(data, batch_size=16, verbose=0), atol=1e-6)


@pytest.mark.compiled
def test_the_refit_of_a_model_that_normalises_by_batches_helps_predict():
    """As pix2pix calls its normalisation: `training=True`, whatever the model is called with."""
    i = x = keras.Input((12, 12, 3))
    for width in (16, 24, 16):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x, training=True))
    model = keras.Model(i, layers.Conv2D(3, 1)(x))
    data = samples(model, 96)
    model(3 * data + 1)  # what it follows are no longer the means of any batch
    wanted = model.predict(data, verbose=0)
    errors = []
    for reconstruction in (False, True):
        plan = sgdap.plan(model, data, HALF, reconstruction=reconstruction)
        slim = sgdap.apply(model, plan)
        errors.append(np.mean((slim.predict(data, verbose=0) - wanted) ** 2) / wanted.var())
    assert errors[1] < errors[0]
