"""What a compiled model says of its losses is read for each output."""

import keras
import numpy as np
import pytest
from keras import layers, losses

import sgdap
from sgdap.execution.losses import model_loss
from sgdap.execution.output_scales import settled_losses

FAR = {"batch_size": 32, "samples": None, "most": 32, "seed": 0}


def two_heads(first="softmax", second=None, **compiled) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    trunk = layers.Dense(8, "relu")(inputs)
    ends = layers.Dense(4, first, name="class")(trunk), layers.Dense(2, second, name="place")(trunk)
    model = keras.Model(inputs, list(ends))
    if compiled:
        model.compile(**compiled)
    return model


def read(model):
    return model_loss(sgdap.channel_graph(model))


def settled(model, data):
    graph = sgdap.channel_graph(model)
    return settled_losses(graph, model_loss(graph), data, **FAR)


def inputs(count=64):
    return np.random.default_rng(0).normal(size=(count, 6)).astype("float32")


def square(y, p):
    return keras.ops.mean(keras.ops.square(y - p), axis=-1)


# Reading


@pytest.mark.parametrize(
    ("end", "activation", "kind"),
    [
        (keras.ops.softmax, "softmax", "categorical"),
        (keras.ops.sigmoid, "sigmoid", "bernoulli"),
        (layers.Activation("softmax"), "softmax", "categorical"),
        (keras.ops.log_softmax, "log_softmax", "categorical"),
        (layers.Activation("log_softmax"), "log_softmax", "categorical"),
        (layers.Dense(4, "log_softmax"), "log_softmax", "categorical"),
    ],
)
@pytest.mark.parametrize("behind", [(), (layers.Activation("linear", dtype="float32"),)])
def test_a_head_tells_what_it_is_without_a_loss(end, activation, kind, behind):
    inputs = keras.Input((6,))
    z = end(layers.Dense(4)(inputs))
    for layer in behind:
        z = layer(z)
    (term,) = read(keras.Model(inputs, z)).known
    assert (term.activation, term.kind) == (activation, kind)
    assert term.logits == (activation == "log_softmax")


@pytest.mark.parametrize(
    ("loss", "kind", "logits"),
    [
        ("categorical_crossentropy", "categorical", False),
        ("sparse_categorical_crossentropy", "categorical", False),
        (losses.CategoricalCrossentropy(from_logits=True), "categorical", True),
        (losses.SparseCategoricalCrossentropy(from_logits=True), "categorical", True),
        (losses.CategoricalFocalCrossentropy(from_logits=True), "categorical", True),
        (losses.binary_crossentropy, "bernoulli", False),
        (losses.BinaryFocalCrossentropy(), "bernoulli", False),
        ("kl_divergence", "categorical", False),
        ("poisson", "poisson", False),
        ("mse", "squared", False),
        (losses.MeanSquaredError(), "squared", False),
    ],
)
def test_losses_of_keras_are_known_however_they_are_named(loss, kind, logits):
    found = read(two_heads(loss=[loss, "mse"], loss_weights=[0.5, 2.0]))
    assert [own.kind for own in found.known] == [kind, "squared"]
    assert [own.weight for own in found.known] == [0.5, 2.0]
    assert found.known[0].logits == logits
    assert not found.open and not found.notes


def test_focal_losses_keep_their_numbers():
    both = [
        losses.CategoricalFocalCrossentropy(alpha=0.5, gamma=3.0),
        losses.BinaryFocalCrossentropy(gamma=1.0),
    ]
    first, second = read(two_heads(loss=both)).known
    assert (first.gamma, first.alpha) == (3.0, 0.5)
    assert (second.gamma, second.alpha) == (1.0, None)  # classes are not balanced


@pytest.mark.parametrize("loss", ["crossentropy", {"class": "crossentropy", "place": "mse"}])
def test_one_loss_holds_for_all_outputs_and_a_dict_goes_by_their_names(loss):
    found = read(two_heads(loss=loss)).known
    kinds = ["categorical", "categorical" if isinstance(loss, str) else "squared"]
    assert [own.kind for own in found] == kinds


def test_outputs_in_a_dict_keep_their_losses():
    inputs = keras.Input((6,))
    hidden = layers.Dense(8)(inputs)
    made = {"z": layers.Dense(3, "softmax")(hidden), "a": layers.Dense(1)(hidden)}
    model = keras.Model(inputs, made)
    model.compile(
        loss={"z": "sparse_categorical_crossentropy", "a": "mse"}, loss_weights={"z": 3, "a": 5}
    )
    found = {own.kind: own for own in read(model).known}
    outputs = keras.tree.flatten(model.output)
    assert outputs[found["categorical"].output].shape == (None, 3)
    assert outputs[found["squared"].output].shape == (None, 1)
    assert (found["categorical"].weight, found["squared"].weight) == (3, 5)


def test_a_loss_that_adds_up_is_marked():
    found = read(two_heads(loss=[losses.CategoricalCrossentropy(reduction="sum"), "mse"]))
    assert [own.summed for own in found.known] == [True, False]


def test_reading_leaves_the_compiled_loss_as_it_was():
    model = two_heads(loss=["categorical_crossentropy", "mse"])
    names = [metric.name for metric in model.metrics]
    read(model)
    assert [metric.name for metric in model.metrics] == names
    model.fit(inputs(8), [np.eye(4)[[0] * 8], np.zeros((8, 2))], verbose=0)


class OwnLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(y_pred[0])


@pytest.mark.parametrize(
    ("model", "note"),
    [
        (lambda: two_heads(), "not compiled with a loss"),
        (lambda: two_heads(loss=["mse"] * 3), "compiled losses do not fit"),
        (lambda: two_heads(loss=["mse", None]), "Output 'place' has no loss of its own"),
        (lambda: OwnLoss(two_heads().inputs, two_heads().outputs), "computes its loss itself"),
    ],
)
def test_what_can_not_be_read_is_said(model, note):
    if "itself" in note:
        base = two_heads()
        made = OwnLoss(base.inputs, base.outputs)
        made.compile(loss=["mse", "mse"])
    else:
        made = model()
    found = read(made)
    assert note in found.notes[0]
    assert len(found.known) + len(found.open) == 2


def test_an_unknown_loss_of_a_softmax_counts_as_its_cross_entropy():
    found = read(two_heads(loss=[lambda y, p: square(y, p), "mse"], loss_weights=[7.0, 1.0]))
    assert (found.known[0].kind, found.known[0].weight) == ("categorical", 7.0)
    assert "Output" not in found.notes[0] and "output 'class' is not known" in found.notes[0]


# What only data tell


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_an_output_without_a_loss_counts_relative_to_its_variance(unit):
    model, x = two_heads(), inputs()
    layer = model.get_layer("place")
    layer.set_weights([unit * w + 7 * unit * (w.ndim == 1) for w in layer.get_weights()])
    (_, place), _ = settled(model, x)
    variance = np.array(model(x)[1], np.float64).var(axis=0).mean()
    assert place.weight * variance == pytest.approx(1, rel=1e-4)


def test_an_output_that_never_changes_counts_relative_to_its_square():
    model = two_heads()
    model.get_layer("place").set_weights([np.zeros((8, 2)), np.array([3.0, 4.0])])
    (_, place), _ = settled(model, inputs())
    assert place.weight == pytest.approx(1 / 12.5)


@pytest.mark.parametrize("with_targets", [True, False])
@pytest.mark.parametrize("loss", ["mse", square, "mae", losses.Huber(1e6)])
def test_measured_losses_count_as_the_closed_form_says(loss, with_targets):
    model = two_heads(loss=["categorical_crossentropy", loss], loss_weights=[1.0, 4.0])
    x = inputs(2000)
    y = np.array(model(x)[1])
    deviation = y.std(axis=0)
    data = (x, [np.eye(4)[[0] * 2000], y]) if with_targets else x
    (_, place), notes = settled(model, data)
    if loss is square and not with_targets:
        assert "no targets" in notes[0]
        assert place.weight == pytest.approx(1 / y.var(axis=0).mean(), rel=1e-4)
        return
    expected = {"mse": 4.0, square: 4.0, "mae": 4 / (2 * 0.3 * deviation)}
    np.testing.assert_allclose(place.weight, expected.get(loss, 2.0), rtol=1e-3)
    assert not notes


def test_residuals_soften_the_kink_of_an_absolute_error():
    model = two_heads(loss=["categorical_crossentropy", "mae"])
    x = inputs(4000)
    predicted, classes = np.array(model(x)[1]), np.eye(4)[[0] * 4000]
    apart = 10 * predicted.std(axis=0) * np.random.default_rng(1).normal(size=predicted.shape)
    (_, place), _ = settled(model, (x, [classes, predicted + apart]))
    density = 1 / np.sqrt(2 * np.pi) / (10 * predicted.std(axis=0))  # |r|'' is twice that
    np.testing.assert_allclose(place.weight, density, rtol=0.2)


@pytest.mark.parametrize(
    "y",
    [
        np.zeros((64, 9)),
        [np.zeros((64, 4))] * 3,
        [np.zeros((64, 4)), np.full((64, 2), np.nan)],
    ],
)
def test_targets_that_do_not_fit_leave_the_outputs_own_scale(y):
    model = two_heads(loss=["categorical_crossentropy", square])
    x = inputs()
    (_, place), notes = settled(model, (x, y))
    variance = np.array(model(x)[1], np.float64).var(axis=0).mean()
    assert place.weight * variance == pytest.approx(1, rel=1e-4)
    assert "could not be measured" in notes[0]


def test_targets_are_found_by_the_names_of_the_outputs():
    model = two_heads(loss={"class": None, "place": square})
    x = inputs()
    for y in ({"place": np.zeros((64, 2)), "class": np.zeros(64)}, np.zeros((64, 2))):
        terms, notes = settled(model, (x, y))
        np.testing.assert_allclose(terms[1].weight, 1, rtol=1e-3)
        assert len(notes) == 1 and "'class' has no loss" in notes[0]


def test_a_concave_loss_does_not_reward_errors():
    model = two_heads(loss=["categorical_crossentropy", lambda y, p: -square(y, p)])
    y = [np.zeros((64, 4)), np.zeros((64, 2))]
    (_, place), _ = settled(model, (inputs(), y))
    assert np.all(place.weight > 0)
