"""Work is counted on the sizes of the data, where a model leaves sizes open."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import sgdap
from sgdap.channels.counting import counted_on
from sgdap.planning.cost import cost_model
from sgdap.planning.work import work_by_layer
from tests.models import randomise
from tests.oracles import random_removal


def images(size):
    """Its convolutions grow with the image, its dense layers do not."""
    x = inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="conv")(x)
    x = layers.Conv2DTranspose(5, 2, strides=2, activation="relu", name="up")(x)
    x = layers.SeparableConv2D(4, 3, activation="relu", name="separable")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(2, name="end")(x))


def sequences(size):
    """Attention grows with the square of the length."""
    x = inputs = keras.Input((size, 8))
    x = layers.Dense(6, activation="relu", name="hidden")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    scores = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
    x = layers.LSTM(5, name="lstm")(ops.matmul(scores, x))
    return keras.Model(inputs, layers.Dense(2, name="end")(x))


class Folding(keras.Model):
    """Computes with sizes of its input, and has work that no rule states."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(6, activation="relu", name="hidden")
        self.end = layers.Dense(2, name="end")

    def build(self, shape):
        self.hidden.build(shape)
        self.end.build((None, None, 9))
        self.built = True

    def call(self, x):
        x = self.hidden(x)
        length = ops.shape(x)[1]
        x = x + ops.cast(ops.arange(length), "float32")[:, None]
        x = ops.cholesky(ops.matmul(x, ops.transpose(x, (0, 2, 1))) + 9 * ops.eye(9))
        return self.end(ops.mean(ops.reshape(x, (-1, length, 9)), 1))


def nested(size):
    inner = keras.Sequential(
        [keras.Input((None, 8)), layers.Dense(6, "relu", name="hidden"), layers.Dense(4)],
        name="inner",
    )
    inputs = keras.Input((size, 8))
    return keras.Model(inputs, layers.Dense(2, name="end")(inner(inputs)))


KINDS = [(images, (12, 12, 3)), (sequences, (7, 8)), (nested, (7, 8))]


@pytest.mark.parametrize(("make", "shape"), KINDS)
def test_work_on_given_sizes_is_that_of_the_model_built_with_them(make, shape):
    open_graph = sgdap.channel_graph(randomise(make(None)))
    closed = sgdap.channel_graph(make(shape[0]))
    counted = counted_on(open_graph, [(1, *shape)])
    assert open_graph.open_inputs and not counted.open_inputs
    assert list(work_by_layer(counted).values()) == list(work_by_layer(closed).values())
    kept = random_removal(closed, 1)
    first, second = cost_model(counted), cost_model(closed)
    assert (first.cost(first.lengths(kept)) == second.cost(second.lengths(kept))).all()


@pytest.mark.parametrize(("make", "shape"), KINDS)
def test_the_model_and_its_channels_stay_as_they_are(make, shape):
    model = make(None)
    graph = sgdap.channel_graph(model)
    counted = counted_on(graph, [(1, *shape)])
    assert model.input_shape == (None, *(None,) * (len(shape) - 1), shape[-1])
    assert counted.program is graph.program and counted.axes is graph.axes
    assert counted_on(counted, [(4, *shape)]) is counted


def test_work_in_code_of_ones_own_is_counted_on_the_sizes_too():
    graphs = []
    for length in (None, 9):
        model = Folding()
        model.build((None, length, 8))
        graphs.append(sgdap.channel_graph(model))
    counted = counted_on(graphs[0], [(1, 9, 8)])
    assert sum(work_by_layer(counted).values()) == sum(work_by_layer(graphs[1]).values())
    assert sum(work_by_layer(counted).values()) > 9**3 / 3  # the decomposition's


def test_a_model_that_computes_otherwise_on_these_sizes_keeps_them_open():
    class Deciding(layers.Layer):
        def __init__(self):
            super().__init__(name="deciding")
            self.short, self.long = layers.Dense(4, name="s"), layers.Dense(4, name="l")

        def build(self, shape):
            self.short.build(shape)
            self.long.build(shape)

        def call(self, x):
            return self.short(x) if x.shape[1] == 5 else self.long(x)

        def compute_output_shape(self, shape):
            return (*shape[:-1], 4)

    inputs = keras.Input((None, 8))
    graph = sgdap.channel_graph(keras.Model(inputs, Deciding()(inputs)))
    assert counted_on(graph, [(1, 5, 8)]) is graph
    assert not counted_on(graph, [(1, 6, 8)]).open_inputs


def test_sizes_that_the_model_can_not_take_are_left_open():
    inputs = keras.Input((None, 8))
    graph = sgdap.channel_graph(keras.Model(inputs, layers.Conv1D(4, 5)(inputs)))
    assert counted_on(graph, [(1, 3, 8)]) is graph


def test_a_fixed_batch_stays():
    graph = sgdap.channel_graph(
        keras.Sequential([keras.Input((None, 8), batch_size=4), layers.Dense(3)])
    )
    assert counted_on(graph, [(1, 5, 8)]).counted_shapes == ((4, 5, 8),)


def test_a_plan_and_a_run_cost_what_those_of_the_closed_model_do(capsys):
    x = np.random.default_rng(0).normal(size=(40, 12, 12, 3)).astype("float32")
    y = np.random.default_rng(1).normal(size=(40, 2))
    found = []
    for size in (None, 12):
        model = randomise(images(size))
        model.compile("sgd", "mse")
        plan = sgdap.plan(model, x, sgdap.Budget(flops=0.5), samples=40)
        callback = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), schedule="one_shot")
        logs = model.fit(x, y, epochs=2, verbose=0, callbacks=[callback]).history
        assert "of the FLOPs" in capsys.readouterr().out
        assert model.input_shape == (None, size, size, 3)
        summary = callback.summary.flops
        found.append((plan.flops, plan.widths, "FLOPs: " in str(plan), logs["flops"], summary))
    assert found[0] == found[1]
    assert found[0][0][1] <= 0.5 * found[0][0][0]
