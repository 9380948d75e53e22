"""Tensors that a full-integer runtime stores are those that no operator takes for itself."""

import keras
import pytest
from keras import layers, ops

from sgdap.model.tracing import trace
from sgdap.quantization.activations import stored_tensors


def names_of(make, shape=(8, 8, 3)):
    inputs = keras.Input(shape)
    program = trace(keras.Model(inputs, make(inputs)))
    return [own.name for own in stored_tensors(program).own][1:]


def conv(name, activation=None):
    return layers.Conv2D(4, 3, padding="same", activation=activation, name=name)


def normalised(x):
    x = layers.BatchNormalization(name="bn")(conv("conv")(x))
    return layers.ReLU(max_value=6, name="relu")(layers.Dropout(0.1)(x))


def residual(x):
    x = conv("first", "relu")(x)
    y = layers.BatchNormalization(name="bn")(conv("second")(x))
    return ops.relu(layers.Add(name="sum")([x, y]))


def gated(x):
    x = conv("conv", "silu")(x)
    return x * layers.Dense(4, "sigmoid", name="gate")(layers.GlobalAveragePooling2D(name="m")(x))


def pooled_before_relu(x):
    return layers.Flatten()(layers.ReLU()(layers.MaxPooling2D()(conv("conv")(x))))


def read_twice(x):
    x = conv("conv")(x)
    return layers.Concatenate(name="both")([x, layers.ReLU(name="relu")(x)])


def parts(x):
    x, y = layers.Lambda(lambda z: ops.split(z, 2, -1), name="half")(conv("conv")(x))
    return layers.Subtract(name="apart")([x, y])


def head(x):
    x = layers.Dense(4, name="end")(layers.GlobalMaxPooling2D()(conv("conv")(x)))
    return layers.Activation("linear")(layers.Softmax()(x))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (normalised, ["relu"]),
        (residual, ["first", "bn", "relu"]),
        (gated, ["conv.linear", "conv", "m", "gate.linear", "gate", "multiply"]),
        (pooled_before_relu, ["conv"]),
        (read_twice, ["conv", "relu", "both"]),
        (parts, ["conv", "half[0]", "half[1]", "apart"]),
        (head, ["conv", "end"]),
    ],
)
def test_a_tensor_has_a_range_unless_the_next_operator_takes_it(make, names):
    keras.backend.clear_session()
    assert names_of(make) == names


def test_gates_have_the_range_that_the_runtime_fixes_and_outputs_none():
    inputs = keras.Input((3,))
    gate = layers.Dense(3, "sigmoid", name="gate")(inputs)
    outputs = layers.Dense(1, "sigmoid", name="end")(layers.Multiply(name="times")([inputs, gate]))
    own = stored_tensors(trace(keras.Model(inputs, outputs))).own
    fixed = {stored.name: stored.fixed for stored in own}
    assert fixed == {
        **{name: None for name in ("inputs[0]", "gate.linear", "times", "end.linear")},
        "gate": (0.0, 255 / 256),
    }
