"""Kernels lie on their lattices after every step, while full numbers train behind them."""

import copy
import pickle

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.quantization import PCM, QAM, Affine, Codebook, MuLaw, Pairs, Ternary
from sgdap.quantization.kernels import quantized_kernels
from sgdap.training.quantizing import Quantizing
from tests.largest import X, Y, network
from tests.models import convnet, digits_like, randomise


def fit(callback, *others, model=None, epochs=2, **arguments) -> keras.Model:
    model = model or network()
    arguments = {"validation_data": (X, Y), "batch_size": 64, "verbose": 0} | arguments
    model.fit(X, Y, epochs=epochs, callbacks=[callback, *others], **arguments)
    return model


def quantizing(scheme="ternary", **options) -> sgdap.QuantizationCallback:
    return sgdap.QuantizationCallback(scheme, **{"verbose": 0, **options})


def on_lattice(model, most=3) -> bool:
    return all(
        len(np.unique(column)) <= most
        for layer in model.layers
        if layer.weights
        for column in layer.kernel.numpy().reshape(-1, layer.kernel.shape[-1]).T
    )


class Watching(keras.callbacks.Callback):
    """Looks at the model after every step."""

    def __init__(self, look):
        super().__init__()
        self.look, self.seen = look, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.look(self.model))


def test_kernels_lie_on_their_lattices_after_each_step_and_the_model_is_plain(tmp_path):
    watching = Watching(on_lattice)
    model = fit(quantizing(), watching)
    assert watching.seen and all(watching.seen)
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))
    model.save(tmp_path / "net.keras")
    assert on_lattice(keras.models.load_model(tmp_path / "net.keras"))
    model.fit(X, Y, verbose=0)
    assert not on_lattice(model)


SCHEMES = [
    Affine(bits=8),
    Affine(bits=4, per=3),
    Affine(bits=3, per="tensor", symmetric=False),
    Ternary(power_of_two=True),
    Codebook(size=4),
    PCM(bits=3),
    MuLaw(bits=5),
    QAM(size=9),
    Pairs(size=4),
    Pairs(size=3, per="channel"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_levels_are_those_of_the_scheme_to_the_bit(scheme):
    model = randomise(keras.Sequential([keras.Input((7,)), layers.Dense(5)]))
    before = model.layers[0].kernel.numpy()
    kernels = quantized_kernels({"dense": model.layers[0]}, scheme, None, None)
    Quantizing(model, kernels)
    wanted = scheme.quantize(before).dequantize()
    assert model.layers[0].kernel.numpy().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["sgd", "adam", "ftrl", "lion", "loss_scale", "accumulating"])
def test_gradients_are_those_of_the_levels_and_move_the_full_numbers(name):
    """One step: the full numbers gain what the optimizer adds to a model of the levels."""
    makers = {
        "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
        "accumulating": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    }
    make = makers.get(name, lambda: keras.optimizers.get(name))
    model = network()
    model.compile(make(), model.loss)
    start = model.layers[0].kernel.numpy()
    twin = keras.models.clone_model(model)
    twin.compile(make(), model.loss)
    levels = [Ternary().quantize(w).dequantize() if w.ndim > 1 else w for w in model.get_weights()]
    twin.set_weights(levels)
    callback = quantizing()
    found = []
    look = Watching(lambda _: found.append(callback._run.quantizing.full["one/kernel"]))
    steps = 2 if name == "accumulating" else 1
    x, y = X[: 32 * steps], Y[: 32 * steps]
    model.fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=[callback, look])
    twin.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    added = twin.layers[0].kernel.numpy() - levels[0]
    assert np.abs(added).max() > 0
    np.testing.assert_allclose(found[-1], start + added, atol=1e-6)


def test_training_wins_back_what_rounding_loses():
    model = network()
    model.fit(X, Y, epochs=20, verbose=0)
    lost = sgdap.quantize(model, None, "ternary", compensate=False).evaluate(X, Y, verbose=0)[0]
    model = fit(quantizing(), model=model, epochs=10)
    assert on_lattice(model)
    assert model.evaluate(X, Y, verbose=0)[0] < 0.7 * lost


def test_before_its_first_epoch_the_model_trains_as_ever():
    watching = Watching(on_lattice)
    fit(quantizing(begin_epoch=1), watching)
    half = len(watching.seen) // 2
    assert not any(watching.seen[:half]) and all(watching.seen[half:])


def test_zeros_stay_and_other_layers_stay_float():
    model = network()
    kernel = model.layers[0].kernel.numpy()
    zero = np.random.default_rng(0).random(kernel.shape) < 0.5
    model.layers[0].kernel.assign(np.where(zero, 0, kernel))
    names = [layer.name for layer in model.layers]
    callback = quantizing("int8", overrides={names[1]: "binary", names[2]: None})
    fit(callback, model=model)
    assert not model.layers[0].kernel.numpy()[zero].any()
    assert len(np.unique(np.abs(model.layers[1].kernel.numpy()[:, 0]))) == 1
    assert len(np.unique(model.layers[2].kernel.numpy()[:, 0])) == 8
    assert [type(s).__name__ for s in callback.schemes.values()] == ["Affine", "Binary"]


def test_channels_may_leave_in_the_same_fit():
    for first in (True, False):
        pruning = sgdap.SGDAPCallback(sgdap.Budget(params=0.6), verbose=0, guidance="magnitude")
        both = [quantizing(), pruning] if first else [pruning, quantizing()]
        watching = Watching(on_lattice)
        model = fit(*both, watching, epochs=3)
        assert all(watching.seen) and on_lattice(model)
        assert pruning.summary.params[1] <= 0.6 * pruning.summary.params[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.callbacks.EarlyStopping("loss", restore_best_weights=True),
        lambda: sgdap.DistillationCallback(network()),
    ],
    ids=["restored weights", "a teacher"],
)
def test_other_callbacks_work_beside_it(make):
    assert on_lattice(fit(quantizing(), make(), epochs=3))


def test_averages_of_weights_end_on_a_lattice():
    model = network()
    model.compile(keras.optimizers.SGD(0.1, use_ema=True), model.loss)
    assert on_lattice(fit(quantizing(), model=model))


def test_a_fit_that_breaks_off_leaves_a_plain_model_on_its_lattice():
    class Breaking(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise RuntimeError("enough")

    model, callback = network(), quantizing()
    with pytest.raises(RuntimeError, match="enough"):
        fit(callback, Breaking(), model=model, batch_size=16)
    assert on_lattice(model)
    model.fit(X, Y, verbose=0)
    assert not on_lattice(model)
    copy.deepcopy(callback), pickle.dumps(callback)
    assert on_lattice(fit(callback, model=model))


@pytest.mark.compiled
@pytest.mark.parametrize("arguments", [{"jit_compile": True}, {"steps_per_execution": 2}], ids=str)
def test_compiled_steps_hold_the_lattice(arguments):
    x, y = digits_like(128)
    model = convnet(optimizer=keras.optimizers.Adam(0.01), **arguments)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[quantizing()])
    assert on_lattice(keras.Sequential([x for x in model.layers if hasattr(x, "kernel")]))


@pytest.mark.parametrize("compiled", [True, False])
def test_pairs_of_weights_take_points_of_a_plane(compiled):
    model = keras.Sequential([keras.Input((7,)), layers.Dense(9, "relu"), layers.Dense(4)])
    model.compile("adam", "mse", jit_compile=compiled)
    x = np.random.default_rng(0).normal(size=(96, 7)).astype("float32")
    before = model.get_weights()
    callback = quantizing(Pairs(size=4))
    model.fit(x, x[:, :4], epochs=2, verbose=0, callbacks=[callback])
    for old, kernel in zip(before[::2], model.get_weights()[::2], strict=True):
        assert np.abs(kernel - Pairs(size=4).quantize(old).dequantize()).max() > 1e-4
        whole = kernel[:-1].reshape(-1, 2, kernel.shape[1])
        points = np.unique(whole.transpose(0, 2, 1).reshape(-1, 2), axis=0)
        assert len(points) <= 4
        np.testing.assert_array_equal(Pairs(size=4).quantize(kernel).dequantize(), kernel)


def test_noise_of_pairs_is_that_of_as_many_even_levels():
    model = randomise(keras.Sequential([keras.Input((401,)), layers.Dense(20)]))
    model.compile("sgd", "mse")
    kernels = quantized_kernels({"dense": model.layers[0]}, Pairs(size=64), None, None)
    held = Quantizing(model, kernels, noise=True, seed=3)
    before, seen = model.layers[0].kernel.numpy(), []
    held._quantized(lambda _: seen.append(model.layers[0].kernel.numpy()), None)
    rounded = Pairs(size=64).quantize(before).dequantize()
    assert 0.7 < (seen[0] - before).std() / (rounded - before).std() < 1.5


def test_noise_is_that_of_rounding_and_weights_stay_full():
    model = randomise(keras.Sequential([keras.Input((400,)), layers.Dense(20)]))
    model.compile("sgd", "mse")
    kernels = quantized_kernels({"dense": model.layers[0]}, "int4", None, None)
    held = Quantizing(model, kernels, noise=True, seed=3)
    before = model.layers[0].kernel.numpy()
    step = Affine(bits=4).lattice(before.astype(float)).scale
    seen = []
    held._quantized(lambda _: seen.append(model.layers[0].kernel.numpy()), None)
    np.testing.assert_allclose((seen[0] - before).std(axis=0), step / 12**0.5, rtol=0.15)
    np.testing.assert_allclose(model.layers[0].kernel.numpy(), before, atol=1e-7)
    held._quantized(lambda _: seen.append(model.layers[0].kernel.numpy()), None)
    assert np.abs(seen[1] - seen[0]).max() > 0.1 * step.max()
    model = fit(quantizing("int4", noise=True))
    assert not on_lattice(model, 15) or model.layers[0].kernel.shape[0] < 16


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scheme": "int9"}, ValueError, "No scheme is called 'int9'"),
        ({"begin_epoch": -1}, ValueError, "begin_epoch must be an integer"),
        ({"noise": "much"}, ValueError, "noise must be True or False"),
    ],
)
def test_options_that_have_no_meaning_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        sgdap.QuantizationCallback(**options)


@pytest.mark.parametrize(
    ("make", "others", "message"),
    [
        (lambda: quantizing(layers=["nothing"]), [], "No layer with a kernel is called 'nothing'"),
        (lambda: quantizing(begin_epoch=2), [], "begins with epoch 2 .* and fit has 2"),
        (quantizing, [quantizing], "more than one of a kind, QuantizationCallback and"),
        (lambda: quantizing("binary"), [lambda: sgdap.SparsityCallback(0.5)], "has no level 0"),
        (quantizing, [lambda: keras.callbacks.BackupAndRestore("run")], "pass backup_dir"),
    ],
)
def test_a_fit_that_can_not_work_is_refused_before_anything_changes(make, others, message):
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(make(), *(other() for other in others), model=model)
    for now, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, old)


def test_it_says_when_it_begins(capsys):
    fit(quantizing(verbose=1))
    assert "SGDAP trains 3 kernels, 288 weights, with" in capsys.readouterr().out
