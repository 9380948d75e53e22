import keras
import numpy as np
import pytest
from keras import layers, ops

import sgdap
from sgdap.distillation import finish
from sgdap.layers import Hardening, to_hard
from tests.models import outputs, randomise, samples


def gated(smooth: str, gate: str, function=ops.silu, end: str = "softmax") -> keras.Model:
    """A small convolutional model with a squeeze-and-excite gate; its activations are arguments."""
    tensor = keras.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, activation=smooth, name="conv")(tensor)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Activation(smooth, name="smooth")(x)
    squeezed = layers.GlobalAveragePooling2D(name="squeeze")(x)
    x = layers.Multiply(name="scaled")([x, layers.Dense(6, gate, name="gate")(squeezed)])
    x = function(layers.Dense(5, name="hidden")(layers.Flatten(name="flatten")(x)))
    return keras.Model(tensor, layers.Dense(3, end, name="end")(x))


def with_weights_of(model: keras.Model, other: keras.Model) -> keras.Model:
    model.set_weights(other.get_weights())
    return model


@pytest.mark.parametrize("smooth", ["silu", "swish", "gelu"])
def test_it_equals_the_model_written_with_hard_activations(smooth: str):
    model = randomise(gated(smooth, "sigmoid"))
    before = model.get_weights()
    expected = with_weights_of(gated("hard_silu", "hard_sigmoid", ops.hard_silu), model)
    x = samples(model)
    hard, report = to_hard(model, return_report=True)
    np.testing.assert_allclose(outputs(hard, x), outputs(expected, x), atol=1e-6)
    np.testing.assert_equal(model.get_weights(), before)
    own = {"conv", "smooth", "gate", *(path for path in report.replaced if "silu" in path)}
    assert set(report.replaced) == own and len(own) == 4
    assert report.replaced["gate"] == "sigmoid → hard_sigmoid"


def test_gates_inside_recurrent_layers_and_wrappers_are_replaced():
    def model_of(gate: str, smooth: str) -> keras.Model:
        cells = [layers.LSTMCell(4, recurrent_activation=gate), layers.GRUCell(3)]
        return keras.Sequential(
            [
                keras.Input((5, 4)),
                layers.Bidirectional(
                    layers.LSTM(3, recurrent_activation=gate, return_sequences=True)
                ),
                layers.TimeDistributed(layers.Dense(4, smooth)),
                layers.RNN(cells if gate == "sigmoid" else [cells[0], hard_gru()]),
                layers.Dense(2),
            ]
        )

    def hard_gru() -> keras.Layer:
        return layers.GRUCell(3, recurrent_activation="hard_sigmoid")

    model = randomise(model_of("sigmoid", "silu"))
    expected = with_weights_of(model_of("hard_sigmoid", "hard_silu"), model)
    x = samples(model)
    np.testing.assert_allclose(outputs(to_hard(model), x), outputs(expected, x), atol=1e-6)


def test_probabilities_of_outputs_stay_unless_they_are_named():
    tensor = keras.Input((6,))
    x = layers.Dense(4, "silu", name="hidden")(tensor)
    x = layers.Dense(4, "sigmoid", name="mask")(x)
    model = keras.Model(tensor, layers.Reshape((2, 2))(x))
    assert to_hard(model).get_layer("mask").activation is keras.activations.sigmoid
    hard = to_hard(model, layers=["mask"])
    assert hard.get_layer("mask").activation is keras.activations.hard_sigmoid
    assert hard.get_layer("hidden").activation is keras.activations.silu


def test_relu_becomes_relu6_only_where_asked():
    tensor = keras.Input((6,))
    x = layers.ReLU(name="layer")(layers.Dense(4, "relu", name="dense")(tensor))
    x = layers.ReLU(negative_slope=0.1, name="leaky")(ops.relu(x))
    model = randomise(keras.Model(tensor, layers.Dense(2, "silu", name="end")(x)))
    with pytest.raises(ValueError, match="no activation to replace"):
        to_hard(model)
    hard, report = to_hard(model, relu6=True, return_report=True)
    assert hard.get_layer("dense").activation is keras.activations.relu6
    assert hard.get_layer("layer").max_value == 6 and hard.get_layer("leaky").max_value is None
    assert list(report.replaced.values()) == ["relu → relu6"] * 3
    x = 30 * samples(model)
    kernel, bias = model.get_layer("dense").get_weights()
    made = keras.Model(hard.input, hard.get_layer("layer").output)(x)
    np.testing.assert_allclose(made, np.clip(x @ kernel + bias, 0, 6), atol=1e-4)


def test_layers_of_the_users_own_are_left():
    class Own(keras.layers.Layer):
        def __init__(self, activation="silu", **kwargs):
            super().__init__(**kwargs)
            self.activation = activation

        def call(self, x):
            return keras.activations.get(self.activation)(x)

        def get_config(self):
            return {**super().get_config(), "activation": self.activation}

    tensor = keras.Input((6,))
    x = Own(name="own")(layers.Dense(4, "silu", name="dense")(tensor))
    _, report = to_hard(keras.Model(tensor, layers.Dense(2)(x)), return_report=True)
    assert "dense" in report.replaced and "own" not in report.replaced


@pytest.mark.compiled
def test_the_refit_takes_back_most_of_what_it_cost(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(finish, "STEPS", 150)
    model = randomise(gated("gelu", "sigmoid", ops.gelu))
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = samples(model, 512)
    y = outputs(model, x).argmax(axis=1)
    own = model.evaluate(x, y, verbose=0)[0]
    state = keras.random.SeedGenerator(0).state.numpy()
    raw = to_hard(model)
    hard, report = to_hard(model, (x, y), return_report=True, verbose=1)
    before, after = report.divergence
    assert after < before / 3
    p = outputs(model, x).astype("float64")
    for value, made in ((before, raw), (after, hard)):
        expected = (p * (np.log(p) - np.log(outputs(made, x)))).sum(axis=1).mean()
        assert value == pytest.approx(expected, rel=1e-3)
    assert report.loss[0] == pytest.approx(own, rel=1e-4)
    assert report.loss[2] == pytest.approx(hard.evaluate(x, y, verbose=0)[0], rel=1e-4)
    told = capsys.readouterr().out
    assert "gelu → hard_silu" in told and f"{after:.3g}" in told
    assert hard.compiled and hard.optimizer is not model.optimizer
    np.testing.assert_array_equal(keras.random.SeedGenerator(0).state.numpy(), state)


def test_without_data_nothing_is_measured(capsys: pytest.CaptureFixture):
    _, report = to_hard(gated("silu", "sigmoid"), return_report=True)
    assert report == Hardening(report.replaced, None, None)
    assert "Divergence" not in str(report)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"layers": "conv"}, TypeError, "must be a list of layer names"),
        ({"layers": ["con"]}, ValueError, "is called 'con'.*Did you mean 'conv'"),
        ({"layers": ["end"]}, ValueError, "is called 'end'"),
        ({"verbose": 3}, ValueError, "verbose must be"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments: dict, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        to_hard(gated("silu", "sigmoid"), **arguments)


def test_a_hard_model_goes_to_tf_keras():
    model = randomise(gated("silu", "sigmoid"))
    hard = to_hard(model)
    x = samples(model)
    there = sgdap.to_tf_keras(hard)
    np.testing.assert_allclose(there(x), outputs(hard, x), atol=1e-5)
