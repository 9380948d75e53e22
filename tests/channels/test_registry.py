"""Rules of one's own, and for which classes a rule holds."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.channels.registry import find_rule
from sgdap.surgery import prune_in_place
from tests.models import outputs, randomise, samples
from tests.oracles import random_removal


class Scale(layers.Layer):
    """Multiplies every channel with a factor of its own."""

    def build(self, shape):
        self.factors = self.add_weight(shape=(shape[-1],), name="factors")

    def call(self, x):
        return x * self.factors


@pytest.fixture
def scale_has_a_rule():
    @sgdap.register_rule(Scale)
    def scale(layer, call):
        call.weight(layer.factors, call.input.axes[-1])
        return call.input


def network() -> keras.Model:
    return randomise(
        keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(6, name="first"),
                Scale(name="scale"),
                layers.Dense(2, name="end"),
            ]
        )
    )


def test_a_layer_of_ones_own_shrinks_by_its_rule(scale_has_a_rule):
    model = network()
    graph = sgdap.channel_graph(model)
    assert graph.group("first").followers == ("scale",)
    kept = random_removal(graph)
    stays = kept[graph.group("first").channels]
    kernel, bias, factors, end, end_bias = model.get_weights()
    prune_in_place(graph, kept)
    x = samples(model)
    expected = ((x @ kernel + bias) * factors)[:, stays] @ end[stays] + end_bias
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)
    assert model.get_layer("scale").factors.shape == (3,)


def test_a_rule_holds_for_a_subclass_that_computes_the_same():
    class Named(layers.Dense):
        purpose = "named"

    class Doubled(layers.Dense):
        def call(self, x):
            return 2 * super().call(x)

    assert find_rule(Named(3)) is find_rule(layers.Dense(3)) is not None
    assert find_rule(Doubled(3)) is None


def test_registering_again_replaces_the_rule(scale_has_a_rule):
    model = network()
    assert sgdap.channel_graph(model).group("first").prunable

    @sgdap.register_rule(Scale)
    def keep(layer, call):
        call.keep(call.input, "for a reason")
        return call.input

    assert sgdap.channel_graph(model).group("first").reasons == ("for a reason",)


def test_what_is_no_class_of_layers_or_no_rule_is_refused():
    for classes in ([layers.Dense(3)], [int], []):
        with pytest.raises(TypeError, match=r"takes layer classes.*Received: "):
            sgdap.register_rule(*classes)
    with pytest.raises(TypeError, match=r"must be a function \(layer, call\). Received: 3"):
        sgdap.register_rule(Scale)(3)


def says_nothing(layer, call):
    return None


def makes_too_many(layer, call):
    return [call.input, call.input]


def makes_another_shape(layer, call):
    return call.output().with_axis(-1, call.new_channels(5))


def speaks_of_no_variable(layer, call):
    call.weight("factors", call.input.axes[-1])
    return call.input


def gives_a_tensor_for_channels(layer, call):
    call.weight(layer.factors, call.input)
    return call.input


def gives_numbers_of_its_own(layer, call):
    call.weight(layer.factors, np.arange(6))
    return call.input


def returns_numbers_of_its_own(layer, call):
    return call.output().with_axis(-1, np.arange(6))


def gives_other_axes(layer, call):
    call.weight(layer.factors, None, call.input.axes[-1])
    return call.input


def gives_too_few_channels(layer, call):
    call.weight(layer.factors, call.input.axes[-1][:2])
    return call.input


def reads_an_axis_too_many(layer, call):
    call.weight(layer.factors, call.along(call.input, 2))
    return call.input


def makes_less_than_none(layer, call):
    return call.output().with_axis(-1, call.new_channels(-3))


def ties_unlike_channels(layer, call):
    call.tie(call.input.axes[-1], call.new_channels(5))
    return call.input


def ties_nothing(layer, call):
    call.tie(call.input.axes[-1], None)
    return call.input


def counts_a_number(layer, call):
    call.resize("size", 6)
    return call.input


def counts_in_a_number(layer, call):
    call.resize(3, call.input.axes[-1])
    return call.input


def scales_by_nothing(layer, call):
    call.scale(layer.factors, 0.5, None)
    return call.input


def works_on_numbers(layer, call):
    call.work(2, 3)
    return call.input


def keeps_nothing(layer, call):
    call.keep(None, "for a reason")
    return call.input


def gives_no_reason(layer, call):
    call.keep(call.input, None)
    return call.input


@pytest.mark.parametrize(
    ("rule", "kind", "words"),
    [
        (says_nothing, TypeError, "must return the channels of its output.*: None"),
        (makes_too_many, ValueError, "must return a Symbol for each of its 1 outputs.*: 2"),
        (makes_another_shape, ValueError, r".*of shape \(None, 6\). Received: .*\(None, 5\)"),
        (speaks_of_no_variable, ValueError, "must speak of its variables. Received: 'factors'"),
        (
            gives_a_tensor_for_channels,
            TypeError,
            "must give call.weight channels.*Received: Symbol",
        ),
        (gives_numbers_of_its_own, TypeError, r"must give call.weight channels.*array\(\[0, 1"),
        (returns_numbers_of_its_own, ValueError, r".*of shape \(None, 6\). Received: .*Symbol"),
        (gives_other_axes, ValueError, r".*'factors' of shape \(6,\). Received: \(None, 6\)"),
        (gives_too_few_channels, ValueError, r".*of shape \(6,\). Received: \(2,\) channels"),
        (reads_an_axis_too_many, ValueError, r"reads axis 2 of a tensor of shape \(None, 6\)"),
        (makes_less_than_none, ValueError, "must make 0 channels or more. Received: -3"),
        (ties_unlike_channels, ValueError, "must tie equally many. Received: 6 .* to 5"),
        (ties_nothing, TypeError, "must give call.tie channels.*None"),
        (counts_a_number, TypeError, "must give call.resize channels.*Received: 6"),
        (counts_in_a_number, TypeError, "must name an entry of the layer's config. Received: 3"),
        (scales_by_nothing, TypeError, "must give call.scale channels.*Received: None"),
        (works_on_numbers, TypeError, "must give call.work channels.*Received: 3"),
        (keeps_nothing, TypeError, "must give call.keep channels.*Received: None"),
        (gives_no_reason, TypeError, "must give a reason in words. Received: None"),
    ],
)
def test_a_wrong_rule_is_named_with_what_it_says(rule, kind, words, scale_has_a_rule):
    model = network()
    sgdap.register_rule(Scale)(rule)
    with pytest.raises(kind, match=f"The rule of 'scale' \\(of class Scale\\) {words}"):
        sgdap.channel_graph(model)


def test_what_a_rule_raises_itself_names_the_layer(scale_has_a_rule):
    @sgdap.register_rule(Scale)
    def misspelt(layer, call):
        return call.weight(layer.factor)

    with pytest.raises(ValueError, match="'factor'") as raised:
        sgdap.channel_graph(network())
    message = str(raised.value)
    assert message.startswith("The rule of 'scale' (of class Scale), test_what_a_rule_raises")
    assert "misspelt, stopped at " in message
    assert "test_registry.py" in message
    assert "(`return call.weight(layer.factor)`) with AttributeError: " in message
    assert isinstance(raised.value.__cause__, AttributeError)


def forgets_a_variable(layer, call):
    return call.input


def counts_in_no_entry(layer, call):
    call.weight(layer.factors, call.input.axes[-1])
    call.resize("size", call.input.axes[-1])
    return call.input


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (forgets_a_variable, r"'scale' .*Scale.*its 'factors' is of shape \(.,\).*call.weight"),
        (counts_in_no_entry, "'scale' .*Scale.* an entry of the layer's config. Received: 'size'"),
    ],
)
def test_a_rule_that_leaves_something_out_keeps_its_channels_and_stops_before_anything_changes(
    rule, words, scale_has_a_rule
):
    model = network()
    sgdap.register_rule(Scale)(rule)
    graph = sgdap.channel_graph(model)
    before = model.get_weights()
    (reason,) = graph.group("first").reasons
    assert re.search(words, reason)
    assert not graph.group("first").prunable
    kept = np.ones(graph.count, bool)
    kept[graph.group("first").channels[0]] = False
    with pytest.raises(ValueError, match=words):
        prune_in_place(graph, kept)
    model.compile("sgd", "mse")
    x = samples(model)
    epochs = []
    with pytest.raises(ValueError, match=words):
        model.fit(
            x,
            np.zeros((len(x), 2)),
            verbose=0,
            callbacks=[
                sgdap.SGDAPCallback(sgdap.Budget(params=0.7), verbose=0),
                keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: epochs.append(1)),
            ],
        )
    assert not epochs
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


class InFours(Scale):
    """Takes a multiple of four channels."""

    def build(self, shape):
        assert shape[-1] % 4 == 0
        super().build(shape)


@pytest.mark.parametrize(
    "widths", [{"round_to": 4}, {"min_channels": 8}, {"overrides": {"first": 1.0}}]
)
def test_fit_tries_only_widths_that_are_allowed(widths):
    @sgdap.register_rule(InFours)
    def scale(layer, call):
        call.weight(layer.factors, call.input.axes[-1])
        return call.input

    def fitted(**widths) -> list[int]:
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(8, name="first"),
                InFours(name="fours"),
                layers.Dense(9, name="second"),
                layers.Dense(2),
            ]
        )
        model.compile("sgd", "mse")
        budget = sgdap.Budget(params=0.95)
        callback = sgdap.SGDAPCallback(budget, jit_compile=None, verbose=0, **widths)
        x = samples(model)
        model.fit(x, np.zeros((len(x), 2)), epochs=2, verbose=0, callbacks=[callback])
        return [model.layers[0].units, model.layers[2].units]

    with pytest.raises(ValueError, match=r"'fours' .*fewer channels: assert \(7 % 4\)"):
        fitted()
    assert fitted(**widths)[0] in (4, 8)


class OwnNorm(layers.Layer):
    """Standardises by running statistics, with weights named and shaped in a way of its own."""

    def __init__(self, axis=-1, **kwargs):
        super().__init__(**kwargs)
        self.axis = axis

    def build(self, shape):
        along = [1] * len(shape)
        along[self.axis] = shape[self.axis]
        add = self.add_weight
        self.size = add(shape=along, initializer="random_uniform", name="size")
        self.shift = add(shape=along, initializer="random_uniform", name="shift")
        self.variance = add(shape=along, initializer="ones", name="variance", trainable=False)
        self.temperature = add(shape=(), initializer="ones", name="temperature")

    def call(self, x):
        return self.temperature * x * self.size / keras.ops.sqrt(self.variance) + self.shift

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}


class OwnGroupNorm(layers.Layer):
    def __init__(self, groups, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="random_uniform", name="scale")

    def call(self, x):
        width = x.shape[-1]
        y = keras.ops.reshape(x, (-1, self.groups, width // self.groups))
        y = y / (1e-3 + keras.ops.sqrt(keras.ops.mean(y**2, axis=-1, keepdims=True)))
        return keras.ops.reshape(y, (-1, width)) * self.scale

    def get_config(self):
        return {**super().get_config(), "groups": self.groups}


def between(layer: layers.Layer, width: int = 8) -> keras.Model:
    return randomise(
        keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(width, name="first"),
                layer,
                layers.Dense(2, name="end"),
            ]
        )
    )


@pytest.mark.parametrize(
    ("layer", "like", "gone"),
    [
        (OwnNorm(name="own"), layers.BatchNormalization, [0, 5]),
        (OwnNorm(axis=1, name="own"), layers.BatchNormalization, [7]),
        (Scale(name="own"), layers.BatchNormalization, [3]),
        (OwnGroupNorm(4, name="own"), layers.GroupNormalization, [2, 3]),
    ],
)
def test_a_norm_of_ones_own_is_declared_by_one_line(layer, like, gone):
    sgdap.register_rule(type(layer), like=like)
    model, x = between(layer), np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    slim = sgdap.remove(model, {"first": gone})
    first, own, end = model.layers
    y = own(first(x)).numpy()
    y[:, gone] = 0
    np.testing.assert_allclose(outputs(slim, x), end(y).numpy(), atol=1e-5)
    assert slim.get_layer("first").units == 8 - len(gone)


class Whitening(Scale):
    def build(self, shape):
        self.factors = self.add_weight(shape=(shape[-1], shape[-1]), name="factors")

    def call(self, x):
        return x @ self.factors


class Centred(Scale):
    def call(self, x):
        return (x - keras.ops.mean(x, axis=-1, keepdims=True)) * self.factors


class Counted(Scale):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.factors = self.add_weight(shape=(self.width,), name="factors")

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@pytest.mark.parametrize(
    ("layer", "like", "words"),
    [
        (
            Whitening(name="own"),
            layers.BatchNormalization,
            r"one number for each of the 8 channels",
        ),
        (Scale(name="own"), layers.Dense, r"'Scale' object has no attribute 'units'"),
    ],
)
def test_a_likeness_that_does_not_fit_is_refused_with_the_reason(layer, like, words):
    sgdap.register_rule(type(layer), like=like)
    with pytest.raises(ValueError, match=rf"'own' .*taken from {like.__name__}, .*{words}"):
        sgdap.channel_graph(between(layer))


@pytest.mark.parametrize(
    ("layer", "words"),
    [(Centred(name="own"), "its rule .* is wrong"), (Counted(8, name="own"), "own")],
)
def test_a_likeness_that_computes_otherwise_keeps_its_channels_with_the_reason(layer, words):
    sgdap.register_rule(type(layer), like=layers.BatchNormalization)
    group = sgdap.channel_graph(between(layer)).group("first")
    assert not group.prunable
    assert re.search(words, "; ".join(group.reasons))


@pytest.mark.parametrize("like", ["BatchNormalization", layers.Layer, Scale(name="own"), [1]])
def test_what_has_no_rule_is_no_likeness(like):
    with pytest.raises(ValueError, match=r"like must be a class that has a rule.*Received"):
        sgdap.register_rule(OwnNorm, like=like)
