"""A part of a model is compiled once, whatever weights it runs with and whatever is looked at."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.execution import segments as module
from sgdap.execution.segments import Segment, Segments, looked_at
from sgdap.reconstruction import held_back
from tests.models import randomise, samples


def chain() -> keras.Model:
    inputs = keras.Input((6,))
    x = layers.Dense(8, "relu", name="first")(inputs)
    x = layers.Dense(7, "relu", name="second")(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="end")(x)))


@pytest.fixture
def traces(monkeypatch) -> list[int]:
    """Notes each trace of a segment."""
    made: list[int] = []
    traced = module.traced_for_any_batch

    def noting(shapes, step):
        def seen(*arguments):
            made.append(1)
            return step(*arguments)

        return traced(shapes, seen)

    monkeypatch.setattr(module, "traced_for_any_batch", noting)
    return made


@pytest.mark.compiled
def test_other_values_and_channels_are_shown_without_another_trace(traces):
    model = chain()
    x = samples(model, 10)
    graph = sgdap.channel_graph(model)
    place = next(place for place in graph.places if place.path == "second")
    inputs = tuple(ref.index for ref in graph.program.inputs)
    segment = Segment(0, inputs, (), place.call, (), place.call + 1, ("second",))
    run = Segments(graph, 32)
    random = np.random.default_rng(0)
    first = model.get_layer("first")
    second = model.get_layer("second")
    for _ in range(3):
        kept = random.random(graph.count) < 0.6
        kernel = random.normal(size=first.kernel.shape).astype("float32")
        shift = random.normal(size=8)
        found, _, _ = run.run(
            segment,
            [tf.constant(x)],
            {("first", 0): tf.constant(kernel)},
            {"second": looked_at(place, kept, shift)},
            tf.constant([0, 0]),
        )
        (seen,) = found["second"]
        hidden = np.maximum(x @ kernel + first.bias.numpy(), 0)
        made = hidden @ second.kernel.numpy() + second.bias.numpy()
        features, outputs = kept[place.features], kept[place.outputs]
        np.testing.assert_allclose(seen.features[:, 0], (hidden - shift)[:, features], atol=1e-5)
        np.testing.assert_allclose(seen.made[:, 0], made[:, outputs], atol=1e-5)
    assert len(traces) == 1


@pytest.mark.compiled
def test_slim_models_on_trial_share_what_is_compiled(traces, monkeypatch):
    model = chain()
    model.compile(loss="mse")
    x = samples(model, 90)
    found = []
    for tries in (2, 6):
        traces.clear()
        monkeypatch.setattr(held_back, "TRIALS", tries)
        sgdap.plan(model, x, sgdap.Budget(params=0.4), allocation="measured")
        found.append(len(traces))
    assert found[0] == found[1]
