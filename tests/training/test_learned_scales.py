"""Scales go where the gradient that rounding leaves them points, and weights stay on lattices."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.quantization import PCM, Affine, Binary, Ternary
from sgdap.quantization.lattice import stored
from sgdap.training.learned_scales import FASTEST, scale_gradient
from tests.largest import X, Y, network


def direct(gradient, value, scale, levels):
    """Equation 3 and section 2.2 of arXiv 1902.08153, weight by weight; a unit for each column."""
    outer, found = levels[-1], np.zeros(len(scale))
    for row in range(len(value)):
        for unit, s in enumerate(scale):
            v = value[row, unit] / s
            nearest = levels[np.abs(levels - v).argmin()]
            by_scale = nearest - v if -outer < v < outer else np.sign(v) * outer
            found[unit] += gradient[row, unit] * by_scale
    return found / np.sqrt(len(value) * outer)


@pytest.mark.parametrize("levels", [[-1.0, 1.0], [-1.0, 0.0, 1.0], np.arange(-7.0, 8.0)], ids=len)
def test_the_gradient_is_that_of_the_formula(levels):
    random = np.random.default_rng(0)
    gradient, value = random.normal(size=(2, 30, 4))
    scale, levels = random.random(4) + 0.1, np.array(levels)
    units = tf.constant(np.broadcast_to(np.arange(4), value.shape), tf.int32)
    found = scale_gradient(*map(tf.constant, (gradient, value, scale, levels)), units)
    np.testing.assert_allclose(found, direct(gradient, value, scale, levels), atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "scaled"])
@pytest.mark.parametrize("scheme", [Ternary(), Binary(), Affine(bits=4)], ids=str)
def test_the_first_step_moves_each_scale_downhill(scheme, optimizer):
    make = {"sgd": lambda: keras.optimizers.SGD(1e-2)}
    make["scaled"] = lambda: keras.optimizers.LossScaleOptimizer(make["sgd"]())
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(5, use_bias=False)])
    model.compile(make[optimizer](), "mse")
    kernel = model.layers[0].kernel.numpy().astype(float)
    lattice = scheme.lattice(kernel)
    levels = lattice.values(lattice.nearest(kernel))
    y = np.random.default_rng(1).normal(size=(64, 5))
    gradient = X.T.astype(float) @ (2 * (X @ levels - y)) / y.size
    slope = direct(gradient, kernel, lattice.scale, lattice.base)
    callback = sgdap.QuantizationCallback(scheme, learned_scales=True, verbose=0)
    model.fit(X, y, batch_size=64, verbose=0, callbacks=[callback])
    made = model.layers[0].kernel.numpy().astype(float)
    wanted = stored(lattice.scale * np.exp(-FASTEST * np.sign(slope)))
    for column, scale in zip(made.T, wanted, strict=True):
        whole = column / scale
        np.testing.assert_allclose(whole, np.rint(whole), atol=1e-6)
    assert not np.allclose(wanted, lattice.scale, rtol=1e-4)


def test_weights_lie_on_learned_lattices_after_each_step_and_stay_when_quantized_again():
    model, seen = network(), []

    class Looking(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            columns = [c for x in self.model.layers for c in x.kernel.numpy().T]
            seen.append(max(len(np.unique(c)) for c in columns))

    callback = sgdap.QuantizationCallback("ternary", learned_scales=True, verbose=0)
    model.fit(X, Y, epochs=3, batch_size=16, verbose=0, callbacks=[callback, Looking()])
    assert set(seen) == {3}
    for layer in model.layers:
        kernel = layer.kernel.numpy()
        again = Ternary().quantize(kernel).dequantize()
        assert again.tobytes() == kernel.tobytes()


def test_weights_that_are_zero_have_no_say_and_stay():
    model = network()
    kernel = model.layers[0].kernel.numpy()
    zero = np.random.default_rng(0).random(kernel.shape) < 0.5
    model.layers[0].kernel.assign(np.where(zero, 0, kernel))
    callback = sgdap.QuantizationCallback("int4", learned_scales=True, verbose=0)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback])
    assert not model.layers[0].kernel.numpy()[zero].any()


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        (PCM(bits=4), {}, "learned_scales=True is for symmetric integers"),
        (Ternary(power_of_two=True), {}, "learned_scales=True is for symmetric integers"),
        (Affine(bits=4, symmetric=False), {}, "learned_scales=True is for symmetric integers"),
        ("ternary", {"noise": True}, "exclude each other"),
        ("ternary", {"learned_scales": "much"}, "learned_scales must be True or False"),
    ],
)
def test_what_has_no_scale_to_learn_is_refused(scheme, options, message):
    with pytest.raises(ValueError, match=message):
        callback = sgdap.QuantizationCallback(scheme, **{"learned_scales": True, **options})
        network().fit(X, Y, verbose=0, callbacks=[callback])
