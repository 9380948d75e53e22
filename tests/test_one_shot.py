"""`sgdap.plan` from data to plan: finds what is superfluous, and refuses what can't work."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.distillation import finish
from sgdap.pipeline import making, widths
from tests.models import convnet, digits_like, mlp, outputs, randomise, samples

HALF = sgdap.Budget(flops=0.5)


# Lossless


def lenet(conv_1: int, conv_2: int, dense_1: int, dense_2: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((14, 14, 1)),
            layers.Conv2D(conv_1, 3, activation="relu", name="conv_1"),
            layers.MaxPooling2D(),
            layers.Conv2D(conv_2, 3, activation="relu", name="conv_2"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(dense_1, "relu", name="dense_1"),
            layers.Dense(dense_2, "relu", name="dense_2"),
            layers.Dense(10, "softmax", name="end"),
        ]
    )


def widened(narrow: keras.Model) -> keras.Model:
    """The same function with a dead, a constant and two duplicated channels in each layer.

    What reads a channel and its double shares its weights out between them; dead and constant
    channels are read with any weights, and what the constant one adds is taken off the bias.
    """
    random = np.random.default_rng(0)
    values = [layer.get_weights() for layer in narrow.layers if layer.weights]
    wide = lenet(*(len(bias) + 4 for _, bias in values[:-1]))
    for (_, bias), following in zip(values[:-1], values[1:], strict=True):
        rows = following[0].reshape(-1, len(bias), following[0].shape[-1])
        share = random.uniform(0.2, 0.8, rows[:, :2].shape)
        any_weights = random.normal(0, 0.3, rows[:, :2].shape)
        own, doubles = rows.copy(), rows[:, :2] * share
        own[:, :2] -= doubles
        following[0] = np.concatenate([own, any_weights, doubles], axis=1)
        following[1] = following[1] - 2.0 * any_weights[:, 1].sum(axis=0)
    for (kernel, bias), layer in zip(values, (x for x in wide.layers if x.weights), strict=True):
        if layer.name != "end":
            nothing = np.zeros_like(kernel[..., :2])
            kernel = np.concatenate([kernel, nothing, kernel[..., :2]], axis=-1)
            bias = np.concatenate([bias, [-1.0, 2.0], bias[:2]])
        layer.set_weights([kernel.reshape(layer.kernel.shape), bias])
    return wide


@pytest.mark.compiled
@pytest.mark.parametrize("guidance", ["lasso", "second_order"])
def test_dead_constant_and_duplicated_channels_are_all_found_and_the_outputs_stay(guidance):
    narrow = randomise(lenet(4, 6, 16, 10))
    for layer in narrow.layers:
        if layer.weights:
            kernel = layer.kernel.numpy()
            balanced = kernel - kernel.mean(axis=tuple(range(kernel.ndim - 1)))
            layer.set_weights([balanced, 0.3 + 0 * layer.bias.numpy()])  # so all units are alive
    wide = widened(narrow)
    x = samples(narrow, 512)
    np.testing.assert_allclose(outputs(wide, x), outputs(narrow, x), atol=1e-5)
    cost = sgdap.profile(narrow, latency=False)
    budget = sgdap.Budget(flops=cost.flops, params=cost.params)
    plan = sgdap.plan(wide, x, budget, guidance=guidance, round_to=1)
    assert plan.widths == {"conv_1": 4, "conv_2": 6, "dense_1": 16, "dense_2": 10, "end": 10}
    for group in plan.groups[:-1]:
        size = len(group.kept)
        kept = [channel - size - 2 if channel >= size + 2 else channel for channel in group.kept]
        assert sorted(kept) == list(range(size)), "one of each pair of doubles, no dead or constant"
    slim = sgdap.apply(wide, plan)
    fresh = samples(narrow, 256, seed=1)
    np.testing.assert_allclose(outputs(slim, fresh), outputs(narrow, fresh), atol=1e-4)


# What a plan does


@pytest.mark.parametrize("reconstruction", [True, False])
@pytest.mark.parametrize("allocation", ["global", "layerwise"])
@pytest.mark.parametrize("guidance", ["lasso", "magnitude", "activation", "correlation", "random"])
def test_every_guidance_meets_the_budget(guidance, allocation, reconstruction):
    model = mlp()
    plan = sgdap.plan(
        model,
        samples(model, 32),
        sgdap.Budget(flops=0.4, params=0.5),
        guidance=guidance,
        allocation=allocation,
        reconstruction=reconstruction,
    )
    slim = sgdap.profile(sgdap.apply(model, plan), latency=False)
    assert slim.flops == plan.flops[1] <= 0.4 * plan.flops[0]
    assert slim.params == plan.params[1] <= 0.5 * plan.params[0]
    assert bool(plan.weights) is reconstruction


def test_reconstructed_weights_are_the_least_squares_fit_to_the_consumers_input():
    model, (x, _) = convnet(), digits_like(200)
    plan = sgdap.plan(model, x, sgdap.Budget(params=0.9), layers=["hidden"])
    slim = sgdap.apply(model, plan)
    kept = list(next(g.kept for g in plan.groups if g.name == "hidden"))
    hidden = outputs(keras.Model(model.inputs[0], model.get_layer("hidden").output), x)
    end = model.get_layer("end")
    target = hidden @ end.kernel.numpy() + end.bias.numpy()
    design = np.column_stack([hidden[:, kept], np.ones(len(x))]).astype(np.float64)
    best = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    fitted = hidden[:, kept] @ slim.get_layer("end").kernel.numpy() + slim.get_layer("end").bias
    np.testing.assert_allclose(fitted, best, atol=1e-3)


def test_without_a_bias_the_fit_goes_through_the_origin():
    model = randomise(
        keras.Sequential(
            [keras.Input((4,)), layers.Dense(6, "relu"), layers.Dense(3, use_bias=False)]
        )
    )
    x = samples(model, 200)
    plan = sgdap.plan(model, x, HALF)
    kept = list(plan.groups[0].kept)
    hidden = np.array(model.layers[0](x), np.float64)
    best = np.linalg.lstsq(hidden[:, kept], hidden @ model.layers[1].kernel.numpy(), rcond=None)[0]
    slim = sgdap.apply(model, plan)
    np.testing.assert_allclose(slim.layers[1].kernel.numpy(), best, atol=1e-3)


def test_the_model_is_not_changed_and_the_plan_is_repeatable():
    model, (x, _) = convnet(), digits_like(32)
    before = model.get_weights()
    first, second = (sgdap.plan(model, x, HALF) for _ in range(2))
    assert all(map(np.array_equal, before, model.get_weights()))
    assert first.to_json() == second.to_json()


def test_only_the_layers_asked_for_lose_channels():
    model, (x, _) = convnet(), digits_like(32)
    widths = sgdap.plan(model, x, sgdap.Budget(flops=0.6), layers=["conv*"]).widths
    assert widths["hidden"] == 7
    assert widths["conv_1"] + widths["conv_2"] < 11


def test_layers_without_a_rule_keep_what_they_touch_and_are_named():
    class Mystery(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

        def call(self, x):
            return x * self.scale

    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, name="before"),
            Mystery(name="mystery"),
            layers.Dense(6, name="after"),
            layers.Dense(2),
        ]
    )
    plan = sgdap.plan(model, samples(model, 32), sgdap.Budget(params=0.8))
    assert plan.widths["before"] == 6
    assert plan.widths["after"] < 6
    reason = (
        "no rule for Mystery; it keeps all that it reads and makes, unless you register one with "
        "sgdap.register_rule"
    )
    assert plan.unknown == (("mystery", reason),)
    assert reason in " ".join(str(plan).replace("│", " ").split())


# Data

x, y = digits_like(40)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return x[10 * index : 10 * index + 10], y[10 * index : 10 * index + 10]


@pytest.mark.parametrize(
    "data",
    [
        x,
        (x, y),
        tf.constant(x),
        tf.data.Dataset.from_tensor_slices(x).batch(16),
        tf.data.Dataset.from_tensor_slices((x, y)).batch(16),
        Batches(),
        (lambda: ((x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8))),
    ],
    ids=["array", "tuple", "tensor", "dataset", "labelled dataset", "PyDataset", "generator"],
)
def test_data_come_in_any_form_that_fit_takes(data):
    plan = sgdap.plan(convnet(), data() if callable(data) else data, HALF, guidance="magnitude")
    assert plan.samples == 40


@pytest.mark.parametrize("kind", [dict, list])
def test_a_model_of_several_inputs_takes_what_it_was_built_with(kind):
    inputs = {name: keras.Input((3,), name=name) for name in ("left", "right")}
    data = {name: np.random.default_rng(0).normal(size=(20, 3)) for name in inputs}
    if kind is list:
        inputs, data = list(inputs.values()), list(data.values())
    joined = layers.Concatenate()([layers.Dense(4)(x) for x in keras.tree.flatten(inputs)])
    model = keras.Model(inputs, layers.Dense(2)(joined))
    assert sgdap.plan(model, data, sgdap.Budget(params=0.7)).samples == 20


def test_no_more_samples_are_read_than_asked_for():
    read = []

    def endless():
        while True:
            read.append(1)
            yield x[:8]

    plan = sgdap.plan(convnet(), endless(), HALF, samples=20, guidance="magnitude")
    assert plan.samples == 20
    assert len(read) == 3


# What can't work: each message names the thing and the remedy, and the model stays as it was


def unreadable() -> keras.Model:
    class Own(keras.Model):
        def call(self, x):
            return x

    return Own(name="own")


WRONG = {
    "unbuilt model": (
        lambda: (keras.Sequential([layers.Dense(3)], name="raw"), x, HALF),
        ValueError,
        "'raw' is not built.*keras.Input",
    ),
    "a model that was never called": (
        lambda: (unreadable(), x, HALF),
        ValueError,
        "'own' is not built.*Call it once",
    ),
    "no model": (lambda: ("model.keras", x, HALF), TypeError, "keras.Model. Received: 'model.ker"),
    "no budget": (lambda: (convnet(), x, 0.5), TypeError, r"sgdap.Budget\(flops=0.5\).*: 0.5"),
    "no data": (lambda: (convnet(), None, HALF), TypeError, "Calibration data are needed"),
    "empty data": (lambda: (convnet(), x[:0], HALF), ValueError, "data are empty.*some hundred"),
    "an empty list": (lambda: (convnet(), [], HALF), ValueError, "data are empty"),
    "an empty dataset": (
        lambda: (convnet(), tf.data.Dataset.from_tensor_slices(x).batch(8).take(0), HALF),
        ValueError,
        "data are empty",
    ),
    "too few samples": (lambda: (convnet(), x[:3], None), ValueError, "5 folds. Received: 3 sam"),
    "data of no known kind": (lambda: (convnet(), 7, HALF), TypeError, "must be an array.*: 7"),
    "arrays of different lengths": (
        lambda: (convnet(), (x, y[:-1]), HALF),
        ValueError,
        r"differ in length: \[39, 40\]",
    ),
    "NaN in the data": (
        lambda: (convnet(), np.where(x > 1, np.nan, x), HALF),
        ValueError,
        "The calibration data are not finite",
    ),
    "data of another shape": (
        lambda: (convnet(), x[:, 1:], HALF),
        ValueError,
        r"do not fit model 'convnet', which takes an input of shape \(None, 8, 8, 2\).*7, 8, 2\)",
    ),
    "too many inputs": (
        lambda: (convnet(), [x, x], HALF),
        ValueError,
        r"do not fit model 'convnet'.*Received: inputs of shapes",
    ),
    "percent as a budget": (
        lambda: (convnet(), x, sgdap.Budget(flops=30)),
        ValueError,
        r"cannot be met.*A limit above 1 is absolute \(flops=30\). Did you mean flops=0.3\?",
    ),
    "an absolute budget that is no percent": (
        lambda: (convnet(), x, sgdap.Budget(flops=101)),
        ValueError,
        r"cannot be met.*A limit above 1 is absolute \(flops=101\).$",
    ),
    "a latency that cannot be met": (
        lambda: (convnet(), x, sgdap.Budget(latency="1us", runtime=lambda model: 1.0)),
        ValueError,
        r"Budget\(latency='1us', runtime=.*\) cannot be met: the narrowest model still takes",
    ),
    "a budget that cannot be met": (
        lambda: (convnet(), x, sgdap.Budget(flops=0.001)),
        ValueError,
        r"Budget\(flops=0.001\) cannot be met.*Raise the budget",
    ),
}


def test_a_latency_is_measured_on_slim_copies():
    """On a machine that takes a nanosecond for each FLOP."""

    def measured(model):
        return sgdap.profile(model, latency=False).flops * 1e-9

    model = convnet()
    seconds = 0.5 * measured(model)
    budget = sgdap.Budget(latency=f"{seconds * 1e6:.3f}us", runtime=measured)
    plan = sgdap.plan(model, x, budget)
    slim = sgdap.apply(model, plan)
    assert 0.8 * seconds < measured(slim) <= seconds
    (note,) = (note for note in plan.notes if note.startswith("Latency"))
    assert f"{measured(slim) * 1e3:.3g} ms of {seconds * 1e3:.3g} ms allowed" in note
    assert f"({measured(model) * 1e3:.3g} ms before" in note
    both = sgdap.Budget(latency=0.5, params=0.2, runtime=measured)
    slim = sgdap.apply(model, sgdap.plan(model, x, both))
    assert slim.count_params() <= 0.2 * model.count_params()


@pytest.mark.parametrize(("make", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_work_is_refused(make, error, message):
    model, data, budget = make()
    before = model.get_weights() if isinstance(model, keras.Model) else []
    with pytest.raises(error, match=message):
        sgdap.plan(model, data, budget)
    after = model.get_weights() if isinstance(model, keras.Model) else []
    assert all(map(np.array_equal, before, after))


def test_overrides_say_what_groups_keep_and_rounding_keeps_widths_even():
    budget = sgdap.Budget(params=0.6)
    overrides = {"conv_1": 1.0, "hid*": 0.5}
    plan = sgdap.plan(convnet(), x, budget, overrides=overrides, round_to=2)
    assert plan.widths["conv_1"] == 6
    assert plan.widths["hidden"] == 4
    assert plan.widths["conv_2"] in (2, 4, 5)


OPTIONS = {
    "an unknown guidance": ({"guidance": "lazo"}, ValueError, "No guidance is called 'lazo'"),
    "an unknown layer": ({"layers": ["conv_9"]}, ValueError, "'conv_9'. There are: conv_1"),
    "a pattern that is no list": ({"layers": "conv*"}, TypeError, "layers must be a list"),
    "a protected layer": ({"layers": ["end"]}, ValueError, "No channel of model 'convnet'"),
    "no channels at all": ({"min_channels": 0}, ValueError, "min_channels must be an integer"),
    "rounding to nothing": ({"round_to": 0}, ValueError, "round_to must be an integer of at"),
    "an override of an unknown layer": (
        {"overrides": {"stem*": 1.0}},
        ValueError,
        r"No layer whose channels may leave is called 'stem\*'.*There are: conv_1, conv_2, hidden",
    ),
    "an override that is no share": (
        {"overrides": {"conv_1": 4}},
        ValueError,
        r"above 0 and up to 1. Received: \{'conv_1': 4\}",
    ),
    "overrides that are no dict": ({"overrides": ["conv_1"]}, TypeError, "must be a dict.*conv_1"),
    "overrides against the budget": (
        {"overrides": {"*": 1.0}},
        ValueError,
        "cannot be met: with .* and the widths that overrides sets the model still needs all of",
    ),
    "an unknown allocation": ({"allocation": "best"}, ValueError, "allocation must be 'global'"),
    "one fold": ({"folds": 1}, ValueError, "folds must be an integer of at least 2"),
    "folds in words": ({"folds": "five"}, ValueError, "Received: folds='five'"),
    "a number for layers": ({"layers": 5}, TypeError, "layers must be a list.*Received: 5"),
    "no positions": ({"positions": 0}, ValueError, "positions must be an integer of at least 1"),
    "half a sample": ({"samples": 50.0}, ValueError, "samples must be an.*Received: samples=50.0"),
    "fewer samples than folds": ({"samples": 3}, ValueError, "samples must be an integer of at"),
    "a negative seed": ({"seed": -1}, ValueError, "seed must be an integer of at least 0"),
}


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options_without_meaning_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        sgdap.plan(convnet(), x, HALF, **options)


def test_weights_that_are_not_finite_are_refused_and_named():
    model = convnet()
    model.get_layer("conv_1").kernel.assign(np.full((3, 3, 2, 6), np.nan))
    with pytest.raises(ValueError, match=r"weights of layer 'conv_1' are not finite.*diverged"):
        sgdap.plan(model, x, HALF)


def test_activations_that_overflow_are_refused_and_named():
    model = convnet()
    model.get_layer("conv_1").bias.assign(np.full(6, 3e38))
    with pytest.raises(ValueError, match=r"layer 'conv_2' reads are not finite.*diverged"):
        sgdap.plan(model, x, HALF)


# Memory


def correlated(count: int) -> tuple[keras.Model, np.ndarray]:
    """A network whose channels can stand in for each other, and inputs."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(16, 3, activation="relu", name="second")(x)
    x = layers.Dense(24, "relu", name="hidden")(layers.Flatten()(x))
    model = randomise(keras.Model(inputs, layers.Dense(4, "softmax", name="end")(x)))
    random = np.random.default_rng(0)
    images = random.normal(size=(count, 6)) @ random.normal(size=(6, 8 * 8 * 3))
    return model, images.reshape(count, 8, 8, 3).astype("float32")


@pytest.mark.parametrize(
    ("limit", "worse", "words"),
    [
        (8 * 4 * 270**2, 1.1, "Batches hold at most"),
        (8 * 300**2, 2.0, "Only products of whole channels are kept"),
        pytest.param(
            30_000, 4.5, "Only each channel's own power is kept", marks=pytest.mark.compiled
        ),
    ],
)
def test_with_less_memory_a_plan_meets_the_budget_and_costs_little_more(limit, worse, words):
    model, x = correlated(400)
    x, fresh = x[:300], x[300:]

    def divergence(plan):
        p, q = outputs(model, fresh), outputs(sgdap.apply(model, plan), fresh)
        return float((p * np.log((p + 1e-9) / (q + 1e-9))).sum(axis=1).mean())

    whole = sgdap.plan(model, x, HALF, round_to=1)
    limited = sgdap.plan(model, x, HALF, round_to=1, memory_limit=limit)
    assert whole.notes == () and any(words in note for note in limited.notes)
    assert words[:20] in " ".join(str(limited).split())
    assert limited.flops[1] <= 0.5 * limited.flops[0]
    assert divergence(limited) < worse * divergence(whole)
    assert sgdap.Plan.from_json(limited.to_json()).notes == limited.notes


def test_folds_that_memory_has_no_room_for_are_said_where_they_choose_the_widths():
    model, x = correlated(300)
    notes = sgdap.plan(model, x, memory_limit=8 * 4 * 256**2).notes
    assert any("Moments of all folds are kept together" in note for note in notes)


def test_the_matrices_of_the_statistics_are_let_go_before_the_refit(monkeypatch):
    held = []
    collect, fit = making.collect_statistics, widths.refitted_weights

    def collecting(*arguments, **options):
        statistics = collect(*arguments, **options)
        own = statistics.consumers["hidden"]
        held.extend([weakref.ref(own.moments.second), weakref.ref(own.sensitivity)])
        return statistics

    def fitting(graph, statistics, *arguments, **options):
        gc.collect()
        assert [array() for array in held] == [None, None]
        return fit(graph, statistics, *arguments, **options)

    monkeypatch.setattr(making, "collect_statistics", collecting)
    monkeypatch.setattr(widths, "refitted_weights", fitting)
    model, x = correlated(40)
    sgdap.plan(model, x, HALF)
    assert held


def test_sampled_positions_and_their_seed_reach_all_passes(monkeypatch):
    from sgdap.reconstruction import refit

    seen = []
    models = refit.SideBySide

    def record(*arguments, **options):
        seen.append((options["positions"], options["seed"]))
        return models(*arguments, **options)

    monkeypatch.setattr(refit, "SideBySide", record)
    model, x = correlated(40)
    sgdap.plan(model, x, HALF, positions=3, seed=7)
    assert seen and set(seen) == {(3, 7)}


def test_a_plan_says_which_groups_are_scored_by_their_filters():
    inner = [keras.Input((5,)), layers.Dense(8, name="a"), layers.Dense(6)]
    inside = keras.Sequential(inner, name="in")
    inputs = keras.Input((4, 5))
    x = layers.TimeDistributed(inside, name="each")(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    plan = sgdap.plan(model, samples(model, 16), sgdap.Budget(params=0.8))
    (note,) = plan.notes
    assert note.startswith("Scored by the norm of their filters, because they lie inside a wrapper")
    assert note.endswith(": each/in/a.")


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12])
def test_activations_of_any_size_can_be_scored(scale):
    model = convnet()
    model.get_layer("conv_1").set_weights([w * scale for w in model.get_layer("conv_1").weights])
    model.get_layer("norm").trainable = False
    x = digits_like(32)[0]
    plan = sgdap.plan(model, x, HALF, samples=32)
    assert np.isfinite([group.error for group in plan.groups]).all()
    assert np.isfinite(outputs(sgdap.apply(model, plan), x)).all()


def test_weights_under_a_constraint_are_not_refitted():
    inputs = keras.Input((6,))
    y = layers.Dense(16, "relu", name="a")(inputs)
    y = layers.Dense(16, "relu", kernel_constraint="non_neg", name="b")(y)
    model = keras.Model(inputs, layers.Dense(3, bias_constraint="unit_norm", name="end")(y))
    kernel = model.get_layer("b").kernel
    kernel.assign(abs(kernel))
    slim = sgdap.apply(model, sgdap.plan(model, samples(model, 64), HALF))
    old, new = kernel.numpy(), slim.get_layer("b").kernel.numpy()
    assert new.min() >= 0 and new.size < old.size
    assert np.isin(new, old).all()
    np.testing.assert_array_equal(slim.get_layer("end").bias, model.get_layer("end").bias)


# What the errors of several outputs count


def two_heads(unit: float = 1.0, logits: bool = False) -> keras.Model:
    """A class and a place, the latter in some unit, from a trunk; a branch for each."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,))
    trunk = layers.Dense(24, "relu", name="trunk")(inputs)
    of_class, of_place = (layers.Dense(20, "relu", name=n)(trunk) for n in ("left", "right"))
    sure = keras.initializers.RandomNormal(stddev=2.0, seed=1)
    activation = None if logits else "softmax"
    category = layers.Dense(5, activation, name="class", kernel_initializer=sure)(of_class)
    place = layers.Dense(1, name="place")
    model = keras.Model(inputs, [category, place(of_place)])
    place.set_weights([unit * value for value in place.get_weights()])
    return model


def widths_of(model: keras.Model, data=None) -> dict[str, int]:
    inputs = np.random.default_rng(0).normal(size=(400, 12)).astype("float32")
    data = inputs if data is None else (inputs, data)
    plan = sgdap.plan(model, data, sgdap.Budget(flops=0.4), reconstruction=False, round_to=1)
    return {
        group.layers[0]: len(group.kept) for group in plan.groups if group.layers[0] in BRANCHES
    }


BRANCHES = ("trunk", "left", "right")
UNITS = [1e-3, 1e-1, 10.0, 1e3]


def assert_same_widths(found: dict[str, int], expected: dict[str, int]) -> None:
    assert all(abs(found[name] - width) <= 1 for name, width in expected.items())


def squared(y, p):
    return keras.ops.square(y - p)


def test_the_unit_of_an_output_changes_no_width():
    expected = widths_of(two_heads())
    assert all(1 < expected[name] < 20 for name in ("left", "right")), "both would show it"
    for unit in UNITS:
        assert_same_widths(widths_of(two_heads(unit)), expected)


@pytest.mark.parametrize(
    ("loss", "power"),
    [
        (lambda unit: "mse", 2),
        (lambda unit: "mae", 1),
        (lambda unit: keras.losses.Huber(unit), 2),
        (lambda unit: squared, 2),
    ],
)
@pytest.mark.parametrize("with_targets", [True, False])
def test_a_unit_that_the_loss_weights_make_up_for_changes_no_width(loss, power, with_targets):
    def found(unit):
        model = two_heads(unit)
        weights = [1.0, 3.0 / unit**power]
        model.compile(loss=["sparse_categorical_crossentropy", loss(unit)], loss_weights=weights)
        place = unit * np.random.default_rng(1).normal(size=(400, 1))
        return widths_of(model, [np.zeros(400), place] if with_targets else None)

    expected = found(1.0)
    for unit in (1e-3, 1e3):
        assert_same_widths(found(unit), expected)


def test_a_head_of_logits_gets_the_plan_of_its_softmax():
    plans = []
    for logits in (False, True):
        model = two_heads(logits=logits)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
        model.compile(loss=[loss, "mse"], loss_weights=[1.0, 2.0])
        plans.append(widths_of(model))
    assert plans[0] == plans[1]


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 1.0]])
def test_an_output_without_weight_lets_its_own_branch_die_alone(weights):
    model = two_heads()
    model.compile(loss=["sparse_categorical_crossentropy", "mse"], loss_weights=weights)
    widths = widths_of(model)
    dead, alive = ("right", "left") if weights[0] else ("left", "right")
    assert widths[dead] == 1
    assert widths[alive] > 5


def test_a_branch_that_counts_nothing_dies_where_memory_is_short_too():
    """Nothing is left of its weighted kernel, and products of whole channels are made of that."""
    model = two_heads()
    model.compile(loss=["sparse_categorical_crossentropy", "mse"], loss_weights=[1.0, 0.0])
    x = np.random.default_rng(0).normal(size=(100, 12)).astype("float32")
    plan = sgdap.plan(model, x, HALF, memory_limit=20_000)
    assert any("whole channels" in note or "own power" in note for note in plan.notes)
    assert next(len(g.kept) for g in plan.groups if g.name == "right") == 1


def test_a_compiled_classifier_gets_the_plan_of_the_plain_model():
    model, (x, _) = convnet(), digits_like(100)
    plain = sgdap.plan(model, x, HALF)
    for loss in ("categorical_crossentropy", "sparse_categorical_crossentropy"):
        model.compile(loss=loss)
        assert sgdap.plan(model, x, HALF).groups == plain.groups


def test_a_plan_says_how_outputs_count_whose_loss_is_not_known():
    model = two_heads()
    x = np.random.default_rng(0).normal(size=(100, 12)).astype("float32")
    assert "not compiled with a loss" in " ".join(sgdap.plan(model, x, HALF).notes)
    model.compile(loss=["sparse_categorical_crossentropy", squared])
    y = [np.zeros(100), np.zeros((100, 1))]
    assert "have no targets" in " ".join(sgdap.plan(model, x, HALF).notes)
    assert not sgdap.plan(model, (x, y), HALF).notes
    model.compile(loss=["sparse_categorical_crossentropy", lambda y, p: abs(y - p)])
    far = [np.zeros(100), np.full((100, 1), 1e3)]
    assert "is 0 near all of its targets" in " ".join(sgdap.plan(model, (x, far), HALF).notes)


def test_arguments_in_another_order_are_told_without_printing_the_data():
    x = np.zeros((8, 28, 28, 1))
    with pytest.raises(TypeError, match=r"data come before the budget.*shape \(8, 28, 28, 1\)>"):
        sgdap.plan(convnet(), sgdap.Budget(flops=0.5), x)
    with pytest.raises(TypeError, match="Calibration data must be an array.*Received: 'abc'"):
        sgdap.plan(convnet(), "abc", sgdap.Budget(flops=0.5))


def test_layers_inside_a_model_are_found_by_the_end_of_their_path():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, name="block5a"), layers.Dense(8, name="block6a")],
        name="backbone",
    )
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2, name="end")])
    x = np.random.default_rng(0).normal(size=(32, 4))
    plan = sgdap.plan(model, x, sgdap.Budget(params=0.9), layers=["block5*"])
    assert plan.widths["backbone/block5a"] < 8 == plan.widths["backbone/block6a"]
    whole = sgdap.plan(model, x, sgdap.Budget(params=0.9), layers=["backbone/block5*"])
    assert whole.widths == plan.widths
    with pytest.raises(ValueError, match="Did you mean 'backbone/block5a'"):
        sgdap.plan(model, x, sgdap.Budget(params=0.9), layers=["blok5a"])


def test_the_scale_of_batch_normalisations_is_no_criterion_where_there_are_none():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(2)])
    with pytest.raises(ValueError, match="needs a BatchNormalization .* has none. Take"):
        sgdap.plan(model, np.ones((8, 4)), sgdap.Budget(params=0.5), guidance="batch_norm_scale")


def doubled() -> keras.Model:
    """A regression whose hidden layer has each of its four channels twice, and one that is dead."""
    model = keras.Sequential([keras.Input((6,)), layers.Dense(9, "relu", name="hidden")])
    model.add(layers.Dense(2, name="end"))
    random = np.random.default_rng(3)
    kernel, end = random.normal(size=(6, 4)), random.normal(size=(9, 2))
    whole = np.concatenate([kernel, kernel, np.zeros((6, 1))], axis=1)
    model.set_weights([whole, np.append(np.full(8, 0.3), -1.0), end, random.normal(size=2)])
    return model


def test_without_a_budget_the_lasso_removes_what_is_free():
    model = doubled()
    data = np.random.default_rng(0).normal(size=(300, 6)).astype("float32")
    plan = sgdap.plan(model, data)
    slim = sgdap.apply(model, plan)
    assert slim.layers[0].units <= 8
    np.testing.assert_allclose(
        slim.predict(data, verbose=0), model.predict(data, verbose=0), atol=2e-3
    )
    fewer = sgdap.plan(model, data, guidance=sgdap.LassoGuidance(one_standard_error=True))
    assert fewer.params[1] <= plan.params[1]


def test_without_a_budget_the_users_widths_still_hold():
    model = doubled()
    data = np.random.default_rng(0).normal(size=(300, 6)).astype("float32")
    assert sgdap.plan(model, data, overrides={"hidden": 1.0}).params[1] == model.count_params()
    rounded = sgdap.plan(model, data, round_to=4)
    assert len(rounded.groups[0].kept) in (8, 9)


@pytest.mark.parametrize("guidance", ["magnitude", "second_order", "random"])
def test_without_a_budget_a_criterion_must_say_how_many_channels_stay(guidance):
    with pytest.raises(
        ValueError, match=f"guidance='{guidance}' says in which order.*Budget.*'lasso'"
    ):
        sgdap.plan(convnet(), x, guidance=guidance)


@pytest.mark.parametrize("guidance", ["magnitude", "fpgm", "random", "lasso"])
def test_data_are_not_run_where_nothing_depends_on_them(guidance, monkeypatch):
    model, (x, _) = convnet(), digits_like(40)
    options = {"guidance": guidance, "allocation": "layerwise", "reconstruction": False}
    run = []
    original = making.collect_statistics

    def collecting(*args, **kwargs):
        run.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(making, "collect_statistics", collecting)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.5), **options)
    assert bool(run) == (guidance == "lasso")
    assert {group.error is None for group in plan.groups if group.size != len(group.kept)} == {
        guidance != "lasso"
    }
    with pytest.raises(ValueError, match="not finite"):
        sgdap.plan(model, x * np.nan, sgdap.Budget(flops=0.5), **options)


@pytest.mark.compiled
@pytest.mark.parametrize("in_place", [False, True])
def test_a_plan_may_be_applied_with_a_finish_by_the_dense_models_answers(in_place, monkeypatch):
    monkeypatch.setattr(finish, "STEPS", 60)
    keras.utils.set_random_seed(0)
    wide = layers.Dense(24, "tanh", kernel_initializer=keras.initializers.RandomNormal(0, 0.7))
    model = keras.Sequential([keras.Input((6,)), wide, layers.Dense(3, "softmax")])
    x = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
    dense = model.predict(x, verbose=0)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.3))
    plain = np.abs(sgdap.apply(model, plan).predict(x, verbose=0) - dense).mean()
    slim = sgdap.apply(model, plan, in_place=in_place, distill_data=x)
    assert (slim is model) == in_place
    assert np.abs(slim.predict(x, verbose=0) - dense).mean() < 0.9 * plain


def test_data_that_do_not_fit_are_refused_before_a_plan_is_applied():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.5))
    with pytest.raises(ValueError, match="do not fit"):
        sgdap.apply(model, plan, in_place=True, distill_data=x[:, :5])
    assert model.layers[0].units == 8


class Counting(layers.Layer):
    """Counts its calls."""

    def build(self, shape):
        self.count = self.add_weight(name="count", trainable=False, initializer="zeros")

    def call(self, x):
        self.count.assign_add(1.0)
        return x


class Drawing(layers.Layer):
    """Adds random numbers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.draws = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + 0.1 * keras.random.normal(keras.ops.shape(x), seed=self.draws)


def learner() -> keras.Model:
    student = keras.Sequential([keras.Input((6,)), layers.Dense(3, "softmax")])
    student.compile("adam", "sparse_categorical_crossentropy")
    return student


def taught(model, x, y, **options):
    callback = sgdap.DistillationCallback(model, **options)
    learner().fit(x, y, verbose=0, callbacks=[callback])


NOT_CHANGING = {
    "inspect": lambda model, x, y: sgdap.inspect(model),
    "profile": lambda model, x, y: sgdap.profile(model),
    "plan": lambda model, x, y: sgdap.apply(model, sgdap.plan(model, x, sgdap.Budget(flops=0.7))),
    "sparsify": lambda model, x, y: sgdap.sparsify(model, (x, y), 0.5),
    "quantize": lambda model, x, y: sgdap.quantize(model, x, "int4"),
    "functional": lambda model, x, y: sgdap.functional(model),
    "distill": lambda model, x, y: sgdap.distill(learner(), model, x, epochs=1),
    "teacher": taught,
}


@pytest.mark.compiled
@pytest.mark.parametrize("function", NOT_CHANGING)
def test_what_a_layer_writes_when_it_is_called_changes_no_given_model(function):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    hidden = [layers.Dense(8, "relu"), Counting(), Drawing(), layers.Dense(8, "relu")]
    model = keras.Sequential([keras.Input((6,)), *hidden, layers.Dense(3, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    before = [v.numpy() for v in model.variables]
    NOT_CHANGING[function](model, x, np.arange(40) % 3)
    for mine, theirs in zip([v.numpy() for v in model.variables], before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
