"""A full-integer file has the ranges that training saw, whatever its tensors are called."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops

import sgdap
from tests.models import randomise

pytestmark = pytest.mark.compiled

X = np.random.default_rng(0).normal(size=(64, 9, 9, 3)).astype("float32")
Y = np.random.default_rng(1).integers(4, size=64)


def branching() -> keras.Model:
    """A normalisation, a sum, pooling, a gate, and an activation of several operators."""
    inputs = keras.Input((9, 9, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    y = layers.Conv2D(8, 3, padding="same", name="branch")(x)
    x = layers.Activation("relu", name="sum_relu")(layers.Add(name="sum")([x, y]))
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Conv2D(8, 3, activation="silu", name="silu")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = layers.Multiply(name="gated")([x, layers.Dense(8, "sigmoid", name="gate")(x)])
    return randomise(keras.Model(inputs, layers.Dense(4, "softmax", name="end")(x)))


class Own(keras.Model):
    """Its sum is no layer, and one layer is called twice."""

    def __init__(self):
        super().__init__()
        self.twice = layers.Conv2D(3, 3, padding="same", name="twice")
        self.flat, self.end = layers.Flatten(), layers.Dense(4, "softmax", name="end")

    def call(self, x):
        return self.end(self.flat(ops.relu(x + self.twice(self.twice(x)))))


def own() -> keras.Model:
    model = Own()
    model(X)
    return randomise(model)


def trained(model, callback):
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    model.fit(X, Y, verbose=0, callbacks=[callback])
    return model


def int8_tensors(path):
    """Scale and zero point of each tensor of activations."""
    details = Interpreter(str(path)).get_tensor_details()
    return [
        (own["name"], own["quantization"])
        for own in details
        if own["dtype"] == np.int8 and own["shape"].size and own["quantization"][0]
        if len(own["quantization_parameters"]["scales"]) == 1
    ]


@pytest.mark.parametrize("make", [branching, own])
def test_the_scales_of_the_file_are_those_of_the_training(make, tmp_path):
    callback = sgdap.QuantizationCallback("int8", "int8", verbose=0)
    model = trained(make(), callback)
    path = tmp_path / "m.tflite"
    sgdap.export(model, path, quantize="int8", ranges=callback.ranges, verbose=0)
    found = [quantization for _, quantization in int8_tensors(path)]
    for name, (low, high) in callback.ranges.items():
        step = (high - low) / 255
        zero = round(-128 - low / step)
        near = [found_zero for scale, found_zero in found if scale == pytest.approx(step, rel=1e-5)]
        assert zero in near, name


def test_the_file_answers_as_the_training_did(tmp_path):
    callback = sgdap.QuantizationCallback("int8", "int8", verbose=0)
    seen = []

    class Answers(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.predict(X, verbose=0))

    model = randomise(
        keras.Sequential(
            [
                keras.Input((9, 9, 3)),
                layers.Conv2D(8, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(4, "softmax"),
            ]
        )
    )
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    model.fit(X, Y, verbose=0, epochs=2, callbacks=[callback, Answers()])
    path = tmp_path / "m.tflite"
    sgdap.export(model, path, quantize="int8", ranges=callback.ranges, verbose=0)
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (taken,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = taken["quantization"]
    for x, wanted in zip(X[:16], seen[-1], strict=False):
        whole = np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(taken["index"], whole[None])
        interpreter.invoke()
        answer = (interpreter.get_tensor(made["index"])[0].astype(float) + 128) / 256
        np.testing.assert_allclose(answer, wanted, atol=0.02)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"nothing": (0.0, 1.0)}, {}, ValueError, "must name tensors of the model: inputs"),
        ({"mean": (1.0, 0.0)}, {}, ValueError, "A range is a least and a largest number"),
        ({"mean": 3.0}, {}, TypeError, "ranges must be a dict"),
        ({}, {"quantize": "dynamic"}, ValueError, "ranges are those of activations in full-int"),
        ({"mean": None}, {}, ValueError, "Missing: .*Mean.* Pass data="),
    ],
)
def test_ranges_that_do_not_fit_are_refused(change, options, error, message, tmp_path):
    ranges = {own: (-1.0, 1.0) for own in NAMES} | change
    ranges = {name: ends for name, ends in ranges.items() if ends is not None}
    options = {"quantize": "int8", "verbose": 0} | options
    with pytest.raises(error, match=message):
        sgdap.export(branching(), tmp_path / "m.tflite", ranges=ranges, **options)
    assert not list(tmp_path.iterdir())


NAMES = ["inputs[0]", "relu", "branch", "sum_relu", "silu.linear", "silu", "mean"]
NAMES += ["gate.linear", "gated", "end.linear"]


def test_what_ranges_do_not_tell_is_measured_on_data(tmp_path):
    ranges = {name: (-4.0, 4.0) for name in NAMES if name != "mean"}
    path = tmp_path / "m.tflite"
    sgdap.export(branching(), path, quantize="int8", ranges=ranges, data=X, verbose=0)
    steps = {name: scale for name, (scale, _) in int8_tensors(path)}
    told = [scale for scale in steps.values() if scale == pytest.approx(8 / 255, rel=1e-5)]
    (mean,) = [scale for name, scale in steps.items() if name.endswith("Mean")]
    assert len(told) >= len(ranges) and mean != pytest.approx(8 / 255, rel=1e-3)
