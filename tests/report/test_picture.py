"""The picture of a model: tied channels share a colour, boxes stand below what they read."""

import keras
import pytest
from keras import layers

import sgdap
from sgdap.report.picture import ALONE, PALETTE, PROTECTED, arrange, boxes_of, colours_of
from tests.models import convnet


def residual(blocks: int) -> keras.Model:
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    for number in range(blocks):
        y = layers.Conv2D(5, 3, padding="same", name=f"first_{number}")(x)
        y = layers.ReLU(name=f"relu_{number}")(y)
        y = layers.Conv2D(4, 3, padding="same", name=f"second_{number}")(y)
        x = layers.Add(name=f"add_{number}")([x, y])
    return keras.Model(inputs, layers.Dense(2, name="end")(layers.Flatten()(x)))


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_every_layer_of_a_small_model_has_a_box():
    figure = sgdap.inspect(convnet()).plot()
    assert texts(figure) == ["input", *(layer.name for layer in convnet().layers)]


def test_names_are_drawn_as_they_are_and_long_ones_shortened():
    long = "x" * 200
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="a$b^$"),
            layers.Dense(4, name=long),
            layers.Dense(2, name="end"),
        ],
        name="m$o^$",
    )
    figure = sgdap.inspect(model).plot()
    figure.canvas.draw()
    assert "a$b^$" in texts(figure)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert max(map(len, [*texts(figure), *legend])) < 80
    assert figure.get_size_inches()[0] < 12


def test_layers_that_pass_channels_share_a_box_in_large_models():
    shown = texts(sgdap.inspect(residual(12)).plot())
    assert "first_3 +1" in shown
    assert not any("relu" in text for text in shown)


def test_a_wrapper_has_the_colour_of_what_the_layers_in_it_make():
    inner = keras.Input((6, 2))
    frame = keras.Model(inner, layers.Dense(3, name="code")(layers.Flatten()(inner)), name="frame")
    steps = keras.Input((4, 6, 2))
    x = layers.TimeDistributed(frame, name="steps")(steps)
    model = keras.Model(steps, layers.Dense(2, name="end")(layers.GRU(4, name="gru")(x)))
    carried = {b.name: [g.name for g in b.groups] for b in boxes_of(sgdap.channel_graph(model))}
    assert carried["steps"] == ["steps/frame/code"]


@pytest.mark.parametrize("blocks", [2, 12])
def test_a_box_stands_below_what_it_reads_and_on_no_other(blocks):
    boxes = boxes_of(sgdap.channel_graph(residual(blocks)))
    arrange(boxes)
    assert all(boxes[parent].row < box.row for box in boxes for parent in box.parents)
    assert len({(box.row, box.place) for box in boxes}) == len(boxes)


def test_tied_layers_carry_the_same_group():
    boxes = {box.name: box for box in boxes_of(sgdap.channel_graph(residual(2)))}
    (tied,) = boxes["stem"].groups
    assert all(boxes[name].groups == [tied] for name in ("second_0", "add_1", "second_1"))
    assert boxes["first_0"].groups != [tied]


def test_a_concatenation_shows_all_groups_in_it():
    inputs = keras.Input((4,))
    both = [layers.Dense(3, name=name)(inputs) for name in ("left", "right")]
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate(name="both")(both)))
    boxes = {box.name: box for box in boxes_of(sgdap.channel_graph(model))}
    assert [group.name for group in boxes["both"].groups] == ["left", "right"]


def test_groups_of_several_layers_keep_their_colour_among_many():
    colours = colours_of(sgdap.channel_graph(residual(len(PALETTE) + 1)))
    assert colours == {"stem": PALETTE[0], "end": PROTECTED}
    assert ALONE not in PALETTE


def test_with_a_plan_boxes_tell_channels_before_and_after():
    model = residual(2)
    plan = sgdap.plan_removal(model, {"first_0": [1, 2], "stem": [3]})
    shown = texts(sgdap.inspect(model).plot(plan))
    expected = [
        "stem\n4 → 3",
        "first_0\n5 → 3",
        "relu_0",
        "second_0\n4 → 3",
        "first_1\n5",
        "end\n2",
    ]
    assert set(expected) <= set(shown)
    with pytest.raises(ValueError, match="another model"):
        sgdap.inspect(convnet()).plot(plan)
