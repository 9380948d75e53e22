"""Prunes a model here, trains it quantized in tfmot, which needs old Keras, and ships an int8 file.

Run it: python examples/quantization_aware_training.py
"""

import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from ai_edge_litert.interpreter import Interpreter

import sgdap

keras.utils.set_random_seed(0)
train, test = sgdap.datasets.load_mnist(sgdap.datasets.EMBEDDED_MNIST, verbose=0)
(x, y), (x_test, y_test) = ((a[..., None].astype("float32") / 255, b) for a, b in (train, test))

layers = keras.layers
model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        layers.Conv2D(6, 5, padding="same", activation="relu", name="conv1"),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 5, activation="relu", name="conv2"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(120, activation="relu", name="dense1"),
        layers.Dense(84, activation="relu", name="dense2"),
        layers.Dense(10, activation="softmax", name="end"),
    ],
    name="lenet5",
)
rows = []


def tell(what, answers, size=None):
    """Takes down how many digits are recognised, and the bytes of a file."""
    accuracy = float(np.mean(np.argmax(answers, axis=1) == y_test))
    rows.append((what, accuracy, size))
    return accuracy


def litert(content):
    """What a LiteRT file answers, without Keras or TensorFlow."""
    interpreter = Interpreter(model_content=content)
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(given["index"], x_test.shape)
    interpreter.allocate_tensors()
    scale, zero = given["quantization"]
    whole = np.clip(np.rint(x_test / (scale or 1)) + zero, -128, 127)
    interpreter.set_tensor(given["index"], whole.astype(np.int8) if scale else x_test)
    interpreter.invoke()
    return interpreter.get_tensor(made["index"])


# 1. Keras 3: train, prune, recover.
model.compile(keras.optimizers.Adam(0.004), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x, y, epochs=6, batch_size=128, verbose=0)
dense = tell("dense, Keras 3", model.predict(x_test, verbose=0))
plan = sgdap.plan(model, x[:2000], sgdap.Budget(flops=0.4, params=0.4))
slim = sgdap.apply(model, plan)
slim.fit(x, y, epochs=2, batch_size=128, verbose=0)
tell("slim, Keras 3", slim.predict(x_test, verbose=0))

# 2. Over the bridge: the same layers, weights and answers, compiled in the same way.
bridged = sgdap.to_tf_keras(slim)
assert np.allclose(bridged.predict(x_test, verbose=0), slim.predict(x_test, verbose=0), atol=1e-5)

# 3. tf_keras: an epoch in which weights and activations are rounded in every step.
quantized = tfmot.quantization.keras.quantize_model(bridged)
quantized.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
quantized.fit(x, y, epochs=1, batch_size=128, verbose=0)
tell("slim, trained quantized", quantized.predict(x_test, verbose=0))

# 4. LiteRT: the floats of the slim model, and the integers of the quantized one.
with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the converter, about itself
    path = Path(folder, "slim.tflite")
    slim.export(path, format="litert", verbose=False)
    floats = path.read_bytes()
    converter = tf.lite.TFLiteConverter.from_keras_model(quantized)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content = converter.convert()
tell("slim, float LiteRT file", litert(floats), len(floats))
end = tell("slim, int8 LiteRT file", litert(content), len(content))

# 5. Beside it, all in Keras 3: an epoch in which both are rounded, then integers all through.
slim.compile("adam", "sparse_categorical_crossentropy")
rounding = sgdap.QuantizationCallback("int8", activations="int8", verbose=0)
slim.fit(x, y, epochs=1, batch_size=128, verbose=0, callbacks=[rounding])
tell("slim, trained on 8 bits here", slim.predict(x_test, verbose=0))
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "ours.tflite")
    options = {"quantize": "int8", "ranges": rounding.ranges, "batch_size": None, "verbose": 0}
    sgdap.export(slim, path, **options)
    content = path.read_bytes()
ours = tell("slim, sgdap alone, int8 file", litert(content), len(content))

print(f"{'':28}{'accuracy':>10}{'bytes':>10}")
for what, accuracy, size in rows:
    print(f"{what:28}{accuracy:>10.2%}{size or '':>10}")
assert min(end, ours) > dense - 0.02
