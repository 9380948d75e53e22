"""What no rule counts is counted from TensorFlow's graph, or named; sizes by hand."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from sgdap.execution.traced_work import traced_work
from sgdap.model.tracing import trace

N = 16
CONSTANT = tf.ones((1, 6, 6))
FFT = 5 * N * math.log2(N)


class Of(layers.Layer):
    """Computes what it is told; it has a weight, so it is not looked into."""

    def __init__(self, function, shape=()):
        super().__init__()
        self.function = function
        self.w = self.add_weight(shape=shape, name="w")

    def call(self, x):
        return self.function(x, self.w)


def work_of(function, shape, weight=()):
    """What is counted for a function of a sample and a weight."""
    x = keras.Input(shape)
    (work,) = traced_work(trace(keras.Model(x, Of(function, weight)(x))), [0]).values()
    return work


@pytest.mark.parametrize(
    ("function", "shape", "weight", "flops"),
    [
        (lambda x, w: ops.matmul(x, w), (5, 8), (8, 3), 2 * 5 * 8 * 3),
        (lambda x, w: ops.matmul(x, ops.transpose(w)), (5, 8), (3, 8), 2 * 5 * 8 * 3),
        (lambda x, w: tf.matmul(x, x, transpose_a=True), (5, 8), (), 2 * 8 * 5 * 8),
        (lambda x, w: ops.einsum("...ab,bcd->...adc", x, w), (5, 8), (8, 3, 2), 2 * 5 * 8 * 6),
        (lambda x, w: tf.einsum("...ab,bc->...ac", x, w), (7, 5, 8), (8, 3), 2 * 7 * 5 * 8 * 3),
        (lambda x, w: ops.tensordot(x, w, [[1, 2], [0, 1]]), (5, 8), (5, 8, 3), 2 * 40 * 3),
        (lambda x, w: ops.conv(x, w, padding="same"), (4, 4, 3), (3, 3, 3, 5), 2 * 80 * 27),
        (lambda x, w: ops.conv(x, w, 2), (9, 3), (3, 3, 5), 2 * 4 * 5 * 9),
        (lambda x, w: ops.conv(x, w), (4, 4, 4, 2), (2, 2, 2, 2, 5), 2 * 27 * 5 * 16),
        (lambda x, w: ops.depthwise_conv(x, w), (6, 6, 3), (3, 3, 3, 2), 2 * 16 * 6 * 9),
        (
            lambda x, w: ops.separable_conv(x, w, ops.ones((1, 1, 3, 5))),
            (6, 6, 3),
            (3, 3, 3, 1),
            2 * 16 * 3 * 9 + 2 * 16 * 3 * 5,
        ),
        (lambda x, w: ops.conv_transpose(x, w, 2), (4, 4, 3), (2, 2, 5, 3), 2 * 16 * 3 * 4 * 5),
        (lambda x, w: ops.fft((x, x))[0], (3, N), (), 3 * FFT),
        (lambda x, w: ops.ifft2((x, x))[0], (N, N), (), 2 * N * FFT),
        (lambda x, w: ops.rfft(x)[0], (3, N), (), 3 * FFT / 2),
        (lambda x, w: ops.irfft(ops.rfft(x)), (3, N), (), 3 * FFT),
        (lambda x, w: ops.dot(x, w), (5, 8), (8, 3), 2 * 5 * 8 * 3),
        (lambda x, w: ops.cholesky(x), (3, 6, 6), (), 3 * 6**3 / 3),
        (lambda x, w: ops.inv(x), (3, 6, 6), (), 3 * 2 * 6**3),
        (lambda x, w: ops.solve(x, x), (6, 6), (), 2 / 3 * 6**3 + 2 * 6**3),
        (lambda x, w: tf.complex(x, x) @ tf.complex(x, x), (5, 5), (), 4 * 2 * 5**3),
        (lambda x, w: tf.function(lambda a: a @ w)(x), (5, 8), (8, 3), 2 * 5 * 8 * 3),
        (
            lambda x, w: tf.while_loop(
                lambda y: True, lambda y: (y @ w,), (x,), maximum_iterations=7
            )[0],
            (5, 8),
            (8, 8),
            7 * 2 * 5 * 64,
        ),
        (lambda x, w: ops.softmax(ops.relu(x * w) + ops.max(x, -1, keepdims=True)), (5,), (5,), 0),
        (lambda x, w: ops.take(w, ops.cast(x, "int32"), 0), (5,), (20, 8), 0),
    ],
)
def test_operators_are_counted_as_by_hand(function, shape, weight, flops):
    work = work_of(function, shape, weight)
    assert not work.uncounted
    assert work.flops == pytest.approx(flops)


@pytest.mark.parametrize(
    ("function", "flops", "reason"),
    [
        (lambda x, w: ops.svd(x)[1], 0, "no count for Svd"),
        (lambda x, w: tf.ensure_shape(tf.numpy_function(np.sort, [x], x.dtype), x.shape), 0, "Py"),
        (
            lambda x, w: tf.cond(tf.reduce_sum(x) > 0, lambda: x @ x, lambda: x),
            2 * 6**3,
            "StatelessIf runs a number of times that is not known",
        ),
        (
            lambda x, w: tf.while_loop(lambda y: tf.norm(y) > 1, lambda y: y @ x, [x])[0],
            2 * 6**3,
            "StatelessWhile runs a number of times that is not known",
        ),
        (lambda x, w: x if keras.ops.convert_to_numpy(x).any() else x, 0, "it can't be traced"),
        (lambda x, w: CONSTANT, 0, ""),
    ],
)
def test_what_cannot_be_counted_is_named(function, flops, reason):
    x = keras.Input((6, 6))
    own = Of(lambda x, w: x)
    model = keras.Model(x, own(x))
    own.function = function
    (work,) = traced_work(trace(model), [0]).values()
    assert work.flops == flops
    assert reason in "; ".join(work.uncounted)


class Cell(layers.Layer):
    """A recurrent cell of the user's."""

    state_size = output_size = 3

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1] + 3, 3))

    def call(self, x, states):
        state = ops.tanh(ops.matmul(ops.concatenate([x, states[0]], -1), self.kernel))
        return state, [state]


def test_a_recurrent_layer_counts_its_cell_at_every_step():
    x = keras.Input((7, 5))
    model = keras.Model(x, layers.RNN(Cell())(x))
    (work,) = traced_work(trace(model), [0]).values()
    assert not work.uncounted
    assert work.flops == 7 * 2 * (5 + 3) * 3


def test_counting_leaves_nothing_on_the_layers():
    def counted(x, w):
        own.calls.assign_add(1.0)
        own.add_loss(ops.sum(x))
        return x + own.noise(x)

    x = keras.Input((6,))
    own = Of(lambda x, w: x)
    own.calls = own.add_weight(name="calls", initializer="zeros", trainable=False)
    own.noise = layers.GaussianNoise(1.0, seed=0)
    own.noise.build((None, 6))
    model = keras.Model(x, own(x))
    own.function = counted
    before = [v.numpy() for v in model.variables]
    traced_work(trace(model), [0])
    assert not own.losses
    assert all(map(np.array_equal, before, [v.numpy() for v in model.variables]))
