"""What belongs to one sample is told by what grows with the batch."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import sgdap
from sgdap.model.sample_sizes import sizes_of_a_sample
from sgdap.model.tracing import trace
from sgdap.planning.work import work_by_layer


def flops(model: keras.Model) -> float:
    return sum(work_by_layer(sgdap.channel_graph(model)).values())


@pytest.mark.parametrize(
    ("moved", "sizes"),
    [
        (lambda x: ops.reshape(x, (-1, 8)), (5, 8)),
        (lambda x: ops.reshape(ops.reshape(x, (-1, 8)), (-1, 5, 8)), (1, 5, 8)),
        (lambda x: ops.transpose(x, (1, 0, 2)), (5, 1, 8)),
        (lambda x: ops.concatenate([x, x * 2], 0), (2, 5, 8)),
        (lambda x: ops.repeat(x, 3, 0), (3, 5, 8)),
        (lambda x: ops.expand_dims(x, 0), (1, 1, 5, 8)),
        (lambda x: ops.transpose(ops.reshape(x, (-1, 8))), (8, 5)),
        (lambda x: layers.Lambda(lambda x: ops.reshape(x, (-1, 4)))(x), (10, 4)),
        (lambda x: layers.Reshape((-1, 4))(x), (1, 10, 4)),
    ],
)
@pytest.mark.parametrize("batch", [None, 4])
def test_rows_of_a_sample_are_counted_wherever_they_lie(moved, sizes, batch):
    x = keras.Input((5, 8), batch_size=batch)
    program = trace(keras.Model(x, moved(x)))
    (end,) = program.outputs
    found = sizes_of_a_sample(program)[end.index]
    assert np.prod(found) == np.prod(sizes)
    assert batch or found == sizes


def test_sizes_that_are_left_open_count_as_1():
    x = keras.Input((None, 8))
    program = trace(keras.Model(x, ops.concatenate([x[:, 1:], x], 1)))
    assert sizes_of_a_sample(program)[program.outputs[0].index] == (1, 1, 8)


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("by_layer", [True, False])
def test_a_layer_on_a_batch_with_other_axes_folded_in_counts_each_row(batch, by_layer):
    kernel = np.ones((8, 16), "float32")
    inputs = keras.Input((5, 8), batch_size=batch)
    rows = ops.reshape(inputs, (-1, 8))
    y = layers.Dense(16)(rows) if by_layer else ops.matmul(rows, kernel)
    y = layers.Dense(2)(ops.reshape(y, (-1, 80)))
    assert flops(keras.Model(inputs, y)) == 2 * 5 * 8 * 16 + 2 * 80 * 2 == 1600


class Kernel(layers.Layer):
    """A layer without a rule."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 16))

    def call(self, x):
        return ops.matmul(x, self.kernel)


@pytest.mark.parametrize("batch", [None, 4])
def test_a_layer_without_a_rule_counts_each_row(batch):
    inputs = keras.Input((5, 8), batch_size=batch)
    y = ops.reshape(Kernel()(ops.reshape(inputs, (-1, 8))), (-1, 5, 16))
    assert flops(keras.Model(inputs, y)) == 2 * 5 * 8 * 16


def test_images_of_a_sequence_folded_into_the_batch_count_each():
    inputs = keras.Input((3, 6, 6, 2))
    x = layers.Conv2D(4, 3)(ops.reshape(inputs, (-1, 6, 6, 2)))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.LSTM(5)(ops.reshape(x, (-1, 3, 4)))
    expected = 3 * 2 * 16 * 9 * 2 * 4 + 3 * 2 * (4 + 5) * 20
    assert flops(keras.Model(inputs, x)) == expected


def test_steps_before_the_batch_count():
    inputs = keras.Input((5, 8))
    y = layers.Dense(3)(ops.transpose(inputs, (1, 0, 2)))
    assert flops(keras.Model(inputs, ops.transpose(y, (1, 0, 2)))) == 2 * 5 * 8 * 3


def test_heads_folded_into_the_batch_count_in_products():
    inputs = keras.Input((5, 8))
    heads = ops.reshape(ops.transpose(ops.reshape(inputs, (-1, 5, 2, 4)), (0, 2, 1, 3)), (-1, 5, 4))
    scores = ops.matmul(heads, ops.transpose(heads, (0, 2, 1)))
    y = ops.reshape(ops.einsum("nqk,nkd->nqd", scores, heads), (-1, 2, 5, 4))
    assert flops(keras.Model(inputs, y)) == 2 * (2 * 5 * 5 * 4) + 2 * (2 * 5 * 4 * 5)
