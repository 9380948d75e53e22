"""What a full-integer runtime stores lies on 256 steps in every step of a `fit`, not afterwards."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import sgdap
from sgdap.training.activations import QuantizedActivations
from tests.largest import X, Y, network
from tests.models import randomise


def fit(model, x=X, y=Y, *others, epochs=2, scheme="int8", **arguments):
    """Trains with activations of 8 bits; returns the callback."""
    callback = sgdap.QuantizationCallback(scheme, "int8", verbose=0)
    arguments = {"validation_data": (x, y), "batch_size": 32, "verbose": 0} | arguments
    model.fit(x, y, epochs=epochs, callbacks=[callback, *others], **arguments)
    return callback


def on_steps(x, low, high):
    """Jacob et al. 2018, equations 1 and 13, in float64: the range has 0 among its steps."""
    step = (high - low) / 255
    zero = np.floor(-low / step + 0.5)
    return step * (np.clip(np.rint(x / step + zero), 0, 255) - zero)


class Looking(keras.callbacks.Callback):
    """Predicts when an epoch ends, and keeps what validation found."""

    def on_epoch_end(self, epoch, logs=None):
        self.logs, self.made = dict(logs), self.model.predict(X, verbose=0)
        self.weights = self.model.get_weights()


def rounded_network(weights, ranges, x):
    """The answers of `network`, by NumPy, as a runtime of integers computes them."""
    x = on_steps(x, *ranges["inputs[0]"])
    for name, kernel, bias in zip(["one", "two"], weights[0::2], weights[1::2], strict=False):
        x = on_steps(np.maximum(x @ kernel + bias, 0), *ranges[name])
    logits = on_steps(x @ weights[4] + weights[5], *ranges["end.linear"])
    made = np.exp(logits - logits.max(axis=1, keepdims=True))
    return made / made.sum(axis=1, keepdims=True)


def test_validation_and_predict_in_fit_see_what_integers_compute_and_then_the_model_is_plain():
    model, looking = network(), Looking()
    callback = fit(model, X, Y, looking)
    assert list(callback.ranges) == ["inputs[0]", "one", "two", "end.linear"]
    wanted = rounded_network(looking.weights, callback.ranges, X)
    np.testing.assert_allclose(looking.made, wanted, atol=1e-4)
    assert looking.logs["val_loss"] == pytest.approx(
        -np.log(wanted[np.arange(len(Y)), Y]).mean(), abs=1e-4
    )
    assert np.abs(model.predict(X, verbose=0) - looking.made).max() > 1e-4
    steps = {"train_step", "test_step", "predict_step", "call"}
    assert steps.isdisjoint(vars(model)) and "call" not in vars(model.layers[0])
    assert model.layers[0].activation is keras.activations.relu


def test_a_train_step_has_the_gradients_within_the_ranges_only():
    """One step of plain gradient descent, beside the formula."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, layers.Dense(1, use_bias=False, name="end")(inputs))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.layers[-1].kernel.assign([[2.0]])
    rounding = QuantizedActivations(model)
    names = [own.name for own in rounding._stored]
    rounding._ranges.assign([{"inputs[0]": (-1.0, 2.0), "end": (-1.0, 3.0)}[n] for n in names])
    rounding.freeze()
    x, y = np.array([[0.613], [1.8], [3.0]], "float32"), np.zeros((3, 1), "float32")

    class Rounding(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            rounding.install()

        def on_train_end(self, logs=None):
            rounding.remove()

    model.fit(x, y, batch_size=3, verbose=0, callbacks=[Rounding()])
    seen = on_steps(x.astype(float), -1.0, 2.0)
    made = on_steps(2 * seen, -1.0, 3.0)
    within = 2 * seen <= 3.0
    gradient = (2 * made * within * seen).mean()
    assert within.sum() == 1
    np.testing.assert_allclose(model.layers[-1].kernel, [[2 - 0.1 * gradient]], atol=1e-5)


def test_ranges_are_the_means_of_the_extremes_of_the_first_epoch_and_then_frozen():
    model = network(keras.optimizers.SGD(0.0))
    callback = fit(model, epochs=1, shuffle=False, scheme="int8")
    parts = X.reshape(2, 32, -1)
    wanted = [np.mean([own.min() for own in parts]), np.mean([own.max() for own in parts])]
    np.testing.assert_allclose(callback.ranges["inputs[0]"], wanted, atol=1e-6)
    assert callback.ranges["one"][0] == 0 < callback.ranges["one"][1]
    found = []

    class Ranges(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append(callback.ranges)

    callback = sgdap.QuantizationCallback("int8", "int8", begin_epoch=1, verbose=0)
    network().fit(X, Y, epochs=4, verbose=0, callbacks=[callback, Ranges()])
    assert found[0] == {} and found[1] != {}
    assert found[1] == found[2] == found[3]


class OwnModel(keras.Model):
    """Its sum, and the ReLU behind it, are no layers."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(8, "relu", name="first")
        self.twice = layers.Dense(8, name="twice")
        self.end = layers.Dense(4, "softmax", name="end")

    def call(self, x):
        x = self.first(ops.abs(x) - 0.5)  # no layer takes the first of these
        x = ops.relu(x + self.twice(x))
        return self.end(self.twice(x))


def test_models_with_a_call_of_their_own_and_layers_that_are_called_twice():
    model = OwnModel()
    model.compile("adam", "sparse_categorical_crossentropy")
    model(X)
    looking = Looking()
    ranges = fit(model, X, Y, looking).ranges
    names = ["inputs[0]", "ops.subtract", "first", "twice", "ops.relu", "twice#2", "end.linear"]
    assert list(ranges) == names
    (a, b), (k, c), (e, f) = (
        (own.kernel.numpy(), own.bias.numpy()) for own in (model.first, model.twice, model.end)
    )
    x = np.abs(on_steps(X, *ranges["inputs[0]"])) - 0.5
    x = on_steps(np.maximum(on_steps(x, *ranges["ops.subtract"]) @ a + b, 0), *ranges["first"])
    x = np.maximum(x + on_steps(x @ k + c, *ranges["twice"]), 0)
    x = on_steps(on_steps(x, *ranges["ops.relu"]) @ k + c, *ranges["twice#2"])
    logits = on_steps(x @ e + f, *ranges["end.linear"])
    made = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(looking.made, made / made.sum(axis=1, keepdims=True), atol=1e-4)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "arguments", [{"jit_compile": True, "steps_per_execution": 2}, {"mixed": True}], ids=str
)
def test_other_ways_to_run_a_step_see_the_same(arguments):
    """The loss of an epoch of training in which nothing moves."""
    still = keras.optimizers.SGD(0.0)
    keras.config.set_dtype_policy("mixed_bfloat16" if arguments.get("mixed") else "float32")
    try:
        model = network(still, **{k: v for k, v in arguments.items() if k != "mixed"})
    finally:
        keras.config.set_dtype_policy("float32")
    callback = fit(model, validation_data=None)
    made = rounded_network(model.get_weights(), callback.ranges, X)
    loss = -np.log(made[np.arange(len(Y)), Y]).mean()
    near = 0.01 if arguments.get("mixed") else 1e-4
    assert model.history.history["loss"][1] == pytest.approx(loss, abs=near)
    answers = np.asarray(ops.convert_to_numpy(model(X)), float)
    plain = -np.log(answers[np.arange(len(Y)), Y]).mean()
    assert abs(plain - loss) > 1e-4


def test_inputs_are_told_apart_by_their_names():
    small, large = keras.Input((2,), name="small"), keras.Input((2,), name="large")
    end = layers.Dense(4, "softmax", name="end")
    model = keras.Model([small, large], end(layers.Add(name="sum")([small, large])))
    model.compile("adam", "sparse_categorical_crossentropy")
    x = {"small": X[:, :2], "large": 10 * X[:, :2]}
    ranges = fit(model, x, epochs=1).ranges
    assert list(ranges) == ["inputs[0]", "inputs[1]", "sum", "end.linear"]
    np.testing.assert_allclose(ranges["inputs[1]"], 10 * np.array(ranges["inputs[0]"]), rtol=1e-5)


def test_an_activation_that_is_a_layer_comes_back():
    inputs = keras.Input((8,))
    x = layers.Dense(4, activation=layers.LeakyReLU(name="leaky"), name="one")(inputs)
    model = keras.Model(inputs, layers.Dense(4, "softmax", name="end")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    ranges = fit(model).ranges
    assert list(ranges) == ["inputs[0]", "one.linear", "one", "end.linear"]
    assert ranges["one"][0] == pytest.approx(0.3 * ranges["one.linear"][0], rel=0.1)
    assert isinstance(model.get_layer("one").activation, layers.LeakyReLU)


def test_channels_may_leave_in_the_same_fit():
    pruning = sgdap.SGDAPCallback(sgdap.Budget(params=0.6), verbose=0, guidance="magnitude")
    model, looking = network(), Looking()
    callback = fit(model, X, Y, pruning, looking, epochs=3)
    assert pruning.summary.params[1] <= 0.6 * pruning.summary.params[0]
    wanted = rounded_network(looking.weights, callback.ranges, X)
    np.testing.assert_allclose(looking.made, wanted, atol=1e-4)


@pytest.mark.parametrize("first", [True, False])
def test_a_teacher_sees_its_layers_and_is_not_rounded(first):
    teacher, model = randomise(network()), network()
    teaching = sgdap.DistillationCallback(teacher, features=["two"])
    callback = sgdap.QuantizationCallback("int8", "int8", verbose=0)
    both = [teaching, callback] if first else [callback, teaching]
    history = model.fit(X, Y, epochs=2, verbose=0, callbacks=both)
    assert history.history["feature_loss"][-1] > 0 and callback.ranges["two"][1] > 0


def test_an_evaluation_after_a_fit_that_broke_off_is_plain():
    class Breaking(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("enough")

    model = network()
    with pytest.raises(RuntimeError, match="enough"):
        fit(model, X, Y, Breaking())
    twin = keras.models.clone_model(model)
    twin.compile("sgd", model.loss)
    twin.set_weights(model.get_weights())
    np.testing.assert_array_equal(model.predict(X, verbose=0), twin.predict(X, verbose=0))
    found = [own.evaluate(X, Y, verbose=0, return_dict=True)["loss"] for own in (model, twin)]
    assert found[0] == found[1]


class OwnStep(keras.Model):
    """Its train step calls a layer and never the model."""

    def __init__(self):
        super().__init__()
        self.only = layers.Dense(4, name="only")

    def call(self, x):
        return self.only(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.only(x)) + 0.0 * tf.reduce_mean(tf.cast(y, "float32"))
        self.optimizer.apply(
            tape.gradient(loss, [v.value for v in self.trainable_variables]),
            self.trainable_variables,
        )
        return {"loss": loss}


def test_a_train_step_that_never_calls_the_model_is_refused_in_words():
    model = OwnStep()
    model.compile("adam", "mse")
    model(X)
    with pytest.raises(ValueError, match="never calls the model"):
        fit(model)
