"""Consumers' kernels are measured and fitted in the geometry in which they read."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.reconstruction import reconstructed_weights, refitted_weights
from sgdap.reconstruction.refit import in_full_size
from sgdap.statistics.collect import collect_statistics
from sgdap.statistics.moments import moments_of
from tests.models import outputs, randomise, samples

FOLDS = 3

READERS = {
    "SimpleRNN": lambda x: layers.SimpleRNN(4, name="end")(x),
    "LSTM": lambda x: layers.LSTM(4, name="end", return_sequences=True)(x),
    "LSTM without a bias": lambda x: layers.LSTM(4, name="end", use_bias=False)(x),
    "GRU": lambda x: layers.GRU(4, name="end")(x),
    "GRU that resets before": lambda x: layers.GRU(4, name="end", reset_after=False)(x),
    "RNN of a cell": lambda x: layers.RNN(layers.GRUCell(4), name="end")(x),
    "Bidirectional": lambda x: layers.Bidirectional(layers.LSTM(3), name="end")(x),
    "attention to itself": lambda x: layers.MultiHeadAttention(2, 4, 3, name="end")(x, x),
    "grouped queries of attention": lambda x: layers.GroupQueryAttention(4, 4, 2, name="end")(x, x),
    "attention to the inputs": lambda x: layers.MultiHeadAttention(2, 4, name="end")(
        x, keras.ops.ones((2, 5, 3))[:1] * x[:, :5, :3]
    ),
}

# Keras' attention with grouped queries leaves masks on what its own projections read.
KERAS_WARNS = pytest.mark.filterwarnings("ignore:.*was passed an input with a mask attached")

KERNELS = {
    "Bidirectional": (0, 3),
    "attention to itself": (0, 2, 4),
    "grouped queries of attention": (0, 2, 4),
}
"""Numbers of the kernels that read the channels; 0 alone elsewhere."""


def basis(layer: layers.Layer, x: np.ndarray) -> np.ndarray:
    """What a layer with one filter makes for each entry of its kernel alone, `(rows, entries)`."""
    single = type(layer).from_config({**layer.get_config(), "filters": 1, "use_bias": False})
    single.build(x.shape)
    made = []
    for entry in range(single.kernel.numpy().size):
        kernel = np.zeros(single.kernel.shape, "float32")
        kernel.flat[entry] = 1
        single.kernel.assign(kernel)
        made.append(np.ravel(single(x)))
    return np.stack(made, axis=1)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(3, 2, name="end"),
        layers.Conv2DTranspose(3, 2, 2, name="end"),
        layers.Conv2DTranspose(3, (3, 2), 2, "same", name="end"),
        layers.Conv2DTranspose(2, 3, padding="same", dilation_rate=2, name="end"),
    ],
)
def test_the_fitted_kernel_of_a_convolution_is_the_least_squares_optimum(layer):
    layer = type(layer).from_config(layer.get_config())
    inputs = keras.Input((5, 4, 2))
    hidden = layers.Conv2D(6, 2, activation="relu", name="hidden")(inputs)
    model = randomise(keras.Model(inputs, layer(hidden)))
    x = samples(model, 48)
    graph = sgdap.channel_graph(model)
    kept = np.ones(graph.count, bool)
    kept[graph.groups[0].channels[[1, 4]]] = False
    statistics = collect_statistics(graph, x, positions=10**4)
    fitted = reconstructed_weights(graph, statistics, kept)
    made = outputs(keras.Model(inputs, hidden), x)[..., [0, 2, 3, 5]]
    slim = type(layer).from_config(layer.get_config())
    slim.build(made.shape)
    slim.set_weights([fitted["end", 0], fitted["end", 1]])
    wanted = outputs(model, x)
    design = np.column_stack([basis(layer, made), np.ones(wanted[..., 0].size)])
    for output in range(layer.filters):
        target = np.ravel(wanted[..., output])
        (least,) = np.linalg.lstsq(design, target, rcond=None)[1]
        lacking = target - np.ravel(np.array(slim(made))[..., output])
        assert (lacking**2).sum() <= 1.001 * least


def model_with(reader: str, width: int = 10, activation: str = "relu") -> keras.Model:
    """Ten channels that one layer reads, at steps that are there: others are masked."""
    inputs = keras.Input((6, 5))
    x = layers.Masking(name="mask")(inputs)
    x = layers.Dense(width, activation, name="made")(x)
    x = READERS[reader](x)
    if x.ndim == 3:
        x = layers.GlobalAveragePooling1D()(x)
    return randomise(keras.Model(inputs, layers.Dense(3, "softmax", name="last")(x)))


def data(model: keras.Model, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples with some steps left out, and a mask of those that are there."""
    x, random = samples(model, count), np.random.default_rng(1)
    there = np.arange(6) < random.integers(3, 7, size=(count, 1))
    return x * there[..., None], there


def read_by(model: keras.Model, x: np.ndarray) -> np.ndarray:
    made = keras.Model(model.input, model.get_layer("made").output)
    return outputs(made, x).astype(np.float64)


def kernels_of(model: keras.Model, reader: str) -> dict[int, np.ndarray]:
    weights = model.get_layer("end").get_weights()
    return {number: weights[number] for number in KERNELS.get(reader, (0,))}


@KERAS_WARNS
@pytest.mark.parametrize("reader", READERS)
def test_moments_are_those_of_the_steps_that_are_there(reader):
    model = model_with(reader)
    x, there = data(model, 30)
    statistics = collect_statistics(sgdap.channel_graph(model), x, folds=FOLDS, batch_size=12)
    own = [s for s in statistics.consumers.values() if s.place.path.startswith("end")]
    own = [s for s in own if s.place.is_linear and len(s.place.features) == 10]
    rows = read_by(model, x)
    fold = np.broadcast_to((np.arange(30) % FOLDS)[:, None], there.shape)
    expected = moments_of(rows[there], fold[there], FOLDS)
    assert sorted(s.place.kernel for s in own) == sorted(kernels_of(model, reader))
    for found in own:
        np.testing.assert_array_equal(found.moments.count, expected.count)
        np.testing.assert_allclose(found.moments.mean, expected.mean, atol=1e-5)
        scale = np.abs(expected.second).max()
        np.testing.assert_allclose(found.moments.second, expected.second, atol=1e-5 * scale)


@KERAS_WARNS
@pytest.mark.parametrize("reader", READERS)
def test_fitted_kernels_are_the_least_squares_optimum(reader):
    model = model_with(reader)
    x, there = data(model, 60)
    graph = sgdap.channel_graph(model)
    (group,) = (group for group in graph.groups if group.name == "made")
    kept = np.ones(graph.count, bool)
    kept[group.channels[[1, 4, 8]]] = False
    stays = kept[group.channels]
    fitted = reconstructed_weights(graph, collect_statistics(graph, x), kept)
    rows = read_by(model, x)[there]
    weights = model.get_layer("end").get_weights()
    has_bias = "without" not in reader
    design = np.column_stack([rows[:, stays], np.ones((len(rows), int(has_bias)))])
    for number, kernel in kernels_of(model, reader).items():
        kernel = kernel.reshape(10, -1)
        wanted = np.linalg.lstsq(design, rows @ kernel, rcond=None)[0]
        found = fitted["end", number].reshape(7, -1)
        np.testing.assert_allclose(found, wanted[:7], atol=2e-3)
        if has_bias:
            step = 1 if "attention" in reader else 2
            before, after = weights[number + step], fitted["end", number + step]
            moved = (after - before).reshape(-1, kernel.shape[1])
            np.testing.assert_allclose(moved[0], wanted[7], atol=2e-3)
            np.testing.assert_array_equal(moved[1:], 0)


@pytest.mark.parametrize("reader", [*list(READERS)[:7], "attention to itself"])
def test_linear_combinations_of_channels_leave_without_loss(reader):
    model = model_with(reader, 12, "linear")
    x, there = data(model, 60)
    plan = sgdap.plan(
        model, x, sgdap.Budget(params=0.999), layers=["made"], overrides={"made": 0.5}
    )
    (group,) = (group for group in plan.groups if group.name == "made")
    assert len(group.kept) == 6
    assert group.error == pytest.approx(0, abs=1e-4)
    slim, whole = outputs(sgdap.apply(model, plan), x), outputs(model, x)
    np.testing.assert_allclose(slim, whole, atol=1e-4)


def test_errors_are_weighed_by_what_each_kernel_alone_does_with_them():
    """Copies of the channels (by a dense layer of ones and zeros) show what each reader does."""

    def network(copy) -> keras.Model:
        inputs = keras.Input((6, 5))
        x = layers.Dense(10, "relu", name="made")(inputs)
        attention = layers.MultiHeadAttention(2, 4, name="attention")
        both = [
            attention(copy("query")(x), copy("value")(x), copy("key")(x)),
            layers.LSTM(3, return_sequences=True, name="lstm")(copy("lstm")(x)),
            layers.Dense(2, name="other")(x),
        ]
        x = layers.Flatten()(layers.Concatenate()(both))
        return randomise(keras.Model(inputs, layers.Dense(3, "softmax", name="last")(x)))

    model = network(lambda name: lambda x: x)
    copied = network(lambda name: layers.Dense(10, name=f"copy_{name}"))
    for layer in copied.layers:
        if layer.name.startswith("copy"):
            layer.set_weights([np.eye(10), np.zeros(10)])
        elif layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    x = samples(model, 40)
    found, expected = (
        collect_statistics(sgdap.channel_graph(own), x).consumers for own in (model, copied)
    )
    for name in ("query", "value", "key", "lstm"):
        own = found[name if name == "lstm" else f"attention/{name}"].sensitivity
        wanted = expected[f"copy_{name}"].sensitivity
        np.testing.assert_allclose(own, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("reader", ["GRU", "Bidirectional", "attention to itself"])
def test_what_a_slim_kernel_lacks_is_made_up_for_on_what_it_gets(reader):
    """The layer before changes too, so what its channels give in the slim model differs."""
    model = model_with(reader)
    x, there = data(model, 300)
    graph = sgdap.channel_graph(model)
    (group,) = (group for group in graph.groups if group.name == "made")
    kept = np.ones(graph.count, bool)
    kept[group.channels[[1, 4, 8]]] = False
    stays = kept[group.channels]
    statistics = collect_statistics(graph, x)
    alone = reconstructed_weights(graph, statistics, kept)
    alone["made", 0] = model.get_layer("made").get_weights()[0][:, stays] * 0.7
    fitted = refitted_weights(graph, statistics, kept, alone, x)
    rows = read_by(model, x)[there]
    slim = in_full_size(graph, kept, alone)["made", 0]
    changed = keras.models.clone_model(model)
    changed.set_weights(model.get_weights())
    made = changed.get_layer("made")
    made.set_weights([slim, made.get_weights()[1]])
    given = read_by(changed, x)[there][:, stays]
    step = 1 if "attention" in reader else 2
    for number, kernel in kernels_of(model, reader).items():
        kernel = kernel.reshape(10, -1)
        bias = model.get_layer("end").get_weights()[number + step]
        bias = bias.reshape(-1, kernel.shape[1])[0]

        def lacking(weights, number=number, kernel=kernel, bias=bias):
            own = weights["end", number + step].reshape(-1, kernel.shape[1])[0]
            made = given @ weights["end", number].reshape(7, -1) + own
            return float(((rows @ kernel + bias - made) ** 2).sum())

        design = np.column_stack([given, np.ones(len(given))])
        least = float(np.linalg.lstsq(design, rows @ kernel, rcond=None)[1].sum())
        assert lacking(fitted) < 1.02 * least < 0.9 * lacking(alone)


def grouped(activation: str, format: str = "channels_last") -> keras.Model:
    """Twelve channels in tied threes, which a convolution of three groups reads."""
    inputs = keras.Input((7, 2))
    x = layers.Conv1D(12, 2, activation=activation, name="made")(inputs)
    if format == "channels_first":
        x = layers.Permute((2, 1))(x)
    x = layers.Conv1D(6, 3, groups=3, activation="tanh", data_format=format, name="end")(x)
    return randomise(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))


@pytest.mark.compiled
@pytest.mark.parametrize("format", ["channels_last", "channels_first"])
def test_each_group_of_a_convolution_is_the_least_squares_optimum_on_its_own_channels(format):
    model = grouped("relu", format)
    x = samples(model, 60)
    graph = sgdap.channel_graph(model)
    (group,) = (own for own in graph.groups if own.name == "made")
    assert group.size == 4
    kept = np.ones(graph.count, bool)
    kept[group.channels[1]] = False
    statistics = collect_statistics(graph, x)
    fitted = reconstructed_weights(graph, statistics, kept)
    read = read_by(model, x)
    kernel, bias = model.get_layer("end").get_weights()
    for number in range(3):
        own, outs = read[..., 4 * number : 4 * number + 4], slice(2 * number, 2 * number + 2)
        rows = np.concatenate([own[:, i : i + 4] for i in range(3)], axis=-1).reshape(-1, 12)
        moments = statistics.consumers[f"end:{number}"].moments.total()
        np.testing.assert_allclose(moments.mean[0], rows.mean(0), atol=1e-5)
        covariance = np.cov(rows.T, bias=True)
        np.testing.assert_allclose(moments.second[0] / len(rows), covariance, atol=1e-4)
        stays = np.arange(12) % 4 != 1
        design = np.column_stack([rows[:, stays], np.ones(len(rows))])
        wanted = np.linalg.lstsq(design, rows @ kernel[..., outs].reshape(12, 2), rcond=None)[0]
        found = fitted["end", 0][..., outs].reshape(9, 2)
        np.testing.assert_allclose(found, wanted[:9], atol=2e-3)
        np.testing.assert_allclose(fitted["end", 1][outs] - bias[outs], wanted[9], atol=2e-3)


@pytest.mark.compiled
def test_linear_combinations_in_each_group_leave_without_loss():
    model = grouped("linear")
    kernel, bias = model.get_layer("made").get_weights()
    for first in (0, 4, 8):  # of four channels of each group two are of the others
        for own, others in ((1, (0.5, -1)), (2, (2, 1))):
            kernel[..., first + own] = kernel[..., [first, first + 3]] @ others
            bias[first + own] = 1 + own
    model.get_layer("made").set_weights([kernel, bias])
    x = samples(model, 60)
    plan = sgdap.plan(
        model, x, sgdap.Budget(params=0.999), layers=["made"], overrides={"made": 0.5}
    )
    (group,) = (group for group in plan.groups if group.name == "made")
    assert len(group.kept) == 2
    assert group.error == pytest.approx(0, abs=1e-4)
    slim, whole = outputs(sgdap.apply(model, plan), x), outputs(model, x)
    np.testing.assert_allclose(slim, whole, atol=1e-3)


@pytest.mark.parametrize("between", ["none", "depthwise", "grouped by one"])
def test_the_mean_of_a_constant_channel_goes_into_the_next_bias(between):
    inputs = keras.Input((8, 2))
    x = layers.Conv1D(4, 2, activation="relu", name="made")(inputs)
    if between == "depthwise":
        x = layers.DepthwiseConv1D(3, depth_multiplier=2, activation="relu")(x)
    elif between == "grouped by one":
        x = layers.Conv1D(8, 3, groups=4, activation="relu")(x)
    x = layers.Conv1D(3, 2, name="next")(x)
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    kernel, bias = model.get_layer("made").get_weights()
    kernel[..., 2] = 0
    bias[2] = 3
    model.get_layer("made").set_weights([kernel, bias])
    x = samples(model, 40)
    plan = sgdap.plan(
        model, x, sgdap.Budget(params=0.999), layers=["made"], overrides={"made": 0.75}
    )
    (group,) = (group for group in plan.groups if group.name == "made")
    assert group.kept == (0, 1, 3)
    slim, whole = outputs(sgdap.apply(model, plan), x), outputs(model, x)
    np.testing.assert_allclose(slim, whole, atol=1e-4)
