"""A teacher has a say in `fit`, and a plain model is left; the oracle is NumPy on the outputs."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(12, 6)).astype("float32")
Y = RANDOM.integers(3, size=12)
W = RANDOM.uniform(0.2, 3, size=12).astype("float32")
HOOKED = {"train_step", "compute_loss", "compute_metrics", "make_train_function"}


def network(width=5, head="softmax", extra=(), **compiled) -> keras.Model:
    parts = [keras.Input((6,)), layers.Dense(width, "relu"), *extra, layers.Dense(3, head)]
    model = keras.Sequential(parts)
    options = {"optimizer": keras.optimizers.SGD(0.1), "loss": "sparse_categorical_crossentropy"}
    model.compile(**(options | compiled))
    return model


def teach(model, teacher, x=X, y=Y, fit=None, **options) -> dict:
    """The logs of one step on all samples, which tell of the model as it was before."""
    callback = sgdap.DistillationCallback(teacher, **options)
    arguments = {"batch_size": len(X), "verbose": 0, "callbacks": [callback]} | (fit or {})
    logs = model.fit(x, y, **arguments).history
    return {name: values[-1] for name, values in logs.items()}


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softened(p, q, t):
    """T² KL of probabilities at a temperature, for each sample."""
    p, q = (log_softmax(np.log(np.asarray(own, "float64")) / t) for own in (p, q))
    return t**2 * (np.exp(p) * (p - q)).sum(-1)


def outputs(*models):
    return [model.predict(X, verbose=0) for model in models]


def test_the_loss_is_that_of_the_labels_and_the_softened_divergence_of_the_logits():
    model, teacher = network(), network(20)
    q, p = outputs(model, teacher)
    labels = -np.log(q[np.arange(12), Y]).mean()
    divergence = softened(p, q, 3).mean()
    logs = teach(model, teacher, temperature=3, label_weight=0.5, weight=2)
    assert logs["distillation_loss"] == pytest.approx(divergence, rel=1e-4)
    assert logs["loss"] == pytest.approx(0.5 * labels + 2 * divergence, rel=1e-4)


def test_gradients_are_those_of_this_loss():
    model, teacher = network(extra=[layers.Dense(4)]), network(20)
    kernel = model.layers[-1].kernel
    (q, p), before = outputs(model, teacher), kernel.numpy()
    into = keras.Model(model.inputs, model.layers[-2].output).predict(X, verbose=0)
    p, q = (np.exp(log_softmax(np.log(own) / 2)) for own in (p, q))
    gradient = into.T @ (2 * (q - p)) / 12
    teach(model, teacher, temperature=2, label_weight=0)
    np.testing.assert_allclose(before - kernel.numpy(), 0.1 * gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("fit", "weights"),
    [
        ({"sample_weight": W}, W),
        ({"class_weight": {0: 1.0, 1: 5.0, 2: 0.1}}, np.array([1.0, 5.0, 0.1])[Y]),
    ],
    ids=["sample_weight", "class_weight"],
)
def test_weights_of_samples_count_for_the_teacher_too(fit, weights):
    model, teacher = network(), network(20)
    q, p = outputs(model, teacher)
    divergence = (weights * softened(p, q, 4)).mean()
    labels = (weights * -np.log(q[np.arange(12), Y])).mean()
    logs = teach(model, teacher, fit=fit)
    assert logs["distillation_loss"] == pytest.approx(divergence, rel=1e-4)
    assert logs["loss"] == pytest.approx(labels + divergence, rel=1e-4)


def test_masked_positions_do_not_count():
    def tagger(width):
        inputs = keras.Input((4,))
        x = layers.Embedding(5, width, "normal", mask_zero=True)(inputs)
        model = keras.Model(inputs, layers.Dense(3, "softmax")(x))
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    words = RANDOM.integers(5, size=(12, 4))
    model, teacher = tagger(3), tagger(6)
    q, p = (own.predict(words, verbose=0) for own in (model, teacher))
    logs = teach(model, teacher, words, RANDOM.integers(3, size=(12, 4)), temperature=1)
    expected = softened(p, q, 1)[words > 0].mean()
    assert logs["distillation_loss"] == pytest.approx(expected, rel=2e-3)


def heads(width, *ends, losses=None, **compiled):
    inputs = keras.Input((6,))
    x = layers.Dense(width, "relu")(inputs)
    names = ("class", "bits", "place")
    made = [layers.Dense(3, end, name=name)(x) for name, end in zip(names, ends, strict=True)]
    model = keras.Model(inputs, made)
    if losses:
        model.compile("sgd", losses, **compiled)
    return model


def sigmoid_divergence(p, q, t):
    both = zip((p, 1 - p), (q, 1 - q), strict=True)
    return t**2 * sum(own * np.log(own / other) for own, other in both).mean(-1)


def test_each_output_is_compared_by_its_own_kind_and_loss_weight():
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = heads(
        *(5, None, "sigmoid", None),
        losses=[crossentropy, "binary_crossentropy", "mse"],
        loss_weights=[0.5, 2.0, 3.0],
    )
    teacher = heads(20, "softmax", "sigmoid", None)
    (a, b, c), (p, d, e) = outputs(model, teacher)
    a = np.exp(log_softmax(a))
    b, d = (1 / (1 + (1 / own.astype("float64") - 1) ** 0.5) for own in (b, d))  # at T = 2
    parts = softened(p, a, 2), sigmoid_divergence(d, b, 2), ((c - e) ** 2).mean(-1)
    targets = [Y, np.ones((12, 3)), np.ones((12, 3))]
    weights = [W, W[::-1], W**2]
    means = [(own * w).mean() for own, w in zip(parts, weights, strict=True)]
    logs = teach(model, teacher, y=targets, temperature=2, fit={"sample_weight": weights})
    expected = 0.5 * means[0] + 2 * means[1] + 3 * means[2]
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


def test_logits_are_compared_as_what_the_compiled_loss_of_the_teacher_says():
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model, teacher = network(head=None, loss=None), network(20, None, loss=crossentropy)
    q, p = (np.exp(log_softmax(z)) for z in outputs(model, teacher))
    logs = teach(model, teacher, y=None)
    assert logs["distillation_loss"] == pytest.approx(softened(p, q, 4).mean(), rel=1e-4)


class Counted(layers.Layer):
    """Counts how often Python runs it: every call, or when a function is compiled every trace."""

    def __init__(self, **options):
        super().__init__(**options)
        self.runs = 0

    def call(self, x):
        self.runs += 1
        return 1.0 * x


def test_the_student_runs_once_a_step_and_its_batch_norm_updates_once():
    norm, counted = layers.BatchNormalization(momentum=0.9), Counted()
    model, teacher = network(extra=[counted, norm]), network(20)
    into = keras.Model(model.inputs, model.layers[0].output).predict(X, verbose=0)
    counted.runs = 0
    teach(model, teacher)
    np.testing.assert_allclose(norm.moving_mean, 0.1 * into.mean(0), rtol=1e-4, atol=1e-6)
    assert counted.runs == 2  # Keras builds `fit` with one, on symbols


def test_the_teacher_predicts_and_stays_as_it_is():
    extra = [layers.BatchNormalization(), layers.Dropout(0.9)]
    model, teacher = network(), network(20, extra=extra)
    q, p = outputs(model, teacher)
    before = [v.numpy() for v in teacher.variables]
    logs = teach(model, teacher)
    assert logs["distillation_loss"] == pytest.approx(softened(p, q, 4).mean(), rel=1e-4)
    for variable, value in zip(teacher.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert all(layer.trainable for layer in teacher.layers)


def test_a_head_of_half_precision_is_compared_by_its_logits():
    """Its probabilities are 0 where they are small, and then tell nothing of a soft target."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = network(20)
    finally:
        keras.config.set_dtype_policy("float32")
    model, teacher = network(20), network(20)
    model.layers[1].bias.assign([0, 0, 30])
    half.set_weights(model.get_weights())
    found = [teach(own, teacher, temperature=8)["distillation_loss"] for own in (model, half)]
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert half.predict(X, verbose=0).min() < 1e-7


@pytest.mark.compiled
@pytest.mark.parametrize("jit", [False, True])
def test_the_step_is_compiled_once_for_each_architecture(jit):
    def run(jit, *others, counted=None):
        keras.utils.set_random_seed(0)
        model = network(12, jit_compile=jit)
        teacher = network(20, extra=[counted or Counted()])
        history = model.fit(
            *(X, Y),
            batch_size=4,
            epochs=4,
            shuffle=False,
            verbose=0,
            callbacks=[*others, sgdap.DistillationCallback(teacher)],
        )
        return history.history["loss"]

    counted = Counted()
    losses = run(jit, counted=counted)
    once = counted.runs
    assert losses == pytest.approx(run(False), rel=1e-4)
    counted = Counted()
    pruner = sgdap.SGDAPCallback(
        sgdap.Budget(flops=0.5), schedule="one_shot", begin_epoch=1, jit_compile=None, verbose=0
    )
    run(jit, pruner, counted=counted)
    assert len(pruner.rounds) == 1
    assert counted.runs <= 2 * once


def test_validation_judges_by_the_compiled_loss():
    model, teacher = network(metrics=["accuracy"]), network(20)
    logs = teach(model, teacher, fit={"validation_data": (X, Y)})
    assert logs["val_loss"] == pytest.approx(model.evaluate(X, Y, verbose=0)[0], rel=1e-5)
    assert set(logs) == {"accuracy", "loss", "distillation_loss", "val_accuracy", "val_loss"}


def test_penalties_count_whole_whatever_the_labels_do():
    held = layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.1))
    model, teacher = network(extra=[held]), network(20)
    penalty = 0.1 * (held.kernel.numpy() ** 2).sum()
    logs = teach(model, teacher, label_weight=0)
    assert logs["loss"] - logs["distillation_loss"] == pytest.approx(penalty, rel=1e-4)


@pytest.mark.parametrize("compiled", [{"loss": None}, {"metrics": ["accuracy"]}])
def test_labels_may_be_absent(compiled):
    model, teacher = network(**compiled), network(20)
    if compiled.get("loss", True):
        model.fit(X, Y, verbose=0)
    logs = teach(model, teacher, y=None, fit={"epochs": 2})
    assert logs["loss"] == pytest.approx(logs["distillation_loss"])


def test_the_mean_in_the_logs_begins_anew_in_each_epoch():
    model, teacher = network(optimizer=keras.optimizers.SGD(0.0)), network(20)
    q, p = outputs(model, teacher)
    callback = sgdap.DistillationCallback(teacher)
    history = model.fit(X, Y, batch_size=5, epochs=3, verbose=0, callbacks=[callback])
    expected = [softened(p, q, 4).mean()] * 3
    assert history.history["distillation_loss"] == pytest.approx(expected, rel=1e-4)


# What is left behind


class Stopping(keras.callbacks.Callback):
    def __init__(self, when):
        super().__init__()
        self.when = when

    def on_train_batch_end(self, batch, logs=None):
        if self.when == "batch":
            raise KeyboardInterrupt


class Breaking(layers.Layer):
    def call(self, x, training=False):
        if training:
            raise KeyboardInterrupt
        return x


def plain_loss(model) -> float:
    return model.fit(X, Y, batch_size=len(X), verbose=0).history["loss"][0]


@pytest.mark.parametrize("ends", ["well", "step", "batch"])
def test_a_plain_model_is_left(ends):
    model = network(extra=[Breaking()] if ends == "step" else [])
    callbacks = [sgdap.DistillationCallback(network(20)), Stopping(ends)]
    if ends == "well":
        model.fit(X, Y, verbose=0, callbacks=callbacks)
    else:
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, Y, verbose=0, callbacks=callbacks)
    if ends != "batch":  # after an error of another callback the next use gives back
        assert HOOKED.isdisjoint(vars(model))
    if ends != "step":
        expected = model.evaluate(X, Y, verbose=0)
        assert plain_loss(model) == pytest.approx(expected, rel=1e-4)
        assert HOOKED.isdisjoint(vars(model))


def test_a_train_step_of_ones_own_is_extended_and_given_back():
    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            y_pred = self(x, training=True)
            return {"own": self.compute_loss(x, y, y_pred)}

    inputs, teacher = keras.Input((6,)), network(20)
    own = Own(inputs, layers.Dense(3, "softmax")(inputs))
    own.compile("sgd", "sparse_categorical_crossentropy")
    q, p = outputs(own, teacher)
    logs = teach(own, teacher)
    labels = -np.log(q[np.arange(12), Y]).mean()
    assert logs["own"] == pytest.approx(labels + softened(p, q, 4).mean(), rel=1e-4)
    assert HOOKED.isdisjoint(vars(own))


def test_it_stands_beside_the_pruning_callback_in_either_order():
    for first in (True, False):
        model, teacher = network(12), network(20)
        pruner = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5), verbose=0)
        callbacks = [pruner, sgdap.DistillationCallback(teacher)]
        history = model.fit(
            *(X, Y), epochs=3, verbose=0, callbacks=callbacks if first else callbacks[::-1]
        )
        assert model.layers[0].units < 12
        assert len(history.history["distillation_loss"]) == 3
        assert HOOKED.isdisjoint(vars(model))


# What is refused


class Silent(keras.Model):
    def train_step(self, data):
        x, y = data
        return {"own": keras.ops.mean(self(x, training=True))}


def test_a_train_step_that_never_asks_for_the_loss_is_refused():
    inputs = keras.Input((6,))
    model = Silent(inputs, layers.Dense(3, "softmax")(inputs))
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="never calls compute_loss"):
        teach(model, network(20))
    assert HOOKED.isdisjoint(vars(model))


def diverged():
    teacher = network(20)
    teacher.layers[0].kernel.assign(np.full((6, 20), np.nan))
    return teacher


def test_what_is_no_teacher_is_refused_at_once():
    with pytest.raises(TypeError, match=r"keras\.Model. Received: None"):
        sgdap.DistillationCallback(None)


def in_dict(width, names, into=("a", "b")):
    inputs = [keras.Input((3,), name=name) for name in into]
    x = layers.Dense(width, "relu")(layers.Concatenate()(inputs))
    made = {name: layers.Dense(2)(x) for name in names}
    model = keras.Model(dict(zip(into, inputs, strict=True)), made)
    model.compile("sgd", "mse")
    return model


def test_outputs_in_dicts_are_compared_by_name():
    model, teacher = in_dict(4, "cd"), in_dict(20, "dc")
    x = {"a": X[:, :3], "b": X[:, 3:]}
    mine, theirs = (own.predict(x, verbose=0) for own in (model, teacher))
    logs = teach(model, teacher, x, {name: np.zeros((12, 2)) for name in "cd"})
    expected = sum(((mine[name] - theirs[name]) ** 2).mean() for name in "cd")
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (lambda: in_dict(20, "ce"), "outputs of the same names as the student, c, d. Received: c"),
        (lambda: in_dict(20, "cd", "ax"), "inputs of the same names as the student, a, b"),
    ],
)
def test_outputs_and_inputs_of_other_names_are_refused(teacher, words):
    x = {"a": X[:, :3], "b": X[:, 3:]}
    with pytest.raises(ValueError, match=words):
        teach(in_dict(4, "cd"), teacher(), x, {name: np.zeros((12, 2)) for name in "cd"})


def other(shape, units):
    return keras.Sequential([keras.Input(shape), layers.Dense(units, "softmax")])


@pytest.mark.parametrize(
    ("teacher", "error", "words"),
    [
        (lambda model: model, ValueError, "the student itself"),
        (lambda model: keras.Sequential(model.layers), ValueError, "shares weights"),
        (lambda model: other((6,), 4), ValueError, "outputs of the same shapes"),
        (lambda model: other((7,), 3), ValueError, "inputs of the same shapes"),
        (lambda model: network(head="sigmoid"), ValueError, "can't be compared"),
        (lambda model: "teacher", TypeError, "keras.Model"),
        (lambda model: diverged(), ValueError, "weight .* is not finite"),
        (lambda model: keras.Sequential([layers.Dense(3)]), ValueError, "teacher can't be read"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_changes(teacher, error, words):
    model = network()
    before = [v.numpy() for v in model.variables]
    with pytest.raises(error, match=words):
        teach(model, teacher(model))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert HOOKED.isdisjoint(vars(model))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": "warm"},
        {"label_weight": -1},
        {"weight": float("nan")},
        {"weight": 0},
        {"temperature": keras.distillation.FeatureDistillation()},
    ],
)
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises(ValueError, match="Received|leave"):
        sgdap.DistillationCallback(network(), **options)


def test_two_teachers_in_one_fit_are_refused():
    callbacks = [sgdap.DistillationCallback(network(20)) for _ in range(2)]
    with pytest.raises(ValueError, match="one DistillationCallback"):
        network().fit(X, Y, verbose=0, callbacks=callbacks)


def test_a_loss_of_keras_distillation_is_taken_for_its_temperature():
    model, teacher = network(), network(20)
    q, p = outputs(model, teacher)
    loss = keras.distillation.LogitsDistillation(temperature=2.0)
    logs = teach(model, teacher, temperature=loss)
    assert logs["distillation_loss"] == pytest.approx(softened(p, q, 2).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "compare"),
    [
        ("mse", lambda a, b: (a - b) ** 2),
        (keras.losses.MeanAbsoluteError(), lambda a, b: np.abs(a - b)),
    ],
)
def test_other_losses_of_keras_distillation_compare_the_true_logits(loss, compare):
    model, teacher = network(), network(20)
    z, t = (
        keras.Model(own.inputs, own.layers[-1].input).predict(X, verbose=0)
        @ own.layers[-1].kernel.numpy()
        for own in (model, teacher)
    )
    given = keras.distillation.LogitsDistillation(temperature=2.0, loss=loss)
    logs = teach(model, teacher, temperature=given)
    assert logs["distillation_loss"] == pytest.approx(compare(z / 2, t / 2).mean(), rel=1e-4)


def test_outputs_that_keras_distillation_leaves_out_are_not_compared():
    model = heads(5, "softmax", "sigmoid", None, losses=["kld", "bce", "mse"])
    teacher = heads(20, "softmax", "softmax", None)
    (q, *_), (p, *_) = outputs(model, teacher)
    given = keras.distillation.LogitsDistillation(4.0, ["kl_divergence", None, None])
    targets = [np.full((12, 3), 1 / 3)] * 3
    logs = teach(model, teacher, y=targets, temperature=given)
    assert logs["distillation_loss"] == pytest.approx(softened(p, q, 4).mean(), rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        "categorical_crossentropy",
        keras.losses.MeanSquaredError(reduction="sum"),
        ["kl_divergence", "mse"],
    ],
)
def test_losses_of_keras_distillation_without_a_meaning_here_are_refused(loss):
    given = keras.distillation.LogitsDistillation(2.0, loss)
    with pytest.raises(ValueError, match="LogitsDistillation.*Received"):
        teach(network(), network(20), temperature=given)


def test_a_head_of_an_operation_is_compared_by_its_logits():
    def with_operation(width):
        inputs = keras.Input((6,))
        z = layers.Dense(3)(layers.Dense(width, "relu")(inputs))
        model = keras.Model(inputs, keras.ops.softmax(z))
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    model, teacher = with_operation(5), with_operation(20)
    q, p = outputs(model, teacher)
    logs = teach(model, teacher)
    assert logs["distillation_loss"] == pytest.approx(softened(p, q, 4).mean(), rel=1e-4)


@pytest.mark.parametrize("mine", ["softmax", "log_softmax"])
def test_logarithms_of_probabilities_are_compared_as_logits(mine):
    def own_loss(_, y_pred):
        return -keras.ops.mean(y_pred, -1)

    model = network(head=mine, loss=own_loss)
    parts = [keras.Input((6,)), layers.Dense(20, "relu"), layers.Dense(3, "log_softmax")]
    teacher = keras.Sequential(parts)  # without a loss
    q, p = outputs(model, teacher)
    q = q if mine == "softmax" else np.exp(q)
    logs = teach(model, teacher)
    assert logs["distillation_loss"] == pytest.approx(softened(np.exp(p), q, 4).mean(), rel=1e-4)


@pytest.mark.parametrize("met", [False, True])
def test_without_labels_compiled_metrics_are_left_out(met):
    model, teacher = network(4), network(6)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype("float32")
    if met:
        model.fit(x, np.zeros(16), verbose=0)
    teaching = sgdap.DistillationCallback(teacher)
    if not met:
        with pytest.raises(ValueError, match="compiled with metrics, and fit is given no labels"):
            model.fit(x, verbose=0, callbacks=[teaching])
        return
    history = model.fit(x, verbose=0, callbacks=[teaching]).history
    assert set(history) == {"loss", "distillation_loss"}
