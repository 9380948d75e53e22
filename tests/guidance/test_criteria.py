"""Each criterion ranks channels by what it says it looks at."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.execution import added_losses
from sgdap.guidance import GroupData, get_guidance, register_guidance
from sgdap.guidance.score import group_data, score_groups
from tests.models import convnet, digits_like, outputs, randomise, samples

NAMES = ("lasso", "second_order", "magnitude", "activation", "correlation", "random")
NAMES += ("fpgm", "batch_norm_scale", "taylor")


def gathered(model: keras.Model, group: str, x: np.ndarray) -> GroupData:
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, x, positions=1000)
    return group_data(graph, graph.group(group), statistics)


def two_branches() -> keras.Model:
    """Two dense layers whose sum two others read; 3 of the 9 units of a third are protected."""
    inputs = keras.Input((5,))
    x = layers.Add()([layers.Dense(8, name="left")(inputs), layers.Dense(8, name="right")(inputs)])
    x = layers.ReLU()(x)
    x = layers.Concatenate()([layers.Dense(3, name="a")(x), layers.Dense(4, "tanh", name="b")(x)])
    return randomise(keras.Model(inputs, [layers.Dense(2, name="end")(x)]))


@pytest.mark.parametrize("norm", [1, 2])
def test_magnitude_is_the_norm_of_all_filters_that_make_a_channel(norm):
    model = two_branches()
    kernels = [model.get_layer(name).kernel.numpy() for name in ("left", "right")]
    expected = np.linalg.norm(np.concatenate(kernels), norm, axis=0)
    data = gathered(model, "left", samples(model, 32))
    np.testing.assert_allclose(sgdap.MagnitudeGuidance(norm).scores(data), expected, rtol=1e-6)


@pytest.mark.parametrize("layer", ["conv_1", "hidden"])
def test_activation_values_are_those_of_what_the_consumer_reads(layer):
    model, (x, _) = convnet(), digits_like(64)
    read = {"conv_1": "pool", "hidden": "hidden"}[layer]
    seen = outputs(keras.Model(model.inputs[0], model.get_layer(read).output), x)
    if layer == "conv_1":  # a 2×2 kernel reads inner positions up to four times
        times = np.ones((3, 3)) * np.array([1, 2, 1]) * np.array([1, 2, 1])[:, None]
        seen = np.repeat(seen.reshape(64, 9, -1), times.ravel().astype(int), axis=1)
    seen = seen.reshape(-1, seen.shape[-1]).astype(np.float64)
    expected = {
        "mean": np.abs(seen.mean(axis=0)),
        "std": seen.std(axis=0),
        "combined": np.abs(seen).mean(axis=0) + np.abs(seen).std(axis=0),
        "apoz": (seen != 0).mean(axis=0),
    }
    data = gathered(model, layer, x)
    for value, scores in expected.items():
        found = sgdap.ActivationGuidance(value).scores(data)
        np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-6)


def test_correlation_removes_first_what_the_others_predict_best():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(5), layers.Dense(2)])
    randomise(model)
    x = samples(model, 200)
    # unit 4 is the sum of units 0 and 1, disturbed by what no other unit sees
    kernel = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0.1]])
    model.layers[0].set_weights([kernel, np.zeros(5)])
    order = sgdap.CorrelationGuidance().order(gathered(model, model.layers[0].name, x))
    assert order[0] == 3, "a silent channel leaves first"
    assert order[1] in (0, 1, 4), "then one of those that explain each other"


def test_unexplained_variance_is_what_regression_on_the_others_leaves():
    model = randomise(
        keras.Sequential([keras.Input((4,)), layers.Dense(6, "relu"), layers.Dense(2)])
    )
    x = samples(model, 300)
    seen = np.array(model.layers[0](x))
    left, removed = list(range(6)), []
    while left:
        rest = []
        for channel in left:
            others = [seen[:, other] for other in left if other != channel]
            design = np.column_stack([np.ones(len(x)), *others])
            fit = design @ np.linalg.lstsq(design, seen[:, channel], rcond=None)[0]
            rest.append(np.var(seen[:, channel] - fit) / np.var(seen[:, channel]))
        removed.append(left.pop(int(np.argmin(rest))))
    order = sgdap.CorrelationGuidance().order(gathered(model, model.layers[0].name, x))
    assert order[:-2].tolist() == removed[:-2]  # the last two explain each other equally well


def test_lasso_drops_a_channel_that_another_stands_in_for_before_any_that_is_needed():
    model = randomise(
        keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(1)])
    )
    kernel, bias = model.layers[0].get_weights()
    kernel[:, 3], bias[3] = kernel[:, 1], bias[1]
    model.layers[0].set_weights([kernel, bias])
    model.layers[1].kernel.assign([[1.0], [-1.2], [1.0], [-1.0], [1.0]])
    order = sgdap.LassoGuidance().order(gathered(model, model.layers[0].name, samples(model, 300)))
    assert order[0] == 3, "of two equal channels the one with the smaller weights"


def test_random_orders_differ_between_seeds_and_groups_and_are_repeatable():
    data = gathered(convnet(), "conv_1", digits_like(16)[0])
    other = gathered(convnet(), "conv_2", digits_like(16)[0])
    again = sgdap.RandomGuidance(3).scores(data)
    assert np.array_equal(sgdap.RandomGuidance(3).scores(data), again)
    assert not np.array_equal(sgdap.RandomGuidance(4).scores(data), again)
    assert not np.array_equal(sgdap.RandomGuidance(3).scores(other), again[:5])


def partly_read() -> keras.Model:
    """A group of 5 channels of which one consumer reads only the last 3."""
    inputs = keras.Input((5,))
    first, last = layers.Dense(2, name="first")(inputs), layers.Dense(3, name="last")(inputs)
    joined = layers.Add()([layers.Concatenate()([first, last]), layers.Dense(5)(inputs)])
    return randomise(
        keras.Model(inputs, [layers.Dense(2)(joined), layers.Dense(2)(layers.ReLU()(last))])
    )


@pytest.mark.parametrize("name", [n for n in NAMES if n != "batch_norm_scale"])  # it has none
@pytest.mark.parametrize("reconstruction", [True, False])
def test_consumers_may_read_some_channels_of_a_group_only(name, reconstruction):
    model = partly_read()
    x = samples(model, 64)
    plan = sgdap.plan(
        model, x, sgdap.Budget(params=0.6), guidance=name, reconstruction=reconstruction
    )
    assert 1 <= plan.widths[sgdap.channel_graph(model).group("first").name] < 5
    assert np.isfinite(plan.groups[0].error)
    if not reconstruction:
        slim = sgdap.apply(model, plan)
        assert slim.count_params() <= 0.6 * model.count_params()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("group", ["left", "b"])
def test_each_criterion_orders_all_channels_that_may_leave(name, group):
    model = two_branches()
    data = gathered(model, group, samples(model, 64))
    order = get_guidance(name).order(data)
    if order is not None:  # None: elimination chooses
        assert sorted(order) == sorted(data.candidates)


def test_a_criterion_of_ones_own_works_by_name_and_by_object():
    class LastFirst(sgdap.Guidance):
        name = "last_first"

        def scores(self, data):
            return -np.arange(data.size, dtype=float)

    register_guidance("last_first", LastFirst)
    model, (x, _) = convnet(), digits_like(32)
    for guidance in ("last_first", LastFirst()):
        plan = sgdap.plan(model, x, sgdap.Budget(flops=0.6), guidance=guidance)
        assert plan.guidance == "last_first"
        for group in plan.groups:
            assert group.kept == tuple(range(len(group.kept)))


def test_a_criterion_without_scores_says_what_is_missing():
    class Empty(sgdap.Guidance):
        pass

    with pytest.raises(TypeError, match="Empty must define `scores` or `order`"):
        Empty().scores(None)


@pytest.mark.parametrize("name", NAMES)
def test_a_criterion_shows_and_rebuilds_its_arguments(name):
    guidance = get_guidance(name)
    assert guidance.name == name
    assert vars(type(guidance)(**guidance.get_config())) == vars(guidance)
    assert repr(guidance).startswith(type(guidance).__name__ + "(")


def test_an_unknown_criterion_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="No guidance is called 'lazo'.*lasso.*random"):
        get_guidance("lazo")
    with pytest.raises(TypeError, match="name of a criterion or a sgdap.Guidance.*Received: 3"):
        get_guidance(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sgdap.MagnitudeGuidance(norm=3), "norm must be 1 or 2. Received: norm=3"),
        (lambda: sgdap.ActivationGuidance("median"), "value must be .* Received: value='median'"),
        (lambda: sgdap.LassoGuidance(refinement=2), "refinement must be a number between 0 and 1"),
    ],
)
def test_arguments_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fpgm_is_the_sum_of_distances_to_the_other_filters():
    model = two_branches()
    kernels = [model.get_layer(name).kernel.numpy().T for name in ("left", "right")]
    expected = [
        sum(np.linalg.norm(kernel[i] - kernel[j]) for kernel in kernels for j in range(8))
        for i in range(8)
    ]
    data = gathered(model, "left", samples(model, 32))
    np.testing.assert_allclose(get_guidance("fpgm").scores(data), expected, rtol=1e-5)


def test_batch_norm_scale_is_the_magnitude_of_gamma_where_there_is_one():
    model, (x, _) = convnet(), digits_like(32)
    guidance = get_guidance("batch_norm_scale")
    gamma = model.get_layer("norm").gamma.numpy()
    np.testing.assert_allclose(guidance.scores(gathered(model, "conv_1", x)), np.abs(gamma))
    without = gathered(model, "conv_2", x)
    np.testing.assert_allclose(
        guidance.scores(without), sgdap.MagnitudeGuidance(1).scores(without), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["conv_1", "conv_2", "hidden"])
def test_taylor_is_the_mean_magnitude_of_activation_times_gradient(name, monkeypatch):
    model, (x, _) = convnet(), digits_like(24)
    monkeypatch.setattr(added_losses, "drawn_loss", lambda loss, y, seed: -loss_of(y))
    read = {"conv_1": "pool", "conv_2": "conv_2", "hidden": "hidden"}[name]
    first = keras.Model(model.inputs[0], model.get_layer(read).output)
    rest = keras.Sequential(model.layers[model.layers.index(model.get_layer(read)) + 1 :])
    seen = tf.constant(first(x, training=False))
    with tf.GradientTape() as tape:
        tape.watch(seen)
        loss = loss_of(rest(seen, training=False))
    change = (seen * tape.gradient(loss, seen)).numpy()
    expected = np.abs(change.reshape(24, -1, change.shape[-1]).sum(axis=1)).mean(axis=0)
    data = gathered(model, name, x)
    np.testing.assert_allclose(get_guidance("taylor").scores(data), expected, rtol=1e-3, atol=1e-6)


def loss_of(predictions):
    return tf.reduce_sum(tf.math.log(predictions[:, 0]))


def test_taylor_without_gradients_says_how_to_get_them():
    model, (x, _) = convnet(), digits_like(32)
    graph = sgdap.channel_graph(model)
    statistics = sgdap.collect_statistics(graph, x, sensitivity=False)
    data = group_data(graph, graph.group("conv_1"), statistics)
    with pytest.raises(ValueError, match="needs gradients.*sensitivity=True"):
        get_guidance("taylor").scores(data)


def test_layers_that_are_not_trained_are_scored_as_trained_ones():
    model, (x, _) = convnet(), digits_like(32)
    frozen = keras.models.clone_model(
        model, clone_function=lambda layer: type(layer).from_config(layer.get_config() | FROZEN)
    )
    frozen.set_weights(model.get_weights())
    for name in ("taylor", "second_order"):
        curves = [
            score_groups(g, sgdap.collect_statistics(g, x), get_guidance(name))
            for g in map(sgdap.channel_graph, (model, frozen))
        ]
        for group in ("conv_1", "conv_2", "hidden"):
            np.testing.assert_allclose(
                curves[1][group].errors, curves[0][group].errors, rtol=1e-4, atol=1e-7
            )


FROZEN = {"trainable": False}
