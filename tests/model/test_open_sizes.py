"""Sizes that a `call` takes from its tensors while they are not known."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import sgdap
from tests.models import outputs, randomise


def causal(x):
    batch, length, _ = ops.shape(x)
    numbers = ops.arange(length)
    before = ops.expand_dims(ops.expand_dims(numbers, 1) >= numbers, 0)
    before = ops.broadcast_to(before, (batch, length, length))
    return ops.matmul(ops.cast(before, "float32"), x)


def numbered(x):
    numbers = ops.arange(0, ops.shape(x)[1], dtype="float32")
    return x + ops.reshape(numbers, (1, -1, 1))


def filled(x):
    batch, length, _ = ops.shape(x)
    return x * ops.full((batch, length, 1), 2.0) + ops.ones((batch, 1, 1)) - ops.zeros((length, 1))


def repeated(x):
    batch, length, _ = ops.shape(x)
    one = ops.repeat(ops.ones((1, 1, 1)), length, axis=1)
    return x + one * ops.tile(ops.full((1, 1, 1), 3.0), (batch, 1, 1))


def split_and_merged(x):
    batch, length, width = ops.shape(x)
    heads = ops.reshape(x, (batch, length, 2, width // 2))
    return ops.reshape(ops.tanh(heads), (batch, length, -1))


class Behind(keras.Model):
    """A hidden layer, and what a function makes of it."""

    def __init__(self, function):
        super().__init__()
        self.hidden, self.end = layers.Dense(6, name="hidden"), layers.Dense(2, name="end")
        self.function = function

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.end.build((*input_shape[:-1], 6))
        self.built = True

    def get_build_config(self):
        return {"input_shape": (None, None, 3)}

    def call(self, x):
        return self.end(self.function(self.hidden(x)))


@pytest.mark.parametrize("function", [causal, numbered, filled, repeated, split_and_merged])
def test_a_functional_copy_is_as_free_in_its_sizes_as_the_model(function, tmp_path):
    model = Behind(function)
    model.build((None, None, 3))
    copy = sgdap.functional(randomise(model))
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    for shape in ((2, 5, 3), (3, 4, 3), (1, 1, 3)):
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        expected = model(x, training=False)
        for other in (copy, loaded):
            np.testing.assert_allclose(other(x, training=False), expected, atol=1e-5)


@pytest.mark.parametrize("function", [causal, numbered, filled, repeated, split_and_merged])
def test_channels_behind_such_sizes_are_removable(function):
    model = Behind(function)
    model.build((None, None, 3))
    assert sgdap.channel_graph(randomise(model)).group("hidden").prunable


@pytest.mark.parametrize("function", [causal, numbered, filled, repeated])
def test_the_tensor_that_has_the_size_keeps_no_channel(function):
    model = Behind(function)
    model.build((None, None, 3))
    assert sgdap.channel_graph(model).group("hidden").removable.all()


def test_a_number_counted_from_a_computed_size_is_refused():
    model = Behind(lambda x: x + ops.sum(ops.arange(ops.shape(x)[1] * 2)))
    model.build((None, None, 3))
    with pytest.raises(ValueError, match=r"is computed from another one.*Or build the model with"):
        sgdap.channel_graph(model)


class Projecting(layers.Layer):
    """Projects to heads with a layer that does not know how long a sequence is."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.heads = layers.EinsumDense("abc,cde->abde", (None, 2, 3), name="heads")
        self.merged = layers.EinsumDense("abde,dec->abc", (None, 4), name="merged")

    def build(self, shape):
        self.heads.build((None, None, shape[-1]))
        self.merged.build((None, None, 2, 3))
        self.built = True

    def call(self, x):
        return self.merged(self.heads(x))


def test_work_of_projections_counts_the_positions_that_are_known():
    inputs = keras.Input((5, 4))
    model = sgdap.functional(keras.Model(inputs, Projecting(name="p")(inputs)))
    graph = sgdap.channel_graph(model)
    work = {w.path: w.factor * np.prod([len(axis) for axis in w.axes]) for w in graph.work}
    assert list(work.values()) == [2 * 5 * 4 * 6] * 2


class Several(layers.Layer):
    """Returns a constant beside what it computes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(6, name="inner")

    def build(self, shape):
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        return ops.relu(self.inner(x)), ops.ones((2,))


def test_constants_that_a_call_returns_are_passed_on():
    inputs = keras.Input((4,))
    y, constant = Several(name="several")(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(2)(y * constant[0])))
    assert not sgdap.channel_graph(model).kept
    x = np.ones((3, 4), "float32")
    np.testing.assert_allclose(outputs(sgdap.functional(model), x), outputs(model, x), atol=1e-6)


class Masked(layers.Layer):
    """Attends to what is before, where another input does not hide it; knows no lengths."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 3, name="attention")

    def build(self, x_shape, hidden_shape):
        self.attention.build(x_shape, x_shape)
        self.built = True

    def call(self, x, hidden):
        batch, length, _ = ops.shape(x)
        numbers = ops.arange(length)
        before = ops.broadcast_to(numbers[None, :, None] >= numbers, (batch, length, length))
        return x + self.attention(x, x, attention_mask=ops.logical_and(before, hidden[:, None]))


def test_lengths_of_two_inputs_that_meet_are_one():
    x, hidden = keras.Input((None, 6)), keras.Input((None,), dtype="bool")
    y = Masked(name="second")(Masked(name="first")(layers.Dense(6)(x), hidden), hidden)
    model = randomise(keras.Model([x, hidden], layers.Dense(2)(y)))
    assert not sgdap.channel_graph(model).kept
    copy = sgdap.functional(model)
    random = np.random.default_rng(0)
    for length in (3, 5):
        given = [random.normal(size=(2, length, 6)).astype("float32"), np.ones((2, length), bool)]
        np.testing.assert_allclose(outputs(copy, given), outputs(model, given), atol=1e-5)
