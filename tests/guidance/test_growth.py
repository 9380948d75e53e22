"""Growth rates as a criterion: read from the layer, or asked for before anything is done."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.guidance.growth import growth_rates
from sgdap.layers import DynamicRangeActivation, to_dra
from tests.models import convnet, digits_like, mlp, samples


def grown(model: keras.Model) -> keras.Model:
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, DynamicRangeActivation):
            layer.growth_rate.assign(random.normal(size=layer.growth_rate.shape))
    return model


def test_the_channels_that_grew_most_stay():
    model = grown(to_dra(mlp()))
    plan = sgdap.plan(
        model,
        samples(model, 64),
        sgdap.Budget(params=0.6),
        guidance="growth",
        allocation="layerwise",
    )
    for name in ("hidden_1", "hidden_2"):
        (group,) = [group for group in plan.groups if group.name == name]
        assert 0 < len(group.kept) < group.size
        rates = np.abs(model.get_layer(f"{name}_dra").growth_rate.numpy())
        assert {*group.kept} == {*np.argsort(rates)[-len(group.kept) :]}
    slim = sgdap.apply(model, plan)
    kept = list(plan.groups[0].kept)
    np.testing.assert_array_equal(
        slim.get_layer("hidden_1_dra").growth_rate.numpy(),
        model.get_layer("hidden_1_dra").growth_rate.numpy()[kept],
    )


def test_a_channel_in_several_places_has_the_sum_of_its_growth_rates():
    x = keras.Input((4, 2))
    y = layers.Flatten()(layers.Dense(3, name="made")(x))
    first = DynamicRangeActivation("relu", name="flat")
    y = DynamicRangeActivation("relu", name="again")(first(y))
    model = grown(keras.Model(x, layers.Dense(2)(y)))
    graph = sgdap.channel_graph(model)
    found = growth_rates(graph, graph.group("made"))
    rates = [np.abs(model.get_layer(name).growth_rate.numpy()) for name in ("flat", "again")]
    np.testing.assert_allclose(found, [r.reshape(4, 3).sum(0) for r in rates], rtol=1e-6)


def test_growth_rates_inside_a_wrapper_are_read():
    x = keras.Input((4, 5))
    y = layers.TimeDistributed(layers.Dense(6), name="made")(x)
    grows = layers.TimeDistributed(DynamicRangeActivation("relu"))
    model = keras.Model(x, layers.Dense(3)(layers.Flatten()(grows(y))))
    rates = grows.layer.growth_rate
    rates.assign(np.arange(-3.0, 3.0))
    graph = sgdap.channel_graph(model)
    (found,) = growth_rates(graph, graph.groups[0])
    np.testing.assert_array_equal(found, np.abs(rates.numpy()))


@pytest.mark.parametrize("refinement", ["a", None, [0.5], True, 1.5, float("nan")])
@pytest.mark.parametrize("guidance", [sgdap.GrowthGuidance, sgdap.LassoGuidance])
def test_a_refinement_without_meaning_is_refused(guidance, refinement):
    with pytest.raises(
        ValueError, match="refinement must be a number between 0 and 1. Received: ref"
    ):
        guidance(refinement=refinement)


def test_refinement_chooses_among_the_least_grown():
    model = grown(to_dra(convnet()))
    x, _ = digits_like(128)
    errors = [
        sum(
            group.error
            for group in sgdap.plan(
                model,
                x,
                sgdap.Budget(params=0.4),
                guidance=sgdap.GrowthGuidance(refinement),
                allocation="layerwise",
            ).groups
        )
        for refinement in (0.0, 1.0)
    ]
    assert errors[1] < errors[0]
    with pytest.raises(ValueError, match="refinement must be a number between 0 and 1"):
        sgdap.GrowthGuidance(2)


def test_a_group_without_growth_rates_is_named_before_anything_is_done():
    model = to_dra(convnet(optimizer="sgd"), ["conv_2"])
    x, y = digits_like()
    words = "There is none along 'conv_1', 'hidden'.*sgdap.layers.to_dra"
    with pytest.raises(ValueError, match=words):
        sgdap.plan(model, "never looked at", sgdap.Budget(flops=0.5), guidance="growth")
    before = [w.numpy() for w in model.weights]
    with pytest.raises(ValueError, match=words):
        model.fit(
            x,
            y,
            epochs=2,
            verbose=0,
            callbacks=[sgdap.SGDAPCallback(sgdap.Budget(flops=0.8), guidance="growth")],
        )
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    plan = sgdap.plan(model, x, sgdap.Budget(params=0.9), guidance="growth", layers=["conv_2"])
    assert len(plan.groups[1].kept) < 5
