"""Channels that no linear layer reads are scored by what the loss does where they are read."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.guidance.score import score_groups
from tests.models import outputs, randomise, samples

READERS = {
    "LSTM": lambda x: layers.LSTM(6)(x),
    "Bidirectional": lambda x: layers.Bidirectional(layers.GRU(3))(x),
    "MultiHeadAttention": lambda x: layers.MultiHeadAttention(2, 4)(x, x),
    "grouped": lambda x: layers.Conv1D(6, 3, groups=2)(x),
    "ConvLSTM": lambda x: layers.ConvLSTM1D(4, 2)(layers.Reshape((3, 2, 10))(x)),
}


def not_linear(consumers):
    return [own for own in consumers if not own.place.is_linear]


def model_with(reader: str) -> keras.Model:
    """A layer `made` of ten channels, four of them dead, the others' filters the smaller ones."""
    inputs = keras.Input((6, 5))
    x = layers.Dense(10, "relu", name="made")(inputs)
    x = layers.Flatten()(READERS[reader](x))
    model = randomise(keras.Model(inputs, layers.Dense(3, "softmax", name="end")(x)))
    kernel, bias = model.get_layer("made").get_weights()
    dead = [0, 3, 5, 8]
    kernel[:, dead] *= 3
    bias[dead] = -100
    model.get_layer("made").set_weights([kernel, bias])
    return model


# TensorFlow has no gradient of grouped convolutions on a CPU otherwise.
GROUPED = pytest.param("grouped", "lasso", marks=pytest.mark.compiled)


@pytest.mark.parametrize(
    ("reader", "guidance"),
    [
        *((reader, "lasso") for reader in READERS if reader != "grouped"),
        GROUPED,
        *(("LSTM", guidance) for guidance in ("second_order", "activation", "taylor")),
    ],
)
def test_dead_channels_leave_first_whatever_reads_them(reader, guidance):
    model = model_with(reader)
    x = samples(model, 64)
    plan = sgdap.plan(
        model,
        x,
        sgdap.Budget(params=0.999),
        guidance=guidance,
        layers=["made"],
        overrides={"made": 0.6},
    )
    (group,) = (g for g in plan.groups if g.name == "made")
    in_pairs = reader == "grouped"  # 0 leaves with 5, 3 with 8
    assert group.kept == ((1, 2, 4) if in_pairs else (1, 2, 4, 6, 7, 9))
    assert group.error == pytest.approx(0, abs=1e-6)
    assert not any("made" in note for note in plan.notes)
    np.testing.assert_allclose(outputs(sgdap.apply(model, plan), x), outputs(model, x), atol=1e-5)


def test_the_expected_loss_of_one_channel_is_half_its_power_times_the_gradients():
    model = model_with("ConvLSTM")
    x = samples(model, 40)
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, x)
    (reading,) = not_linear(statistics.consumers.values())
    read = outputs(keras.Model(model.input, model.get_layer("made").output), x).reshape(-1, 10)
    np.testing.assert_allclose(reading.moments.total().mean[0], read.mean(0), atol=1e-5)
    curve = score_groups(graph, statistics, sgdap.SecondOrderGuidance())["made"]
    expected = np.sort((read**2).mean(0) * np.diag(reading.sensitivity))[:5] / 2
    np.testing.assert_allclose(curve.errors[:6], np.append(0, np.cumsum(expected)), atol=1e-6)


def attention(kind: str) -> keras.Model:
    """A model with four heads: of a layer, or written out with operations."""
    inputs = keras.Input((6, 8))
    if kind == "multi-head":
        x = layers.MultiHeadAttention(4, 4, value_dim=3, name="attention")(inputs, inputs)
    elif kind == "grouped query":
        x = layers.GroupQueryAttention(4, 8, 4, name="attention")(inputs, inputs)
    else:
        query, key, value = (
            layers.EinsumDense("btf,fhd->bthd", (6, 4, 4), name=name)(inputs)
            for name in ("query", "key", "value")
        )
        scores = keras.ops.softmax(keras.ops.einsum("bthd,bshd->bhts", query, key))
        x = keras.ops.einsum("bhts,bshd->bthd", scores, value)
        x = layers.EinsumDense("bthd,hdf->btf", (6, 8), name="output")(x)
    x = layers.Flatten()(x)
    return randomise(keras.Model(inputs, layers.Dense(3, "softmax", name="end")(x)))


def silence(model: keras.Model, layer: str, index: tuple) -> None:
    """Sets a part of a projection's kernel, and of its bias if it is along the last axes, to 0."""
    for weight in model.weights:
        if weight.path.split("/")[-2] == layer and (index[0] is ... or "kernel" in weight.path):
            value = weight.numpy()
            value[index] = 0
            weight.assign(value)


@pytest.mark.parametrize("guidance", ["lasso", "taylor"])
@pytest.mark.parametrize("kind", ["multi-head", "grouped query", "operations"])
def test_heads_and_dimensions_that_the_loss_does_not_depend_on_leave_first(kind, guidance):
    model = attention(kind)
    silence(model, "key", (..., 2))  # the scores do not depend on the query there
    end = "output" if kind == "operations" else "attention_output"
    silence(model, end, (slice(None), 2))
    silence(model, end, (slice(4 if kind == "grouped query" else 2),))  # two heads, or two pairs
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, samples(model, 64))
    curves = score_groups(graph, statistics, sgdap.guidance.get_guidance(guidance))
    heads, *dims = (curves[g.name] for g in graph.groups if g.prunable and g.size <= 4)
    assert sorted(heads.order[:2]) == [0, 1]
    np.testing.assert_allclose(heads.errors[:3], 0, atol=1e-9)
    assert heads.errors[3] > 1e-5
    assert dims
    for curve in dims:
        assert curve.order[0] == 2
        assert curve.errors[1] == pytest.approx(0, abs=1e-9) and curve.errors[2] > 1e-6


def test_channels_that_only_operations_read_are_seen_where_they_are_made():
    inputs = keras.Input((6,))
    x = layers.Dense(8, name="made")(inputs)
    model = randomise(keras.Model(inputs, keras.ops.sum(x * x, axis=-1, keepdims=True)))
    graph = sgdap.channel_graph(model)
    (reading,) = (place for place in graph.places if not place.is_linear)
    assert reading.made and reading.path.startswith("made:")
    kernel, bias = model.get_layer("made").get_weights()
    kernel[:, 5] *= 1e-3
    bias[5] = 0
    model.get_layer("made").set_weights([kernel, bias])
    plan = sgdap.plan(model, samples(model, 64), sgdap.Budget(params=0.9))
    assert plan.groups[0].kept == (0, 1, 2, 3, 4, 6, 7)
    assert not plan.notes


def test_a_channel_that_a_linear_layer_does_not_need_stays_for_another_reader():
    inputs = keras.Input((6, 5))
    x = layers.Dense(8, "relu", name="made")(inputs)
    read = layers.Flatten()(layers.Conv1D(2, 1, name="linear")(x))
    both = layers.Concatenate()([read, layers.LSTM(4)(x)])
    model = randomise(keras.Model(inputs, layers.Dense(3, "softmax")(both)))
    kernel, bias = model.get_layer("linear").get_weights()
    kernel[:, :4] = 0
    model.get_layer("linear").set_weights([kernel, bias])
    lstm = next(layer for layer in model.layers if isinstance(layer, layers.LSTM))
    of_input, *rest = lstm.get_weights()
    of_input[4:] *= 0.01
    lstm.set_weights([of_input, *rest])
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, samples(model, 64))
    assert {"linear", lstm.name} <= statistics.consumers.keys()
    curve = score_groups(graph, statistics, sgdap.SecondOrderGuidance())["made"]
    assert curve.errors[4] > 1e-6, "the linear layer alone would give four of them for nothing"
