import keras
import numpy as np
import pytest
import tf_keras
from keras import ops

import sgdap
from sgdap.bridge.operations import _OF_KERAS
from tests.bridge.comparing import assert_same_outputs

OPERATIONS = {
    "arithmetic": lambda x: (2 * x + 1) / (x * x + 1) - (1 - x) // 2,
    "power": lambda x: (x * x + 1) ** 1.5,
    "divide": lambda x: ops.divide(x, 2.0),
    "mean": lambda x: ops.mean(x, 1),
    "max": lambda x: ops.max(x, axis=-1, keepdims=True),
    "min": lambda x: ops.min(x, axis=(1, 2)),
    "sum": lambda x: ops.sum(x, axis=[1, 2]),
    "prod": lambda x: ops.prod(x, axis=1),
    "var and std": lambda x: ops.var(x, axis=1) + ops.std(x, axis=1),
    "reshape": lambda x: ops.reshape(x, (-1, 24)),
    "transpose": lambda x: ops.transpose(x, (0, 2, 1)),
    "swapaxes": lambda x: ops.swapaxes(x, 1, -1),
    "moveaxis": lambda x: ops.moveaxis(x[..., None], (1, -1), (-1, 2)),
    "equality": lambda x: ops.cast(
        ops.any(ops.equal(x, ops.relu(x)), -1)
        | (ops.all(ops.logical_not(ops.not_equal(x, abs(x))), axis=-1) & (x[..., 0] > 0)),
        "float32",
    ),
    "slices": lambda x: x[:, 1:3, ::2],
    "an index": lambda x: x[:, 1],
    "a new axis": lambda x: x[..., None],
    "matmul": lambda x: x @ ops.transpose(x, (0, 2, 1)),
    "split": lambda x: ops.split(x, 2, -1)[0] - ops.split(x, [3, 5], -1)[0],
    "clip": lambda x: ops.clip(x, 0, 1),
    "cast": lambda x: ops.cast(ops.cast(x > 0, "int32"), "float32"),
    "two dtypes": lambda x: x * ops.cast(x > 0, "int32"),
    "softmax": lambda x: ops.softmax(x, 1) + ops.log_softmax(x),
    "gelu": lambda x: ops.gelu(x) + ops.gelu(x, False),
    "relus": lambda x: ops.relu(x) + ops.relu6(x) + ops.leaky_relu(x) + ops.elu(x) + ops.selu(x),
    "smooth": lambda x: ops.tanh(x) + ops.sigmoid(x) + ops.silu(x),
    "soft": lambda x: ops.softplus(x) + ops.log_sigmoid(2 * x),
    "hard": lambda x: ops.hard_sigmoid(x) + ops.hard_silu(x),
    "concatenate": lambda x: ops.concatenate([x, x], 1),
    "stack": lambda x: ops.stack([x, x], 1),
    "squeeze": lambda x: ops.squeeze(x[:, :1], 1),
    "expand_dims": lambda x: ops.expand_dims(x, 1),
    "flip": lambda x: ops.flip(x, 1),
    "tile": lambda x: ops.tile(x, (1, 2, 1)),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0))),
    "pad by reflection": lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0)), "reflect"),
    "where": lambda x: ops.where(x > 0, x, 0.0) + ops.where(x <= 0.5, x, 1.0),
    "where not": lambda x: ops.where(x < 0, x, 0.0) + ops.where(x >= 0.5, x, 1.0),
    "extremes": lambda x: ops.maximum(x, 0.0) + ops.minimum(x, 1.0),
    "signs": lambda x: -x + ops.sign(x) + abs(x),
    "roots": lambda x: ops.sqrt(x * x) + ops.rsqrt(ops.square(x) + 1),
    "logarithms": lambda x: ops.log(x * x + 1) + ops.log1p(x * x) + ops.exp(x) + ops.expm1(x),
    "waves": lambda x: ops.sin(x) + ops.cos(x),
    "a constant array": lambda x: x * np.arange(6, dtype="float32"),
    "convert": lambda x: ops.convert_to_tensor(x),
}


def of(function) -> keras.Model:
    x = keras.Input((4, 6))
    return keras.Model(x, function(x))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_go_over_and_come_back(name: str):
    model = of(OPERATIONS[name])
    x = np.random.default_rng(0).normal(size=(3, 4, 6)).astype("float32")
    there = sgdap.to_tf_keras(model)
    assert_same_outputs(model, there, x)
    assert_same_outputs(model, sgdap.from_tf_keras(there), x)


def test_every_operation_of_the_table_is_tried():
    tried = {type(x).__name__ for f in OPERATIONS.values() for x in of(f).operations}
    assert set(_OF_KERAS) <= tried


def test_functions_of_tensorflow_that_keras_does_not_make_come_over():
    import tensorflow as tf

    x = tf_keras.Input((4, 6))
    first, second = tf.split(x, [2, 4], axis=-1)
    y = tf.add_n([x, x]) + tf.matmul(x, x, transpose_b=True)[:, :1, :1]
    model = tf_keras.Model(x, [first, second, tf.identity(y), tf.reduce_mean(x, [1, 2])])
    values = np.random.default_rng(0).normal(size=(3, 4, 6)).astype("float32")
    assert_same_outputs(model, sgdap.from_tf_keras(model), values)


def test_a_function_without_an_equal_is_named():
    import tensorflow as tf

    x = tf_keras.Input((4, 6))
    model = tf_keras.Model(x, tf.math.bessel_i0(x))
    with pytest.raises(ValueError, match="bessel_i0 has no equal"):
        sgdap.from_tf_keras(model)
