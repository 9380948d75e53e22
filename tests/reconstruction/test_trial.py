"""A slim model on trial has the loss that it has, whatever was tried before it."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.reconstruction import held_back
from sgdap.reconstruction.trial import Trials
from tests.models import outputs, randomise, samples


def network(batch: int | None = None) -> keras.Model:
    inputs = keras.Input(batch_shape=(batch, 6, 6, 2))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="second")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(9, "relu", name="third")(layers.Flatten()(x))
    return randomise(keras.Model(inputs, layers.Dense(3, "softmax", name="end")(x)))


def masks(graph) -> list[np.ndarray]:
    found = []
    for names in (["third"], ["first", "second"], ["second", "third"], ["third"]):
        kept = np.ones(graph.count, bool)
        for name in names:
            kept[graph.group(name).channels[1:6]] = False
        found.append(kept)
    return found


@pytest.mark.parametrize("limit", [None, 400_000])
def test_what_was_tried_before_changes_nothing(limit):
    model = network()
    x = samples(model, 120)
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, x)

    def trials() -> Trials:
        return Trials(graph, statistics, x, memory_limit=limit)

    one = trials()
    found = [one.losses_of(kept) for kept in masks(graph)]
    for kept, losses in zip(masks(graph), found, strict=True):
        np.testing.assert_allclose(trials().losses_of(kept), losses, rtol=1e-3, atol=1e-6)
    assert found[0].mean() > 0


def test_without_a_refit_it_is_the_divergence_of_the_model_without_the_channels():
    model = network()
    x = samples(model, 60)
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, x)
    kept = masks(graph)[2]
    losses = Trials(graph, statistics, x, reconstruction=False).losses_of(kept)
    gone = {name: list(range(1, 6)) for name in ("second", "third")}
    slim = sgdap.remove(model, gone)
    p, q = (outputs(own, x[:30]) for own in (model, slim))
    np.testing.assert_allclose(losses, (p * np.log(p / q)).sum(1), rtol=1e-3, atol=1e-6)


def test_a_model_of_a_fixed_batch_is_tried_on_whole_batches():
    model = network(8)
    x = samples(model, 30)
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, x)
    for count, measured in ((30, 8), (9, 8)):
        losses = Trials(graph, statistics, x[:count]).losses_of(masks(graph)[0])
        assert len(losses) == measured
        assert np.isfinite(losses).all()


def test_no_more_samples_are_used_than_given(monkeypatch):
    model = network()
    x = samples(model, 60)
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, x)
    for most, measured in ((10, 10), (100, 20)):
        monkeypatch.setattr(held_back, "MEASURED", most)
        losses = Trials(graph, statistics, x, samples=40).losses_of(masks(graph)[0])
        assert len(losses) == measured
