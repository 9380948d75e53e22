"""Consumers are refitted to the whole model's outputs on what the slim model gives them."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.execution.side_by_side import SideBySide
from sgdap.pipeline import widths
from sgdap.planning.plan import kept_mask
from sgdap.reconstruction import reconstructed_weights, refit, refitted_weights
from sgdap.reconstruction.refit import in_full_size
from sgdap.reconstruction.residuals import ResidualAccumulator, Residuals
from sgdap.surgery.apply import prune_by_plan
from tests.models import outputs, randomise, samples


def chain(use_bias: bool = True) -> keras.Model:
    inputs = keras.Input((7, 7, 2))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="second", use_bias=use_bias)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(12, "relu", name="third", use_bias=use_bias)(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="end", use_bias=use_bias)(x)))


def before_activation(model: keras.Model, name: str, x: np.ndarray) -> np.ndarray:
    """What a linear layer makes, without its activation."""
    layer = model.get_layer(name)
    activation, layer.activation = layer.activation, keras.activations.linear
    try:
        return np.array(keras.Model(model.inputs[0], layer.output)(x, training=False))
    finally:
        layer.activation = activation


def input_of(model: keras.Model, name: str, x: np.ndarray) -> np.ndarray:
    return outputs(keras.Model(model.inputs[0], model.get_layer(name).input), x).astype(np.float64)


def residuals(models, part, values, graph, kept, shifts) -> dict[str, Residuals]:
    features = {place.path: place.features for place in graph.places}
    sums: dict[str, ResidualAccumulator] = {}
    for _, shares in models.run(part, values):
        for path, share, found in shares:
            shift = shifts[path][kept[features[path]]]
            sums.setdefault(path, ResidualAccumulator(shift)).add(share, found)
    return {path: own.result() for path, own in sums.items()}


@pytest.mark.parametrize(
    ("use_bias", "batch_size"), [(True, 16), (False, 16), (True, 1), (True, 15)]
)
def test_what_a_slim_consumer_lacks_is_what_the_two_models_show(use_bias, batch_size):
    model = chain(use_bias)
    x = samples(model, 40)
    graph = sgdap.channel_graph(model)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.4), reconstruction=False)
    kept = kept_mask(graph, plan)
    slim = sgdap.apply(model, plan)
    full = in_full_size(graph, kept, {})
    shifts = {"third": np.full(72 // 18 * 8, 0.3)}
    models = SideBySide(graph, x, [["third"]], kept, shifts, batch_size=batch_size)
    found = residuals(models, 0, full, graph, kept, shifts)["third"]
    rows = input_of(slim, "third", x)
    stays = np.isin(np.arange(12), plan.groups[2].kept)
    lack = before_activation(model, "third", x)[:, stays] - before_activation(slim, "third", x)
    held_back = np.arange(40) % 5 == 1
    for share, chosen in enumerate((~held_back, held_back)):
        mine, mine_lacking = rows[chosen], lack[chosen]
        assert found.count[share] == len(mine)
        np.testing.assert_allclose(found.mean[share], mine.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.lacking[share], mine_lacking.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.power[share], mine_lacking.var(0), atol=1e-4)
        centred = mine - mine.mean(0)
        np.testing.assert_allclose(found.second[share], centred.T @ centred / len(mine), atol=1e-4)
        cross = centred.T @ (mine_lacking - mine_lacking.mean(0)) / len(mine)
        np.testing.assert_allclose(found.cross[share], cross, atol=1e-4)


@pytest.mark.parametrize("use_bias", [True, False])
def test_refitted_in_turn_the_slim_model_comes_closer_to_the_whole_one(monkeypatch, use_bias):
    model = chain(use_bias)
    random = np.random.default_rng(0)
    images = random.normal(size=(800, 5)) @ random.normal(size=(5, 7 * 7 * 2))  # channels correlate
    images = images.reshape(800, 7, 7, 2).astype("float32")
    x, fresh = images[:600], images[600:]
    expected = outputs(model, fresh)
    budget = sgdap.Budget(flops=0.2)
    in_turn = outputs(sgdap.apply(model, sgdap.plan(model, x, budget)), fresh)
    monkeypatch.setattr(widths, "refitted_weights", lambda g, s, kept, weights, *_, **__: weights)
    alone = outputs(sgdap.apply(model, sgdap.plan(model, x, budget)), fresh)
    assert ((in_turn - expected) ** 2).mean() < 0.9 * ((alone - expected) ** 2).mean()


def test_the_first_consumer_that_loses_channels_needs_no_other_fit():
    model = chain()
    x = samples(model, 100)
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, x)
    kept = np.ones(graph.count, bool)
    kept[graph.group("third").channels[:6]] = False  # only the last layer loses channels
    alone = reconstructed_weights(graph, statistics, kept)
    again = refitted_weights(graph, statistics, kept, alone, x)
    assert all(again[key] is value for key, value in alone.items())


def test_weights_in_full_size_compute_what_the_slim_model_computes():
    model = chain()
    x = samples(model, 60)
    graph = sgdap.channel_graph(model)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.5))
    kept = kept_mask(graph, plan)
    weights = {(k.rsplit(":", 1)[0], int(k[-1])): v for k, v in plan.weights.items()}
    full = in_full_size(graph, kept, weights)
    expected = outputs(sgdap.apply(model, plan), x)
    for (path, number), value in full.items():
        model.get_layer(path).weights[number].assign(value)
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-5)


def test_plans_refit_models_pruned_in_place_too():
    model = chain()
    x = samples(model, 100)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.4))
    expected = outputs(sgdap.apply(model, plan), x)
    prune_by_plan(sgdap.channel_graph(model), plan)
    np.testing.assert_array_equal(outputs(model, x), expected)


@pytest.mark.parametrize("count", [5, 12, 40])
def test_fewer_samples_than_features_are_enough(count):
    inputs = keras.Input((30,))
    x = layers.Dense(300, "relu", name="wide")(inputs)
    x = layers.Dense(200, "relu", name="next")(x)
    model = randomise(keras.Model(inputs, layers.Dense(3, "softmax", name="end")(x)))
    data = samples(model, count) * 100
    slim = sgdap.apply(model, sgdap.plan(model, data, sgdap.Budget(flops=0.5)))
    assert np.isfinite(outputs(slim, data)).all()


def masked_chain() -> keras.Model:
    """Tokens, some of them padding that a mask hides, read by layers one after another."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True, name="tokens")(inputs)
    x = layers.Dense(8, "relu", name="first")(x)
    x = layers.Dense(8, "relu", name="second")(x)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(8, "relu", name="third")(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="end")(x)))


@pytest.mark.compiled
@pytest.mark.parametrize("make", [chain, masked_chain])
def test_a_run_that_goes_on_from_what_was_kept_finds_what_one_from_the_inputs_does(make):
    model = make()
    x = samples(model, 40)
    if make is masked_chain:
        x = np.random.default_rng(0).integers(0, 9, x.shape)
    graph = sgdap.channel_graph(model)
    plan = sgdap.plan(model, x, sgdap.Budget(params=0.5), reconstruction=False)
    full = in_full_size(graph, kept_mask(graph, plan), {})
    shifts = {place.path: np.zeros(len(place.features)) for place in graph.places}
    parts = [["second"], ["third"], ["end"]]
    found = []
    for room in (0, 1e6):
        kept = kept_mask(graph, plan)
        models = SideBySide(graph, x, parts, kept, shifts, batch_size=16, room=room)
        results = [residuals(models, part, full, graph, kept, shifts) for part in range(3)]
        assert bool(models._slim.reached.call) is bool(room)
        found.append([own[path] for own, (path,) in zip(results, parts, strict=True)])
    for one, other in zip(*found, strict=True):
        for name in ("count", "mean", "second", "lacking", "power", "cross"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


@pytest.mark.parametrize("end", ["softmax", "sigmoid"])
@pytest.mark.parametrize("hidden", [1, 2])
def test_predictions_are_fitted_where_a_cross_entropy_reads_them(monkeypatch, end, hidden):
    inputs = keras.Input((12,))
    x = inputs
    for number in range(hidden):
        x = layers.Dense(16, "relu", name=f"hidden_{number}")(x)
    model = randomise(keras.Model(inputs, layers.Dense(4, end, name="end")(x)))
    kernel = model.get_layer("end").kernel
    kernel.assign(8 * kernel)  # surer predictions
    random = np.random.default_rng(0)
    x = random.normal(size=(700, 12)).astype("float32")

    def predicted(own: keras.Model) -> np.ndarray:
        return np.clip(outputs(own, x[500:]).astype(np.float64), 1e-7, 1 - 1e-7)

    p = predicted(model)

    def divergence() -> float:
        plan = sgdap.plan(model, x[:500], sgdap.Budget(params=0.4), round_to=1)
        slim = sgdap.apply(model, plan)
        q = predicted(slim)
        each = p * np.log(p / q)
        if end == "sigmoid":
            each = each + (1 - p) * np.log((1 - p) / (1 - q))
        return float(each.sum(1).mean())

    with_predictions = divergence()
    monkeypatch.setattr(refit, "heads", lambda graph: {})
    assert with_predictions < 0.97 * divergence()
