"""Channels that a regularizer of the user's own counts stay; all others may leave."""

import keras
import pytest
from keras import layers, ops

import sgdap


@keras.saving.register_keras_serializable("test_regularizers")
class Orthogonal(keras.regularizers.Regularizer):
    """Of square matrices whose size it is told, as PointNet's."""

    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        x = ops.reshape(x, (-1, self.size, self.size))
        products = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
        return ops.sum(ops.square(products - ops.eye(self.size)))

    def get_config(self):
        return {"size": self.size}


def squares(x):
    return ops.sum(ops.square(x))


class OfMany(Orthogonal):
    """Of five channels or more."""

    def __call__(self, x):
        assert x.shape[-1] >= self.size
        return ops.sum(ops.square(x))


@pytest.mark.parametrize(
    ("arguments", "stays"),
    [
        ({"activity_regularizer": Orthogonal(3)}, "Orthogonal, a regularizer of 'made'"),
        ({"kernel_regularizer": Orthogonal(3)}, "Orthogonal, a regularizer of 'made'"),
        ({"activity_regularizer": OfMany(5)}, "OfMany, a regularizer of 'made'"),
        ({"kernel_regularizer": OfMany(5)}, "OfMany, a regularizer of 'made'"),
        ({"activity_regularizer": squares, "kernel_regularizer": squares}, None),
        ({"activity_regularizer": "l1", "bias_regularizer": "l2"}, None),
    ],
)
def test_only_what_a_regularizer_needs_stays(arguments, stays):
    inputs = keras.Input((4,))
    x = layers.Dense(9, name="made", **arguments)(inputs)
    graph = sgdap.channel_graph(keras.Model(inputs, layers.Dense(2)(x)))
    group = graph.group("made")
    assert group.prunable == (stays is None)
    assert (stays or "") in " ".join(group.reasons)


def test_the_reason_tells_what_a_regularizer_stops_with():
    inputs = keras.Input((4,))
    x = layers.Dense(9, name="made", kernel_regularizer=OfMany(5))(inputs)
    graph = sgdap.channel_graph(keras.Model(inputs, layers.Dense(2)(x)))
    (reason,) = graph.group("made").reasons
    assert "can't be computed without some of them; it stops with AssertionError" in reason
    assert reason.endswith("Let it take sizes from the shape of what it is given")
