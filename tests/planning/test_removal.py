"""Named channels leave, with all that is tied to them; what can't be is refused in words."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from tests.models import convnet


def residual() -> keras.Model:
    inputs = keras.Input((6, 6, 2))
    stem = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    branch = layers.Conv2D(4, 3, padding="same", name="branch")(stem)
    x = layers.Add(name="sum")([stem, branch])
    return keras.Model(inputs, layers.Dense(2, name="end")(layers.Flatten()(x)))


def test_a_plan_of_a_removal_tells_what_the_slim_model_costs():
    model = convnet()
    plan = sgdap.plan_removal(model, {"conv_1": [3, 0]})
    before, after = (sgdap.profile(m, latency=False) for m in (model, sgdap.apply(model, plan)))
    assert plan.params == (before.params, after.params)
    assert plan.flops == (before.flops, after.flops)
    assert {g.name: g.kept for g in plan.groups}["conv_1"] == (1, 2, 4, 5)


def test_a_loss_that_nobody_computed_is_not_told():
    plan = sgdap.plan_removal(convnet(), {"conv_1": [0]})
    row = next(line for line in str(plan).splitlines() if "conv_1" in line)
    assert [cell.strip() for cell in row.split("│")][3:5] == ["6 → 5", ""]
    assert sgdap.Plan.from_json(plan.to_json()) == plan


def test_numbers_are_those_of_the_layer_where_a_group_holds_those_of_several():
    inputs = keras.Input((3,))
    parts = [layers.Dense(n, name=f"part_{n}")(inputs) for n in (2, 3)]
    whole = layers.Dense(5, name="whole")(inputs)
    x = layers.Add()([layers.Concatenate()(parts), whole])
    model = keras.Model(inputs, layers.Dense(2, name="end")(x))
    plan = sgdap.plan_removal(model, {"part_3": [0]})
    assert {g.name: g.kept for g in plan.groups if g.size == 5} == {"part_2": (0, 1, 3, 4)}
    slim = sgdap.apply(model, plan)
    assert [slim.get_layer(n).units for n in ("part_2", "part_3", "whole")] == [2, 2, 4]
    before, after = (m.get_layer("part_3").get_weights()[0] for m in (model, slim))
    assert np.array_equal(after, before[:, 1:])


@pytest.mark.parametrize("named", [{"branch": [1]}, {"stem": [1]}, {"stem": [1], "branch": [1]}])
def test_tied_channels_leave_together(named):
    model = residual()
    slim = sgdap.apply(model, sgdap.plan_removal(model, named))
    assert [slim.get_layer(name).filters for name in ("stem", "branch")] == [3, 3]


def test_a_layer_is_named_by_the_end_of_its_path_or_by_a_pattern():
    inner = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, name="one"), layers.Dense(4, name="two")], name="inner"
    )
    outer = keras.Sequential([keras.Input((3,)), inner, layers.Dense(2, name="end")])
    assert sgdap.plan_removal(outer, {"one": [0]}).widths["inner/one"] == 3
    widths = sgdap.plan_removal(outer, {"inner/*": [0]}).widths
    assert widths == {"inner/one": 3, "inner/two": 3, "end": 2}


def test_a_name_that_several_layers_have_is_refused():
    inputs = keras.Input((3,))
    blocks = [
        keras.Sequential([keras.Input((3,)), layers.Dense(4, name="one")], name=name)
        for name in ("left", "right")
    ]
    x = layers.Concatenate()([block(inputs) for block in blocks])
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ValueError, match=r"'one' or stand in it: left/one, right/one.*'one\*'"):
        sgdap.plan_removal(model, {"one": [0]})


def after_steps(layer: keras.layers.Layer) -> keras.Model:
    inputs = keras.Input((6, 5))
    x = layers.Flatten()(layer(inputs))
    return keras.Model(inputs, layers.Dense(2, name="end")(x))


@pytest.mark.parametrize(
    ("layer", "widths"),
    [
        (layers.Bidirectional(layers.LSTM(4), name="held"), [3, 3]),
        (layers.Bidirectional(layers.GRU(4), merge_mode="sum", name="held"), [3, 3]),
        (layers.TimeDistributed(layers.Dense(4), name="held"), [3]),
        (layers.TimeDistributed(layers.Bidirectional(layers.LSTM(4)), name="held"), [3, 3]),
        (layers.RNN(layers.LSTMCell(4), name="held"), [3]),
        (layers.RNN([layers.GRUCell(4)], name="held"), [3]),
        (layers.SpectralNormalization(layers.Dense(4), name="held"), [3]),
        (keras.Sequential([layers.Dense(4)], name="held"), [3]),
    ],
)
def test_a_layer_inside_another_is_called_by_that_ones_name(layer, widths):
    nested = isinstance(getattr(layer, "layer", None), layers.Bidirectional)
    inputs = keras.Input((6, 7, 5) if nested else (6, 5))
    x = layers.Flatten()(layer(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="end")(x))
    plan = sgdap.plan_removal(model, {"held": [1]})
    graph = sgdap.channel_graph(sgdap.apply(model, plan))
    assert [len(own) for path, own in graph.made.items() if path != "end"] == widths
    assert plan == sgdap.plan_removal(model, {next(iter(graph.made)): [1]})


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)], name="held"),
            r"Several layers are called 'held' or stand in it: held:0, held:1\. Give .*'held\*'",
        ),
        (
            layers.TimeDistributed(
                keras.Sequential(
                    [layers.Dense(4, name="one"), layers.Dense(3, name="two")], name="inner"
                ),
                name="held",
            ),
            r"stand in it: held/inner/one, held/inner/two\. Give .*'held\*'",
        ),
    ],
)
def test_a_name_of_what_holds_several_layers_is_refused_with_their_names(layer, words):
    model = after_steps(layer)
    with pytest.raises(ValueError, match=words):
        sgdap.plan_removal(model, {"held": [0]})
    assert sgdap.plan_removal(model, {"held*": [0]}).params[1] < model.count_params()


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ({"conv_9": [0]}, r"No layer that makes channels is called 'conv_9'.*Did you mean"),
        ({"conv_1": [6]}, r"'conv_1' to remove must be a list of numbers from 0 to 5, each once"),
        ({"conv_1": [-1]}, "from 0 to 5, each once. Received"),
        ({"conv_1": [2, 2]}, "from 0 to 5, each once. Received"),
        ({"conv_1": range(6)}, "No channel of 'conv_1'.* would be left"),
        ({"end": [1]}, r"Channels \[1\] of 'end' can't be removed: .*model output"),
    ],
)
def test_what_can_not_leave_is_refused_in_words(channels, words):
    with pytest.raises(ValueError, match=words):
        sgdap.plan_removal(convnet(), channels)


@pytest.mark.parametrize(
    "channels",
    [["conv_1"], {"conv_1": 3}, {"conv_1": "3"}, {"conv_1": [0.5]}, {"conv_1": [True]}, {1: [0]}],
)
def test_what_is_no_dict_of_numbers_is_refused(channels):
    with pytest.raises(TypeError, match="Received"):
        sgdap.plan_removal(convnet(), channels)


def test_nothing_named_is_nothing_removed():
    model = convnet()
    assert sgdap.plan_removal(model, {"conv_1": []}).widths == {
        g.name: g.size for g in sgdap.channel_graph(model).groups
    }
