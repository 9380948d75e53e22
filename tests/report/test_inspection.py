"""The table of a model's channel groups, and the command that prints it."""

import keras
import pytest
from keras import layers

import sgdap
from sgdap.cli import main
from tests.models import convnet


class Unknown(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:])

    def call(self, x):
        return x * self.scale


def test_the_table_names_layers_channels_and_reasons():
    text = str(sgdap.inspect(convnet()))
    row = next(line for line in text.splitlines() if line.startswith("│ conv_1"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "conv_1",
        "conv_1",
        "norm",
        "conv_2",
        "6",
        "6",
        "",
    ]
    assert "mixes" in text
    assert "18 of 21 channels removable" in text


def test_a_layer_without_a_rule_is_named():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3), Unknown(name="odd"), layers.Dense(2)]
    )
    inspection = sgdap.inspect(model)
    assert "odd: no rule for Unknown" in str(inspection)
    assert (inspection.removable, inspection.channels) == (0, 5)


def test_names_in_brackets_are_shown_as_they_are():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="[red]a"), Unknown(name="[b]")], name="m[bold]"
    )
    for shown in (sgdap.inspect(model), sgdap.profile(model, latency=False)):
        assert all(name in str(shown) for name in ("m[bold]", "[red]a", "[b]"))
    later = keras.Sequential([keras.Input((2,)), layers.Dense(1)], name="later")
    assert later.layers[0].kernel.path.startswith("later/")  # in no scope of one that failed


def test_names_of_many_layers_are_cut_short():
    inputs = keras.Input((4,))
    x = layers.Dense(4)(inputs)
    for _ in range(9):
        x = layers.Add()([x, layers.Dense(4)(x)])
    assert "all)" in str(sgdap.inspect(keras.Model(inputs, x)))


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="keras.Model"):
        sgdap.inspect("model")


def test_the_command_prints_the_table_and_draws(tmp_path, capsys):
    convnet().save(tmp_path / "model.keras")
    picture = tmp_path / "model.png"
    assert main(["inspect", str(tmp_path / "model.keras"), "--picture", str(picture)]) == 0
    assert "18 of 21 channels removable" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_says_when_there_is_no_model(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none.keras")]) == 1
    assert "sgdap inspect: " in capsys.readouterr().err
