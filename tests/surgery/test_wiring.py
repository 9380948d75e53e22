"""A new model is brought to what another one was when units had left it, and back."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap import _keras
from sgdap.depth import removable_units
from sgdap.model.tracing import trace
from sgdap.surgery import prune_in_place, restore_snapshot, take_snapshot
from sgdap.surgery.rewire import bypass_in_place
from sgdap.surgery.wiring import Wiring, restore_wired
from tests.depth.models import ALL, samples
from tests.depth.oracle import random_bypass, trains_every_weight


def gated():
    """A layer and an operation whose arguments count channels, behind a unit."""
    x = inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    x = layers.Conv2D(6, 3, padding="same", name="inner")(x)
    x = layers.Conv2D(6, 3, padding="same", name="out")(x)
    gate = layers.Dense(6, "sigmoid", name="gate")(layers.GlobalAveragePooling2D(name="pool")(x))
    x = x * layers.Reshape((1, 1, 6), name="by_layer")(gate)
    other = layers.Dense(6, name="other")(gate)
    x = x + keras.ops.reshape(other, (-1, 1, 1, 6))
    x = layers.GlobalAveragePooling2D(name="last")(x)
    return keras.Model(inputs, layers.Dense(3, name="end")(x))


def compiled(make):
    with _keras.name_counters_kept():
        keras.utils.set_random_seed(0)
        model = make()
    model.compile("adam", "mse")
    return model


def shallower_and_narrower(make):
    model = compiled(make)
    x = samples(model)
    y = np.random.default_rng(1).normal(size=(len(x), 3)).astype("float32")
    model.fit(x, y, verbose=0)
    graph = sgdap.channel_graph(model)
    bypass_in_place(graph, [random_bypass(graph, removable_units(graph)[0], np.random)])
    graph = sgdap.channel_graph(model)
    kept = np.ones(graph.count, bool)
    for group in graph.groups:
        if group.prunable and len(group.removable) > 1:
            kept[group.channels[group.removable][-1:]] = False
    prune_in_place(graph, kept)
    model.fit(x, y, verbose=0)
    return model, x, y


@pytest.mark.parametrize("make", [*ALL, gated])
def test_a_new_model_becomes_what_the_other_one_was_and_goes_back(make):
    model, x, y = shallower_and_narrower(make)
    snapshot, wiring = take_snapshot(model), Wiring.of(trace(model))
    new = compiled(make)
    objects = {layer.name: layer for layer in new.layers}
    before, whole = new.predict(x, verbose=0), take_snapshot(new)
    back = restore_wired(trace(new), wiring, snapshot, counters=True)
    assert back is not None
    assert [layer.name for layer in new.layers] == [layer.name for layer in model.layers]
    assert all(objects[layer.name] is layer for layer in new.layers)
    np.testing.assert_array_equal(new.predict(x, verbose=0), model.predict(x, verbose=0))
    assert trains_every_weight(new, x, y)
    model.fit(x, y, verbose=0)
    for one, other in zip(
        [*new.variables, *new.optimizer.variables],
        [*model.variables, *model.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    restore_snapshot(new, snapshot)
    back.go(new)
    restore_snapshot(new, whole)
    assert [layer.name for layer in new.layers] == list(objects)
    np.testing.assert_array_equal(new.predict(x, verbose=0), before)
    assert trains_every_weight(new, x, y)


def test_a_snapshot_of_another_model_or_optimizer_is_refused():
    model, x, _ = shallower_and_narrower(gated)
    snapshot, wiring = take_snapshot(model), Wiring.of(trace(model))
    for other, optimizer, why in ((ALL[0], "adam", "has no 'inner'"), (gated, "sgd", "variables")):
        new = compiled(other)
        new.compile(optimizer, "mse")
        weights, names = new.get_weights(), [layer.name for layer in new.layers]
        with pytest.raises(ValueError, match=why):
            restore_wired(trace(new), wiring, snapshot)
        assert [layer.name for layer in new.layers] == names
        assert all(np.array_equal(a, b) for a, b in zip(weights, new.get_weights(), strict=True))
