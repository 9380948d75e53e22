"""Groups tell who makes, follows and reads the same channels, and what stays and why."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from tests.models import convnet


def functional(build) -> sgdap.ChannelGraph:
    inputs = keras.Input((8, 8, 3))
    return sgdap.channel_graph(keras.Model(inputs, build(inputs)))


def test_batch_norm_follows_its_producer_and_the_next_kernel_reads_it():
    group = sgdap.channel_graph(convnet()).group("conv_1")
    assert (group.producers, group.followers, group.consumers) == (
        ("conv_1",),
        ("norm",),
        ("conv_2",),
    )
    assert group.size == 6
    assert group.removable.all()
    assert group.prunable


def test_a_residual_connection_ties_all_its_producers():
    def build(x):
        x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
        for name in ("a", "b"):
            y = layers.Conv2D(4, 3, padding="same", name=name)(x)
            x = layers.Add()([x, y])
        return layers.Dense(2, name="end")(layers.GlobalAveragePooling2D()(x))

    graph = functional(build)
    group = graph.group("stem")
    assert group.producers == ("stem", "a", "b")
    assert group.consumers == ("a", "b", "end")
    assert graph.group("b") is group
    assert group.size == 4


def test_concatenated_producers_stay_groups_of_their_own():
    def build(x):
        parts = [layers.Conv2D(n, 1, name=f"part_{n}")(x) for n in (2, 5)]
        return layers.Conv2D(3, 1, name="end")(layers.Concatenate()(parts))

    graph = functional(build)
    assert [graph.group(f"part_{n}").size for n in (2, 5)] == [2, 5]
    assert graph.group("part_2").consumers == ("end",)


def test_inputs_and_outputs_of_the_model_stay():
    def build(x):
        hidden = layers.Conv2D(3, 1, name="hidden")(x)
        return [layers.Conv2D(2, 1, name="end")(hidden), layers.Add(name="sum")([x, hidden])]

    graph = functional(build)
    assert not any(group.prunable for group in graph.groups)
    assert graph.group("end").reasons == ("model output",)
    assert FIXED in graph.group("hidden").reasons


def test_an_intermediate_output_is_protected():
    def build(x):
        hidden = layers.Conv2D(4, 1, name="hidden")(x)
        return [hidden, layers.Conv2D(2, 1)(hidden)]

    assert functional(build).group("hidden").reasons == ("model output",)


class Mystery(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x):
        return x * self.scale


def test_what_has_no_rule_protects_what_it_touches_and_is_named():
    def build(x):
        x = layers.Conv2D(4, 1, name="before")(x)
        x = Mystery(name="mystery")(x)
        x = layers.Conv2D(4, 1, name="after")(x)
        return layers.Conv2D(2, 1)(x)

    graph = functional(build)
    reason = (
        "no rule for Mystery; it keeps all that it reads and makes, unless you register one with "
        "sgdap.register_rule"
    )
    assert graph.kept == (("mystery", reason),)
    assert graph.group("before").reasons == (reason,)
    assert graph.group("after").prunable


def test_what_makes_ready_the_inputs_of_a_model_is_not_named():
    """It keeps no channel: there is nothing to do."""

    def build(x):
        x = layers.MixUp(name="ready")(x)
        return layers.Conv2D(2, 1)(layers.Conv2D(4, 1, name="after")(x))

    graph = functional(build)
    assert not graph.kept and graph.group("after").prunable


class Mish(layers.Layer):
    def call(self, x):
        return x * keras.ops.tanh(keras.ops.softplus(x))


class Rooms(layers.Layer):
    def call(self, x):
        return keras.ops.reshape(x, (-1, 4, 16))


class Drawn(layers.Layer):
    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Mish, None),
        (Rooms, "the `call` of 'own' does not follow their number"),
        (Drawn, "no rule for Drawn"),
    ],
)
def test_a_layer_of_operations_alone_is_looked_into(layer, reason):
    def build(x):
        x = layers.Conv2D(4, 1, name="before")(x)
        x = layer(name="own")(x)
        return layers.Dense(2)(x)

    group = functional(build).group("before")
    assert group.prunable == (reason is None)
    assert (reason or "") in " ".join(group.reasons)


class OfFunction(layers.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


@pytest.mark.parametrize("layer", [layers.Lambda, OfFunction])
@pytest.mark.parametrize(
    ("function", "removable", "reason"),
    [
        (tf.nn.relu, 8, None),
        (lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]]), 8, None),
        (lambda x: tf.image.resize(x, (5, 5)), 8, None),
        (lambda x: tf.nn.depth_to_space(x, 2), 2, None),
        (lambda x: tf.concat(tf.split(x, 2, -1), 1), 4, None),
        (lambda x: tf.concat(tf.split(x, [3, 5], -1), -1), 0, "keras.ops.split for tf.split"),
        (lambda x: tf.reshape(x, (-1, 128, 4)), 0, "keras.ops.reshape for tf.reshape"),
        (lambda x: tf.nn.softmax(x), 0, "'own' mixes them; the code at"),
        (
            lambda x: x + tf.random.normal(tf.shape(x)),
            0,
            "keras.random.normal for tf.random.normal",
        ),
        (lambda x: tf.nn.l2_normalize(x, -1), 0, "write it with keras.ops in a layer of your own"),
    ],
)
def test_code_of_tensorflow_without_weights_is_tried_as_a_whole(layer, function, removable, reason):
    def build(x):
        x = layers.Conv2D(8, 1, name="before")(x)
        return layers.Dense(2)(layer(function, name="own")(x))

    group = functional(build).group("before")
    assert group.removable.sum() == removable
    assert (reason is None) == (not group.reasons)
    assert (reason or "") in " ".join(group.reasons)


class Behind(layers.Layer):
    """Calls TensorFlow after a layer of its own that has weights."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x):
        return tf.nn.leaky_relu(self.dense(x))


def test_a_layer_that_cannot_be_followed_names_the_call_and_what_can():
    def build(x):
        return layers.Dense(2)(Behind(name="own")(layers.Dense(4, name="before")(x)))

    (reason,) = functional(build).group("before").reasons
    assert reason.startswith("no rule for Behind (the code at ")
    assert "`return tf.nn.leaky_relu(self.dense(x))`" in reason
    assert "keras.ops.leaky_relu for tf.nn.leaky_relu" in reason


class Marking(layers.Layer):
    """Makes a mask that depends on the channels, in code that can't be followed."""

    def call(self, x):
        return tf.nn.relu(x)

    def compute_mask(self, x, mask=None):
        return keras.ops.any(x > 0, -1)


class Reading(layers.Layer):
    def call(self, x, mask=None):
        return tf.nn.relu(x) if mask is None else x


class Fixing(layers.Layer):
    """Tells Keras a size that it does not have with fewer channels."""

    def call(self, x):
        return tf.nn.relu(x)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


@pytest.mark.parametrize("layer", [Marking, Reading, Fixing])
def test_what_a_trial_does_not_show_keeps_the_channels(layer):
    inputs = keras.Input((5, 3))
    x = layer(name="own")(layers.Dense(4, name="before")(inputs))
    graph = sgdap.channel_graph(keras.Model(inputs, layers.Dense(2)(x)))
    assert not graph.group("before").prunable


class Pairs(layers.Layer):
    def call(self, x):
        return keras.ops.reshape(x, (-1, 2))


def test_code_that_writes_a_number_keeps_the_channels_wherever_they_are_counted():
    for width in (1, 4, 15, 16):
        inputs = keras.Input((3,))
        x = layers.Dense(2, name="before")(layers.Dense(width)(inputs))
        group = sgdap.channel_graph(keras.Model(inputs, layers.Dense(2)(Pairs()(x)))).group(
            "before"
        )
        assert "does not follow their number" in " ".join(group.reasons)


class Residual(layers.Layer):
    """Adds what its dense layer makes, and may count the sum by a number."""

    def __init__(self, width: int | None = None):
        super().__init__()
        self.own = layers.Dense(6, name="own")
        self.width = width

    def call(self, x):
        y = x + self.own(x)
        return y if self.width is None else keras.ops.reshape(y, (-1, self.width // 2, 2))


class OfCode(keras.Model):
    """Dense layers around some layer, in a `call` of its own; the first may be left out."""

    def __init__(self, inside, begins: bool = True):
        super().__init__()
        self.parts = [layers.Dense(6, name="before")] if begins else []
        self.parts += [inside, layers.Dense(4, name="after"), layers.Dense(2, name="end")]

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


FIXED = "combined with a tensor whose channels can't be removed"


def test_a_sum_with_an_input_keeps_its_channels_and_no_others():
    inputs = keras.Input((6,))
    summed = inputs + layers.Dense(6, name="own")(layers.Dense(5, name="before")(inputs))
    graph = sgdap.channel_graph(keras.Model(inputs, layers.Dense(2)(summed)))
    assert graph.group("own").reasons == (FIXED,)
    assert graph.group("before").removable.all()

    model = OfCode(Residual(), begins=False)
    model(np.ones((2, 6), "float32"))
    graph = sgdap.channel_graph(model)
    assert graph.group("residual/own").reasons == (FIXED,)
    assert graph.group("after").removable.all()


@pytest.mark.parametrize(
    "combined",
    [
        lambda x, y: keras.ops.where(y > 0, x, y),
        lambda x, y: keras.ops.stack([x, y], 1),
        lambda x, y: keras.ops.maximum(x[:, None], keras.ops.repeat(y[:, None], 3, 1)),
        lambda x, y: keras.ops.concatenate([x * 2, y], -1) + keras.ops.concatenate([x, x], -1),
    ],
)
def test_operations_that_meet_an_input_keep_what_meets_it(combined):
    inputs = keras.Input((6,))
    y = combined(inputs, layers.Dense(6, name="own")(inputs))
    graph = sgdap.channel_graph(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(y))))
    assert graph.group("own").reasons == (FIXED,)


def test_channels_beside_an_input_may_leave():
    inputs = keras.Input((6,))
    y = keras.ops.concatenate([inputs, layers.Dense(6, name="own")(inputs)], -1)
    graph = sgdap.channel_graph(keras.Model(inputs, layers.Dense(2)(y)))
    assert graph.group("own").removable.all()


def test_code_of_a_layer_inside_that_stops_keeps_only_what_it_counts():
    model = OfCode(Residual(6))
    model(np.ones((2, 3), "float32"))
    graph = sgdap.channel_graph(model)
    (reason,) = graph.group("before").reasons
    assert "does not follow their number" in reason
    assert "keras.ops.reshape(y" in reason
    assert graph.group("after").removable.all()


def test_a_group_may_be_removable_in_part():
    def build(x):
        own = layers.Concatenate()([layers.Conv2D(2, 1, name="own")(x), x])
        both = layers.Add()([own, layers.Conv2D(5, 1, name="both")(x)])
        return layers.Conv2D(2, 1)(both)

    group = functional(build).group("both")
    assert group.producers == ("own", "both")
    assert group.removable.tolist() == [True, True, False, False, False]
    assert group.prunable


def test_a_mixing_activation_protects_its_channels():
    graph = functional(
        lambda x: layers.Conv2D(2, 1)(layers.Conv2D(4, 1, activation="softmax", name="soft")(x))
    )
    assert graph.group("soft").reasons == ("the activation of 'soft' mixes the channels",)


def test_layers_of_nested_models_are_named_by_their_path():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="a")], name="inner")
    inputs = keras.Input((3,))
    graph = sgdap.channel_graph(keras.Model(inputs, layers.Dense(2)(inner(inputs))))
    assert graph.group("inner/a").prunable


def arrays_in(value):
    """Every array of numbers in nested plain data."""
    if isinstance(value, np.ndarray) and value.dtype != bool:
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from arrays_in(getattr(value, field.name))
    elif isinstance(value, dict):
        yield from arrays_in(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from arrays_in(part)


def test_a_graph_holds_channels_and_no_labels():
    def build(x):
        y = layers.Conv2D(4, 3, padding="same", name="a")(x)
        y = layers.Add()([y, keras.ops.reshape(layers.Conv2D(4, 1, name="b")(x), (-1, 8, 8, 4))])
        y = layers.MultiHeadAttention(2, 3)(y, y)
        return layers.Dense(2)(layers.LSTM(3)(layers.Reshape((64, -1))(y)))

    graph = functional(build)
    facts = dataclasses.replace(graph, program=None)
    found = list(arrays_in(facts))
    assert {array.dtype for array in found} == {np.dtype(np.int64)}
    assert np.unique(np.concatenate(list(map(np.ravel, found)))).tolist() == [*range(graph.count)]
    assert {place.is_linear for place in graph.places} == {True, False}
    assert graph.rewrites and graph.scales


def test_groups_print_what_they_are_made_of():
    graph = sgdap.channel_graph(convnet())
    assert str(graph.group("conv_1")).splitlines() == [
        "conv_1: 6 of 6 channels removable",
        "  made by conv_1",
        "  followed by norm",
        "  read by conv_2",
    ]
    assert "kept: the activation of 'end' mixes the channels; model output" in str(graph)


def test_an_unknown_group_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'conv_9'.*conv_1, conv_2, hidden, end"):
        sgdap.channel_graph(convnet()).group("conv_9")
