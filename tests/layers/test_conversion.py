"""A model with dynamic range activations in the place of its own computes the same."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

import sgdap
from sgdap.layers import DynamicRangeActivation, to_dra
from tests.models import (
    OwnModel,
    assemble,
    convnet,
    examples_of_models,
    mlp,
    outputs,
    randomise,
    samples,
)
from tests.test_random_graphs import RECIPES


def converted_names(model: keras.Model) -> list[str]:
    return [x.name for x in model.layers if isinstance(x, DynamicRangeActivation)]


def test_every_activation_between_layers_is_replaced_and_the_last_one_stays():
    model = convnet()
    new = to_dra(model)
    assert converted_names(new) == ["relu", "conv_2_dra", "hidden_dra"]
    assert new.get_layer("end").activation is keras.activations.softmax
    assert new.get_layer("conv_2").activation is keras.activations.linear
    assert new.get_layer("conv_2_dra").activation is keras.activations.tanh
    x = samples(model)
    np.testing.assert_allclose(outputs(new, x), outputs(model, x), atol=1e-6)
    assert not converted_names(model)


@pytest.mark.compiled  # grouped convolutions need XLA on CPUs
@pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning")
@examples_of_models
@given(st.integers(0, 3), RECIPES)
def test_random_models_compute_the_same(spatial, recipe):
    model = assemble(spatial, recipe)
    try:
        new = to_dra(model)
    except ValueError as error:
        assert "no activation to replace" in str(error)
        return
    x = samples(model)
    np.testing.assert_allclose(outputs(new, x), outputs(model, x), rtol=1e-5, atol=1e-5)


def test_layers_are_chosen_by_name_and_settings_passed_on():
    new = to_dra(convnet(), ["conv*"], growth="statistics", momentum=0.5, clip=3.0)
    assert converted_names(new) == ["conv_2_dra"]
    layer = new.get_layer("conv_2_dra")
    assert (layer.growth, layer.momentum, layer.clip) == ("statistics", 0.5, 3.0)
    model = mlp()
    model.add(layers.Activation("sigmoid", name="last"))
    assert converted_names(to_dra(model, ["last"])) == ["last"]


def test_settings_of_activation_layers_come_along():
    x = keras.Input((4,))
    y = layers.Dense(3)(x)
    for layer in (layers.ReLU(2.0, 0.1, 0.3), layers.LeakyReLU(0.2), layers.ELU(0.7)):
        y = layers.Dense(3)(layer(y))
    model = randomise(keras.Model(x, y))
    new = to_dra(model)
    assert len(converted_names(new)) == 3
    x = 3 * samples(model)
    np.testing.assert_allclose(outputs(new, x), outputs(model, x), atol=1e-6)


def test_channels_first_is_seen():
    x = keras.Input((3, 5, 5))
    y = layers.Conv2D(4, 2, data_format="channels_first")(x)
    y = layers.ReLU(name="first")(layers.BatchNormalization(1)(y))
    y = layers.Conv2D(6, 2, data_format="channels_first", activation="relu", name="second")(y)
    y = layers.Flatten("channels_first")(y)
    y = layers.Dense(2)(layers.Dense(5, "relu", name="third")(y))
    new = to_dra(keras.Model(x, y))
    sizes = [new.get_layer(name).growth_rate.shape for name in converted_names(new)]
    assert sizes == [(4,), (6,), (5,)]


def test_growth_rates_lie_along_the_channels_wherever_a_permutation_puts_them():
    x = keras.Input((7, 4))
    y = layers.Permute((2, 1))(layers.Dense(6, name="made")(x))
    y = layers.Permute((2, 1))(layers.ReLU(name="turned")(y))
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    new = to_dra(model)
    assert new.get_layer("turned").growth_rate.shape == (6,)
    assert sgdap.channel_graph(new).group("made").followers == ("turned",)
    np.testing.assert_allclose(outputs(new, samples(model)), outputs(model, samples(model)), 1e-5)


def test_a_frozen_layer_gets_a_frozen_activation():
    model = convnet()
    for name in ("conv_2", "relu"):
        model.get_layer(name).trainable = False
    new = to_dra(model)
    grows = {name: bool(new.get_layer(name).trainable) for name in converted_names(new)}
    assert grows == {"relu": False, "conv_2_dra": False, "hidden_dra": True}


def test_outputs_keep_their_names_for_losses_by_name():
    x = keras.Input((4,))
    hidden = layers.Dense(4, "relu", name="hidden")(x)
    head = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="deep")], name="head")
    ends = [layers.Dense(2, "sigmoid", name="end")(hidden), head(hidden)]
    model = keras.Model(x, ends)
    model.compile("sgd", {"end": "mse", "head": "mae"})
    new = to_dra(model, ["hidden", "end"])
    assert converted_names(new) == ["hidden_dra", "end"]
    x = samples(model)
    y = [np.zeros((len(x), 2))] * 2
    for each in (new, sgdap.fold(new)):
        assert each.output_names == ["end", "head"]
        each.fit(x, y, verbose=0)
    before = [np.array(value) for value in model(x)]
    for mine, theirs in zip(to_dra(model, ["end"])(x), before, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_shared_nested_and_own_models_are_converted():
    shared = layers.Dense(4, "relu", name="shared")
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, "tanh", name="deep")], name="in")
    x = keras.Input((4,))
    model = randomise(keras.Model(x, layers.Dense(2)(inner(shared(shared(x))))))
    new = to_dra(model)
    assert converted_names(new) == ["shared_dra", "deep_dra"]
    np.testing.assert_allclose(outputs(new, samples(model)), outputs(model, samples(model)), 1e-5)
    own = OwnModel()
    own(np.ones((2, 5), "float32"))
    x = samples(model, 3)
    x = np.concatenate([x, x[:, :1]], axis=1)
    np.testing.assert_allclose(outputs(to_dra(own), x), outputs(own, x), rtol=1e-5)


def test_a_regularizer_of_the_activation_moves_with_it():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, "relu", activity_regularizer="l1"), layers.Dense(2)]
    )
    new = to_dra(model, growth_regularizer=None)
    x = samples(model)
    for one in (model, new):
        one(x)
    np.testing.assert_allclose(sum(new.losses), sum(model.losses), rtol=1e-6)


@pytest.mark.parametrize("function", ["relu", layers.LeakyReLU(0.2)])
def test_a_regularizer_of_an_activation_layer_stays_through_folding(function):
    kept = layers.Activation(function, activity_regularizer="l2")
    model = randomise(keras.Sequential([keras.Input((5,)), layers.Dense(6), kept, layers.Dense(2)]))
    grown = to_dra(model, growth_regularizer=None)
    x = samples(model)
    losses = []
    for each in (model, grown, sgdap.fold(grown)):
        each(x)
        losses.append(float(sum(each.losses)))
    np.testing.assert_allclose(losses[1:], losses[0], rtol=1e-5)
    assert losses[0] > 0


def test_an_activation_without_one_number_of_channels_stays():
    x = keras.Input((5,))
    shared = layers.ReLU(name="shared")
    both = layers.Concatenate()([shared(layers.Dense(6)(x)), shared(layers.Dense(7)(x))])
    model = keras.Model(x, layers.Dense(2)(layers.Dense(4, "relu", name="other")(both)))
    given = samples(model)
    np.testing.assert_allclose(outputs(to_dra(model), given), outputs(model, given), atol=1e-6)
    with pytest.raises(ValueError, match="'shared'. There are: other"):
        to_dra(model, ["shared"])


def test_a_compiled_model_stays_compiled():
    model = convnet(optimizer="adam")
    new = to_dra(model)
    assert new.compiled
    assert new.loss == model.loss
    assert not to_dra(convnet()).compiled


def test_what_can_not_be_replaced_is_said():
    with pytest.raises(TypeError, match="Received: activation"):
        to_dra(mlp(), activation="relu")
    with pytest.raises(TypeError, match="must be a list of layer names"):
        to_dra(mlp(), "hidden_1")
    with pytest.raises(TypeError, match=r"or None for all. Received: \[\]"):
        to_dra(mlp(), [])
    with pytest.raises(ValueError, match="is called 'end'. There are: hidden_1, hidden_2"):
        to_dra(mlp(), ["end"])
    with pytest.raises(ValueError, match="has no activation to replace"):
        to_dra(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
    with pytest.raises(TypeError, match=r"Expected a keras.Model"):
        to_dra("model")
    with pytest.raises(ValueError, match="growth must be"):
        to_dra(mlp(), growth="slow")
