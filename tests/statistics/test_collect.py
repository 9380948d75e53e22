"""One calibration pass gives the moments and the sensitivity that the activations themselves do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.channels.facts import Place
from sgdap.execution import calibration
from sgdap.execution.curvature import TEMPERATURE
from sgdap.execution.taps import kernel_matrix
from sgdap.statistics import collect_statistics
from sgdap.statistics.moments import moments_of
from tests.models import convnet, digits_like, mlp, outputs, randomise, samples

FOLDS = 4


def collected(model: keras.Model, x, **options):
    options = {"folds": FOLDS, "positions": 10_000} | options
    return collect_statistics(sgdap.channel_graph(model), x, **options)


def read_by(model: keras.Model, name: str, x: np.ndarray) -> np.ndarray:
    """The patches that a 2×2 convolution or a dense layer reads, `(samples, places, features)`."""
    layer = model.get_layer(name)
    seen = outputs(keras.Model(model.inputs[0], layer.input), x)
    if isinstance(layer, layers.Dense):
        return seen[:, None]
    shifted = [seen[:, i : i + 2, j : j + 2] for i in (0, 1) for j in (0, 1)]
    return np.concatenate([part.reshape(len(x), 4, -1) for part in shifted], axis=-1)


@pytest.mark.compiled
@pytest.mark.parametrize("batch_size", [8, 32, 100])
def test_moments_are_those_of_what_each_consumer_reads(batch_size):
    model, (x, _) = convnet(), digits_like(64)
    statistics = collected(model, x, batch_size=batch_size)
    assert statistics.samples == 64
    assert list(statistics.consumers) == ["conv_2", "hidden", "end"]
    for name, own in statistics.consumers.items():
        rows = read_by(model, name, x)
        fold = np.repeat(np.arange(64) % batch_size % FOLDS, rows.shape[1])
        expected = moments_of(rows.reshape(len(fold), -1), fold, FOLDS)
        scale = np.abs(expected.second).max()
        np.testing.assert_array_equal(own.moments.count, expected.count)
        np.testing.assert_allclose(own.moments.mean, expected.mean, atol=1e-5)
        np.testing.assert_allclose(own.moments.second, expected.second, atol=1e-5 * scale)
        np.testing.assert_array_equal(own.moments.zeros, expected.zeros)
        np.testing.assert_allclose(own.moments.absolute, expected.absolute, rtol=1e-5, atol=1e-4)


def test_large_means_do_not_swallow_small_deviations():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dense(2)])
    model.layers[0].set_weights([np.diag([1e-3, 1.0, 1e3]), np.array([10.0, 1e4, 1e7])])
    x = samples(model, 2000)
    moments = collected(model, x).consumers[model.layers[1].name].moments.total()
    rows = outputs(keras.Model(model.inputs[0], model.layers[0].output), x).astype(np.float64)
    covariance = np.cov(rows.T, bias=True)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    found = moments.second[0] / moments.count[0]
    np.testing.assert_allclose(found / scale, covariance / scale, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_batches():
    def sizes(batches):
        model = mlp()
        x = samples(model, 10 * batches)
        statistics = collected(model, x, batch_size=10)
        return [
            array.shape
            for own in statistics.consumers.values()
            for array in vars(own.moments).values()
        ]

    assert sizes(1) == sizes(20)


def test_a_layer_called_twice_adds_up_what_it_reads_at_both_places():
    inputs = keras.Input((4,))
    first, shared = layers.Dense(4, "tanh"), layers.Dense(4, "tanh", name="shared")
    hidden = first(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(2)(shared(shared(hidden)))))
    x = samples(model, 40)
    own = collected(model, x).consumers["shared"]
    once = outputs(keras.Model(inputs, hidden), x)
    rows = np.concatenate([once, np.array(shared(once))])
    assert own.moments.total().count[0] == 80
    np.testing.assert_allclose(own.moments.total().mean[0], rows.mean(axis=0), atol=1e-6)


def test_inference_mode_is_used_and_nothing_is_changed():
    model, (x, _) = convnet(), digits_like(32)
    before = [v.numpy() for v in model.variables]
    first, second = (collected(model, x).consumers["end"].moments for _ in range(2))
    assert np.array_equal(first.second, second.second)
    assert all(map(np.array_equal, before, [v.numpy() for v in model.variables]))
    assert model.get_layer("hidden").activation is keras.activations.relu


# Sensitivity: the curvature of the usual loss of the prediction with respect to a layer's outputs


def fisher(kind: str, z: np.ndarray) -> np.ndarray:
    """Its closed form for the layer before the model's output, softened.

    Keras' cross-entropies of bits and squared errors are means over the outputs.
    """
    z = z / TEMPERATURE
    if kind == "softmax":
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return np.diag(p.mean(axis=0)) - p.T @ p / len(p)
    if kind == "sigmoid":
        p = 1 / (1 + np.exp(-z))
        return np.diag((p * (1 - p)).mean(axis=0)) / z.shape[1]
    return np.eye(z.shape[1]) * 2 / (TEMPERATURE**2 * z.var(axis=0).sum())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "linear"])
def test_sensitivity_is_the_fisher_information(kind):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(3, kind, name="end")]
    )
    randomise(model)
    x = samples(model, 20_000)
    hidden, end = np.array(model.layers[0](x)), model.get_layer("end")
    z = hidden @ end.kernel.numpy() + end.bias.numpy()
    own = collected(model, x, batch_size=5000).consumers["end"]
    if kind == "sigmoid":  # outputs are independent, so what is apart cancels out on average
        np.testing.assert_allclose(np.diag(own.sensitivity), np.diag(fisher(kind, z)), rtol=0.05)
    expected = fisher(kind, z)
    np.testing.assert_allclose(own.sensitivity, expected, atol=0.03 * max(expected.max(), 1))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_model_that_is_sure_of_everything_has_sensitivities_too(kind):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(3, kind, name="end")]
    )
    randomise(model)
    model.layers[1].bias.assign([-15.0, 0.0, 15.0])
    x = samples(model, 20_000)
    hidden, end = np.array(model.layers[0](x)), model.get_layer("end")
    z = hidden @ end.kernel.numpy() + end.bias.numpy()
    own = collected(model, x, batch_size=5000).consumers["end"]
    np.testing.assert_allclose(own.sensitivity, fisher(kind, z), atol=0.03)


def test_sensitivity_of_an_earlier_layer_is_pulled_back_through_the_later_ones():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, "tanh"),
            layers.Dense(3, name="middle"),
            layers.Dense(2, name="end"),
        ]
    )
    randomise(model)
    x = samples(model, 20_000)
    own = collected(model, x, batch_size=5000).consumers["middle"]
    kernel, variance = model.get_layer("end").kernel.numpy(), outputs(model, x).var(axis=0).sum()
    np.testing.assert_allclose(own.sensitivity * variance / 2, kernel @ kernel.T, atol=0.05)


def test_sensitivity_adds_up_over_the_positions_of_a_convolution():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(3, 1, activation="tanh"),
            layers.Conv2D(2, 1, name="conv"),
            layers.Flatten(),
        ]
    )
    randomise(model)
    x = samples(model, 20_000)
    own = collected(model, x, batch_size=5000).consumers["conv"]
    variance = outputs(model, x).var(axis=0).sum()
    np.testing.assert_allclose(own.sensitivity * variance / 2, 16 * np.eye(2), atol=0.5)


def small_mlp() -> keras.Model:
    hidden = [layers.Dense(8, "relu", name="hidden"), layers.Dense(3, "softmax", name="end")]
    return randomise(keras.Sequential([keras.Input((6,)), *hidden]))


@pytest.mark.parametrize("data", ["array", "dataset"])
def test_sensitivity_of_some_samples_spread_over_all_is_about_that_of_all(data):
    model, x = small_mlp(), np.repeat(np.eye(6, dtype="float32"), 100, axis=0)
    given = x if data == "array" else tf.data.Dataset.from_tensor_slices(x).batch(50)
    whole, some = (collected(model, given, gradient_samples=n) for n in (None, 100))
    for path, own in whole.consumers.items():
        expected, found = own.sensitivity, some.consumers[path].sensitivity
        assert not np.array_equal(found, expected)
        np.testing.assert_allclose(found, expected, atol=0.3 * np.abs(expected).max())
        np.testing.assert_array_equal(some.consumers[path].moments.second, own.moments.second)


def test_gradients_of_some_samples_are_those_of_a_sample_in_every_few():
    model, x = small_mlp(), np.random.default_rng(0).normal(size=(90, 6))
    found, asked = [], []
    original = calibration.make_step

    def watched(graph, gathering):
        step = original(graph, gathering)

        def run(inputs, seed):
            if gathering.gradients:
                asked.extend(np.asarray(inputs[0]))
            return step(inputs, seed)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "make_step", watched)
        found = collected(model, x.astype("float32"), gradient_samples=30, batch_size=20)
    np.testing.assert_array_equal(asked, x[::3].astype("float32"))
    assert found.samples == 90


def test_without_sensitivity_none_is_gathered():
    model, (x, _) = convnet(), digits_like(16)
    assert collected(model, x, sensitivity=False).consumers["end"].sensitivity is None


# Options


def test_positions_of_a_convolution_are_sampled_down_to_the_limit():
    model, (x, _) = convnet(), digits_like(16)
    counts = {
        positions: collected(model, x, positions=positions).consumers["conv_2"].moments.count.sum()
        for positions in (1, 3, 1000)
    }
    assert counts == {1: 16, 3: 48, 1000: 64}


def test_progress_tells_the_samples_seen():
    seen: list[int] = []
    collected(mlp(), samples(mlp(), 25), batch_size=10, progress=seen.append)
    assert seen == [10, 20, 25]


def test_the_same_seed_gives_the_same_statistics():
    model, (x, _) = convnet(), digits_like(32)
    first, same, other = (
        collected(model, x, seed=seed, positions=2).consumers["conv_2"] for seed in (1, 1, 2)
    )
    assert np.array_equal(first.moments.second, same.moments.second)
    assert np.array_equal(first.sensitivity, same.sensitivity)
    assert not np.array_equal(first.moments.second, other.moments.second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 0}, "folds must be an integer of at least 1. Received: folds=0"),
        ({"folds": 9}, "each of the 9 folds. Received: 8 samples"),
    ],
)
def test_too_few_folds_or_samples_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        collected(mlp(), samples(mlp(), 8), **options)


def test_integer_inputs_are_taken():
    model = keras.Sequential([keras.Input((6,), dtype="int32"), layers.Embedding(9, 4)])
    model.add(layers.GlobalAveragePooling1D())
    model.add(layers.Dense(2))
    x = tf.constant(np.random.default_rng(0).integers(9, size=(12, 6)))
    assert collected(model, x).samples == 12


@pytest.mark.compiled
def test_moments_and_folds_do_not_depend_on_the_size_of_the_batches():
    model = convnet()
    graph, x = sgdap.channel_graph(model), digits_like(23)[0]
    options = {"folds": 4, "positions": 100, "sensitivity": False}
    whole = sgdap.collect_statistics(graph, x, **options, batch_size=23)
    for size in (1, 3, 10):
        parts = sgdap.collect_statistics(graph, x, **options, batch_size=size)
        for path, own in parts.consumers.items():
            for name in ("count", "mean", "second", "zeros", "absolute"):
                expected = getattr(whole.consumers[path].moments, name)
                found = getattr(own.moments, name)
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def widening(kind: str) -> keras.Model:
    """A model whose layer `wide` reads fewer features than it has outputs."""
    wide = {
        "dense": lambda: layers.Dense(9, name="wide"),
        "conv": lambda: layers.Conv2D(20, 2, name="wide"),
        "grouped": lambda: layers.Conv2D(20, 2, groups=2, name="wide"),
        "transposed": lambda: layers.Conv2DTranspose(20, 2, name="wide"),
        "separable": lambda: layers.SeparableConv2D(20, 2, name="wide"),
    }[kind]()
    end = [layers.Flatten(), layers.Dense(3, "softmax", name="end")]
    first = layers.Conv2D(4 if kind == "grouped" else 2, 1, activation="relu", name="first")
    return randomise(keras.Sequential([keras.Input((3, 3, 2)), first, wide, *end]))


@pytest.mark.parametrize("kind", ["dense", "conv", "grouped", "transposed", "separable"])
def test_where_features_are_fewer_the_sensitivity_is_that_of_their_part(kind, monkeypatch):
    model = widening(kind)
    graph, x = sgdap.channel_graph(model), samples(model, 20)
    found = collect_statistics(graph, x).consumers
    monkeypatch.setattr(Place, "weighs_features", False)
    at_outputs = collect_statistics(graph, x).consumers
    for path in (path for path in found if path.startswith("wide")):
        own, expected = found[path], at_outputs[path].sensitivity
        kernel = kernel_matrix(own.place, model.get_layer("wide"))
        assert len(own.sensitivity) == len(kernel) < len(expected)
        wanted = kernel @ expected @ kernel.T
        np.testing.assert_allclose(own.sensitivity, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_diagonal_sensitivity_is_that_of_the_outputs(monkeypatch):
    model = widening("conv")
    graph, x = sgdap.channel_graph(model), samples(model, 20)
    found = collect_statistics(graph, x, sensitivity="diagonal").consumers["wide"]
    layer = model.get_layer("wide")
    np.testing.assert_array_equal(found.weighed_matrix(layer), kernel_matrix(found.place, layer))
    monkeypatch.setattr(Place, "weighs_features", False)
    whole = collect_statistics(graph, x).consumers["wide"]
    np.testing.assert_allclose(found.sensitivity, np.diag(whole.sensitivity), rtol=1e-5)


@pytest.mark.parametrize("sensitivity", ["whole", 1, None])
def test_an_unknown_kind_of_sensitivity_is_refused(sensitivity):
    model = small_mlp()
    with pytest.raises(ValueError, match="sensitivity must be True, False or 'diagonal'. Received"):
        collected(model, samples(model, 20), sensitivity=sensitivity)


def test_a_model_in_the_place_of_its_channels_is_refused_in_words():
    model = mlp()
    with pytest.raises(TypeError, match=r"channels of a model.*sgdap\.channel_graph\(model\)"):
        collect_statistics(model, samples(model, 8))
