"""Whatever a rule says: what does not compute the same with fewer channels keeps them."""

import random
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import sgdap
from sgdap.channels import rehearsal
from sgdap.surgery import prune_in_place
from tests.models import outputs, randomise, samples


def around(layer, width: int = 6, **arguments) -> keras.Model:
    """A model with a layer, or a function of a tensor, between two dense ones."""
    inputs = keras.Input((4,))
    x = layer(layers.Dense(width, name="first", **arguments)(inputs))
    return randomise(keras.Model(inputs, layers.Dense(2, name="end")(x)))


class Factors(layers.Layer):
    """Multiplies every channel with a factor of its own."""

    def build(self, shape):
        self.factors = self.add_weight(shape=(shape[-1],), name="factors")

    def call(self, x):
        return x * self.factors


class Centred(Factors):
    """Takes the mean of all channels from each first."""

    def call(self, x):
        return super().call(x - ops.mean(x, -1, keepdims=True))


class Flipped(Factors):
    """The first channel's factor is the last one."""

    def call(self, x):
        return x * ops.flip(self.factors)


class Turned(Factors):
    """Hands its channels on in another order."""

    def call(self, x):
        return ops.flip(super().call(x), -1)


class FromTheFirst(Factors):
    """Takes the first channel from each."""

    def call(self, x):
        return super().call(x) - x[..., :1]


class Summed(Factors):
    """Adds all factors to each channel."""

    def call(self, x):
        return x + ops.sum(self.factors)


class OfOneWidth(Factors):
    """Counts its channels as they were when it was made."""

    def __init__(self, width=6, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def call(self, x):
        return super().call(x) * (self.width / x.shape[-1])

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class Drawing(Factors):
    """Draws random numbers in inference."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return super().call(x) + keras.random.normal(ops.shape(x), seed=self.seed_generator)


def follows(layer, call):
    call.weight(layer.factors, call.input.axes[-1])
    return call.input


WRONG = {
    Centred: "computes something else without some of them",
    Flipped: "computes something else without some of them",
    Turned: "computes something else without some of them",
    FromTheFirst: "computes something else without some of them",
    Summed: "computes something else without some of them",
    OfOneWidth: "computes something else without some of them",
    Drawing: "draws random numbers in inference",
}


@pytest.mark.parametrize("layer_class", WRONG)
def test_a_wrong_rule_breaks_no_model_its_channels_stay_with_the_reason(layer_class):
    sgdap.register_rule(layer_class)(follows)
    model = around(layer_class(name="own"))
    group = sgdap.channel_graph(model).group("first")
    assert not group.prunable
    (reason,) = group.reasons
    assert f"'own' (of class {layer_class.__name__}) {WRONG[layer_class]}" in reason


def test_a_right_rule_is_believed():
    sgdap.register_rule(Factors)(follows)
    assert sgdap.channel_graph(around(Factors())).group("first").removable.all()


def test_a_rule_registered_again_is_tried_again():
    class Own(Flipped):
        def call(self, x):
            return super().call(x)

    model = around(Own())
    sgdap.register_rule(Own)(follows)
    assert not sgdap.channel_graph(model).group("first").prunable

    @sgdap.register_rule(Own)
    def flipped(layer, call):
        call.weight(layer.factors, call.input.axes[-1][::-1])
        return call.input

    assert sgdap.channel_graph(model).group("first").removable.all()


def test_a_wrong_rule_keeps_only_what_fails():
    class Product(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 6), name="kernel")

        def call(self, x):
            y = x @ self.kernel
            return y - y[..., :1]

    @sgdap.register_rule(Product)
    def product(layer, call):
        made = call.new_channels(6)
        call.weight(layer.kernel, call.along(call.input, -1), made)
        return call.output().with_axis(-1, made)

    graph = sgdap.channel_graph(around(Product(name="own")))
    assert graph.group("first").prunable
    assert not graph.group("own").prunable


class InSixteens(Factors):
    """Takes a multiple of sixteen channels."""

    def build(self, shape):
        assert shape[-1] % 16 == 0
        super().build(shape)


def test_a_layer_that_takes_no_small_widths_is_tried_at_its_own():
    sgdap.register_rule(InSixteens)(follows)
    assert sgdap.channel_graph(around(InSixteens(), 32)).group("first").removable.all()


class Wide(Factors):
    """Does otherwise for many channels."""

    def call(self, x):
        return super().call(x) * (2 if x.shape[-1] > 20 else 1)


def test_a_layer_that_does_otherwise_for_many_channels_keeps_them():
    sgdap.register_rule(Wide)(follows)
    assert sgdap.channel_graph(around(Wide(), 16)).group("first").removable.all()
    assert not sgdap.channel_graph(around(Wide(), 32)).group("first").prunable


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x[..., :1],
        lambda x: x - x[..., -1:],
        lambda x: ops.exp(x) / ops.sum(ops.exp(x), -1, keepdims=True),
        lambda x: x * x.shape[-1],
        lambda x: x * 2.0 if x.shape[-1] > 4 else x,
    ],
)
def test_an_activation_that_sees_other_channels_keeps_them_all(function):
    for model in (
        around(layers.Activation(function)),
        around(layers.Identity(), activation=function),
    ):
        group = sgdap.channel_graph(model).group("first")
        assert not group.prunable
        assert "mixes the channels" in group.reasons[0]


def test_an_activation_over_the_batch_lets_channels_leave():
    model = around(layers.Activation(lambda x: x - ops.mean(x, 0, keepdims=True)))
    assert sgdap.channel_graph(model).group("first").removable.all()


def defined(factor: float) -> type:
    class Operation(keras.Operation):
        """Passes each channel, or (for another factor than 1) turns their order around."""

        def call(self, x):
            return x if factor == 1 else x[..., ::-1] * factor

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

        def get_config(self):
            return {"name": self.name}

        @classmethod
        def from_config(cls, config):
            return cls(**config)

    return Operation


@pytest.mark.parametrize("factors", [(1, 2), (2, 1)])
def test_an_operation_defined_again_is_tried_again(factors):
    for operation_class in map(defined, factors):
        model = around(lambda x, own=operation_class: own(name="own")(x))
        graph = sgdap.channel_graph(model)
        kept = np.ones(graph.count, bool)
        kept[graph.group("first").channels[0]] = False
        (kernel, bias), (end, end_bias) = (
            model.get_layer(n).get_weights() for n in ("first", "end")
        )
        x = samples(model)
        hidden = np.where(np.arange(6) == 0, 0, x @ kernel + bias)
        hidden = np.asarray(operation_class()(hidden))
        prune_in_place(graph, kept)
        np.testing.assert_allclose(outputs(model, x), hidden @ end + end_bias, atol=1e-5)


def test_each_distinct_call_is_rehearsed_once(monkeypatch):
    rehearsed = []
    real = rehearsal.Likeness.fault
    monkeypatch.setattr(
        rehearsal.Likeness, "fault", lambda self: rehearsed.append(self) or real(self)
    )
    monkeypatch.setattr(rehearsal, "_known", rehearsal.Remembered(100))

    def deep(depth: int) -> keras.Model:
        body = [layers.Dense(32 * (1 + n % 2), "relu") for n in range(depth)]
        return keras.Sequential([keras.Input((4,)), *body, layers.Dense(2)])

    sgdap.channel_graph(deep(4))
    first = len(rehearsed)
    sgdap.channel_graph(deep(12))
    assert len(rehearsed) == first <= 4


def test_a_rehearsal_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(rehearsal, "_known", rehearsal.Remembered(100))
    inputs = keras.Input(batch_shape=(2, 5, 3))
    x = layers.LSTM(6, stateful=True, return_sequences=True, dropout=0.5)(inputs)
    x = layers.BatchNormalization()(layers.Dropout(0.5)(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    keras.utils.set_random_seed(3)
    before = [variable.numpy() for variable in model.variables]
    states = [state.numpy() for state in model.layers[1].states]
    attributes = [set(vars(layer)) for layer in model.layers]
    expected = random.Random(3).random(), np.random.RandomState(3).random()
    sgdap.channel_graph(model)
    assert len(rehearsal._known)
    assert (random.random(), np.random.random()) == expected
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    for state, value in zip(model.layers[1].states, states, strict=True):
        np.testing.assert_array_equal(state.numpy(), value)
    assert [set(vars(layer)) for layer in model.layers] == attributes


def test_names_are_counted_as_if_there_had_been_no_rehearsal(monkeypatch):
    class Unnamed(Factors):
        def call(self, x):
            return layers.Identity()(super().call(x))

    sgdap.register_rule(Unnamed)(follows)
    monkeypatch.setattr(rehearsal, "_known", rehearsal.Remembered(100))
    model = around(Unnamed())
    number = int(layers.Identity().name.split("_")[-1])
    sgdap.channel_graph(model)
    assert layers.Identity().name == f"identity_{number + 1}"
    assert sgdap.channel_graph(model).group("first").prunable


class Warns(layers.Layer):
    """Warns whenever it is called on numbers."""

    def call(self, inputs):
        if hasattr(inputs, "numpy"):
            warnings.warn("This layer is old.", stacklevel=2)
        return inputs


def test_warnings_of_a_rehearsed_layer_are_not_for_the_user():
    sgdap.register_rule(Warns)(lambda layer, call: call.input)
    inputs = keras.Input((4,))
    hidden = layers.Dense(6, name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(Warns()(hidden)))
    assert sgdap.channel_graph(model).group("hidden").prunable
