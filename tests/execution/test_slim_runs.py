"""Slim models are compared with the whole one, each going on from what one before had made."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.execution.divergence import rises
from sgdap.execution.losses import KnownLoss
from sgdap.execution.side_by_side import SideBySide
from sgdap.execution.slim_runs import SlimRuns
from tests.models import randomise, samples

RANDOM = np.random.default_rng(0)
LOSS = [KnownLoss(0, "categorical")]


def model(tokens: bool = False) -> keras.Model:
    inputs = keras.Input((6,), dtype="int32") if tokens else keras.Input((6, 5))
    x = inputs
    if tokens:
        x = layers.Embedding(9, 5, mask_zero=True, name="tokens")(x)
    x = layers.Dense(8, "relu", name="first")(x)
    second = layers.Dense(8, name="second")(x)
    x = layers.Add()([layers.Activation("relu")(second), x])
    x = layers.GlobalAveragePooling1D()(x)
    return randomise(keras.Model(inputs, layers.Dense(3, "softmax", name="end")(x)))


def data_for(made: keras.Model) -> np.ndarray:
    if made.inputs[0].dtype == "int32":
        return RANDOM.integers(0, 9, (50, 6))
    return samples(made, 50)


def runs(made, x, paths=("first", "second", "end"), **options) -> SlimRuns:
    graph = sgdap.channel_graph(made)
    places = [next(own for own in graph.places if own.path == path) for path in paths]
    shifts = {place.path: np.full(len(place.features), 0.1) for place in places}
    keys = [(path, number) for path in paths for number in (0, 1)]
    return SlimRuns(graph, x, x[:20], places, shifts, keys, most=16, **options)


def values(made, *names) -> dict[tuple[str, int], np.ndarray]:
    found = {}
    for name in names:
        kernel = made.get_layer(name).kernel.numpy()
        found[name, 0] = kernel + 0.1 * RANDOM.normal(size=kernel.shape).astype("float32")
    return found


@pytest.mark.compiled
@pytest.mark.parametrize("tokens", [False, True])
def test_what_is_compared_is_what_a_run_side_by_side_compares(tokens):
    made = model(tokens)
    x = data_for(made)
    graph = sgdap.channel_graph(made)
    slim = runs(made, x)
    other = values(made, "first", "second")
    kept = np.ones(graph.count, bool)
    kept[graph.group("first").channels[:3]] = False
    shifts = {place.path: np.full(len(place.features), 0.1) for place in graph.places}
    parts = [["first"], ["second"], ["end"]]
    beside = SideBySide(graph, x, parts, kept, shifts, most=16)
    slim.resume(slim.states(), 0)
    for part, (path,) in enumerate(parts):
        expected = [own for _, batch in beside.run(part, other) for own in batch]
        found = list(slim.compare(other, kept))
        assert [own[:2] for own in found] == [own[:2] for own in expected]
        for (_, _, mine), (_, _, theirs) in zip(found, expected, strict=True):
            assert mine.keys() == theirs.keys() >= {"count", "xx", "xr"}
            for name, value in theirs.items():
                np.testing.assert_allclose(mine[name], value, atol=1e-3, err_msg=f"{path} {name}")


def test_outputs_are_the_models_own_with_these_values_and_no_variable_changes():
    made = model()
    x = data_for(made)
    slim = runs(made, x)
    other = values(made, "first", "end")
    before = [variable.numpy() for variable in made.variables]
    whole = made.predict(x[:20], verbose=0)
    slim.resume(slim.states(), 0)
    kept = np.ones(sgdap.channel_graph(made).count, bool)
    for _ in range(3):
        list(slim.compare(other, kept))
    found = list(slim.outputs(other))
    assert [variable.numpy().tobytes() for variable in made.variables] == [
        own.tobytes() for own in before
    ]
    for (name, number), value in other.items():
        made.get_layer(name).weights[number].assign(value)
    expected = made.predict(x[:20], verbose=0)
    np.testing.assert_allclose(np.concatenate([own[1][0] for own in found]), expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([own[0][0] for own in found]), whole, atol=1e-5)
    divergence = (whole * np.log(whole / expected)).sum(1).mean()
    assert rises(LOSS, found).mean() == pytest.approx(divergence, rel=1e-3)


@pytest.mark.parametrize("keeps", [True, False])
def test_going_on_before_the_first_difference_gives_what_a_run_from_the_inputs_gives(keeps):
    made = model()
    slim = runs(made, data_for(made), keeps=keeps)
    kept = np.ones(sgdap.channel_graph(made).count, bool)
    one = values(made, "first")
    two = {**one, **values(made, "end")}
    slim.resume(slim.states(), 0)
    for _ in range(3):
        list(slim.compare(one, kept))
    states = slim.states()
    found = []
    for number in (0, 2):
        following = slim.resume(states, number)
        assert following == (number if keeps else 0)
        for _ in range(following, 3):
            list(slim.compare(two, kept))
        found.append(np.concatenate([own[1][0] for own in slim.outputs(two)]))
    np.testing.assert_allclose(*found, atol=1e-6)
