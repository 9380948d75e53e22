"""Units are found from what calls compute, not from names."""

import keras
import pytest
from keras import layers, ops

import sgdap
from sgdap.depth import removable_units
from tests.depth.models import chain, recurrent, residual, transformer


def units_of(model):
    graph = sgdap.channel_graph(model)
    return {unit.name: unit.kind for unit in removable_units(graph)}


def test_branches_and_projections_of_residual_sums():
    assert units_of(residual()) == {
        "a1": "linear",
        "a1 … a2": "branch",
        "b1 … b2": "branch",
        "b2": "block",
        "projection": "branch",
    }


def test_sub_blocks_of_a_transformer():
    found = units_of(transformer())
    assert found["attention0"] == found["up1 … down1"] == "branch"
    assert found["up0"] == "linear"


def test_layers_that_kernels_alone_read():
    assert units_of(chain()) == {"wide": "linear", "narrow": "linear", "same": "linear"}
    assert units_of(recurrent()) == {"first": "linear", "second": "linear"}


class Sum(layers.Layer):
    def call(self, first, second):
        return first + second


@pytest.mark.parametrize(
    ("merge", "leave"),
    [
        (lambda a, b: ops.add(a, b), ["first", "second"]),
        (lambda a, b: Sum()(a, b), ["first", "second"]),
        (lambda a, b: a - b, ["second"]),
        (lambda a, b: a + 0.5 * b, ["first", "second"]),
        (lambda a, b: ops.maximum(a, b), []),
        (lambda a, b: a * b, []),
        (lambda a, b: layers.Average()([a, b]), []),
    ],
)
def test_sums_are_found_by_trying(merge, leave):
    inputs = keras.Input((4,))
    first = layers.Dense(3, "relu", name="first")(inputs)
    second = layers.Dense(3, "relu", name="second")(inputs)
    made = layers.Activation("relu")(merge(first, second))
    model = keras.Model(inputs, layers.Dense(2, name="end")(made))
    found = [name for name, kind in units_of(model).items() if kind == "branch"]
    assert sorted(found) == leave


def test_what_is_read_elsewhere_is_no_unit():
    inputs = keras.Input((4,))
    x = layers.Dense(4, "relu", name="first")(inputs)
    model = keras.Model(inputs, [layers.Dense(2)(x), x])
    assert units_of(model) == {}


def test_layers_without_a_kernel_are_no_unit():
    inputs = keras.Input((4,))
    x = inputs + layers.Activation("relu")(inputs)
    assert units_of(keras.Model(inputs, layers.Dense(2)(x))) == {}


def test_a_shared_layer_that_is_needed_elsewhere_stays():
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    x = layers.Activation("relu")(inputs + shared(inputs))
    x = layers.Activation("relu")(x + shared(x))
    found = units_of(keras.Model(inputs, layers.Dense(2)(x)))
    assert "shared" not in found


class Trained(keras.Model):
    """Trains by code of its own, which calls a layer by itself."""

    def train_step(self, data):
        self.get_layer("apart")(data[0])
        self.inner(data[0])
        return super().train_step(data)


def test_what_training_code_calls_is_no_unit():
    inputs = keras.Input((4,))
    inner = layers.Dense(4, name="apart")
    x = layers.Activation("relu")(inputs + inner(inputs))
    model = Trained(inputs, layers.Dense(2)(x))
    model.inner = inner
    assert units_of(model) == {}


def test_open_sizes():
    x = inputs = keras.Input((None, 6))
    x = layers.Add()([x, layers.Dense(6, name="branch")(layers.Activation("relu")(x))])
    found = units_of(keras.Model(inputs, layers.GlobalAveragePooling1D()(x)))
    assert found == {"branch": "branch"}
