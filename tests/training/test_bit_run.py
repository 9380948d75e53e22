"""Few bits are judged as a round is, and kernels on lattices keep the zeros of the same `fit`."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.quantization import Affine, get_scheme
from tests.largest import X, Y, network


def quantizing(scheme="ternary", activations=None, **options):
    return sgdap.QuantizationCallback(scheme, activations, **{"verbose": 0} | options)


def sparse(share=0.5, **options):
    own = {"guidance": "magnitude", "begin_epoch": 0, "schedule": sgdap.Linear(rounds=2)} | options
    return sgdap.SparsityCallback(share, verbose=0, **own)


def slim(share=0.5, **options):
    own = {"guidance": "magnitude", "allocation": "layerwise", "reconstruction": False}
    own |= {"begin_epoch": 0, "schedule": "one_shot", "jit_compile": None, "verbose": 0} | options
    return sgdap.SGDAPCallback(sgdap.Budget(params=share), **own)


def fit(*callbacks, model=None, epochs=5, **arguments):
    model = model or network()
    arguments = {"batch_size": 32, "verbose": 0} | arguments
    return model, model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **arguments)


def kernels(model) -> dict[str, np.ndarray]:
    return {f"{layer.name}/kernel": layer.kernel.numpy() for layer in model.layers}


def levels(model) -> int:
    return max(len(np.unique(column)) for kernel in kernels(model).values() for column in kernel.T)


class Scores(keras.callbacks.Callback):
    """Adds a metric to the logs, and notes the kernels after each epoch."""

    def __init__(self, *scores):
        super().__init__()
        self.scores, self.seen = scores, []

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.scores[epoch]
        self.seen.append(kernels(self.model))


class Looking(keras.callbacks.Callback):
    """Looks at the model after every step."""

    def __init__(self, look):
        super().__init__()
        self.look, self.seen = look, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.look(self.model))


JUDGED = {"monitor": "score", "mode": "max", "baseline": "first_epoch", "max_accuracy_drop": 0.1}


def assert_equal(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for path, kernel in found.items():
        np.testing.assert_array_equal(kernel, wanted[path])


@pytest.mark.parametrize(("scheme", "most"), [("ternary", 3), ("int4", 15), ("qam", 32)])
def test_quantization_that_costs_little_is_kept_with_its_best_weights(scheme, most):
    """The decay leaves outer levels without a weight, so a lattice fitted anew is another one."""
    scores = Scores(0.8, 0.9, 0.7, 0.85, 0.7)
    callback = quantizing(scheme, begin_epoch=2, **JUDGED)
    model, _ = fit(scores, callback, model=network(keras.optimizers.SGD(0.1, weight_decay=1.0)))
    assert [(r.epoch, r.decision, r.before, r.after) for r in callback.rounds] == [
        (1, "kept", 0.9, 0.85)
    ]
    assert_equal(kernels(model), scores.seen[3])
    assert levels(model) <= most
    assert callback.summary.score == (0.9, 0.85)
    assert {path.split("/")[0] for path in callback.schemes} == {"one", "two", "end"}


def test_quantization_that_costs_too_much_is_undone_at_the_end_and_the_best_floats_come_back():
    scores = Scores(0.9, 0.8, 0.6, 0.7, 0.7)
    callback = quantizing("int4", "int8", begin_epoch=2, **JUDGED)
    with pytest.warns(UserWarning, match="stopped short of kernels of few bits: they are float"):
        model, _ = fit(scores, callback)
    assert [r.decision for r in callback.rounds] == ["undone"]
    assert_equal(kernels(model), scores.seen[0])
    assert callback.summary.score == (0.9, 0.9) and callback.summary.undone
    assert callback.schemes == {} and callback.ranges == {}
    assert "float" in str(callback.summary)
    assert {"train_step", "test_step", "make_train_function"}.isdisjoint(vars(model))


@pytest.mark.parametrize("drop", [0.9, 0.0])
def test_the_model_that_was_given_is_what_few_bits_are_compared_with(drop):
    model = network(keras.optimizers.Adam(0.01))
    fit(model=model, epochs=30)
    brought = model.evaluate(X, Y, verbose=0)[1]
    before = kernels(model)
    callback = quantizing("binary", max_accuracy_drop=drop)
    model.optimizer.learning_rate = 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error" if drop else "ignore")
        fit(callback, model=model, epochs=2, validation_data=(X, Y))
    assert [(r.epoch, r.before) for r in callback.rounds] == [(-1, pytest.approx(brought))]
    assert callback.rounds[0].decision == ("kept" if drop else "undone")
    if drop:
        assert levels(model) == 2
    else:
        assert_equal(kernels(model), before)


def test_others_forget_the_best_epoch_of_the_float_model():
    stopping = keras.callbacks.EarlyStopping("score", mode="max", restore_best_weights=True)
    stopping.patience = 9
    scores = Scores(0.9, 0.9, 0.3, 0.5, 0.4)
    model, _ = fit(scores, quantizing(begin_epoch=2), stopping)
    assert_equal(kernels(model), scores.seen[3])
    assert levels(model) == 3


WITH_ZEROS = {
    "ternary": (quantizing, {"scheme": "ternary"}, {}),
    "int4": (quantizing, {"scheme": "int4"}, {"guidance": "gradient"}),
    "a zero point": (quantizing, {"scheme": Affine(bits=3, symmetric=False)}, {}),
    "learned": (quantizing, {"scheme": "int4", "learned_scales": True}, {}),
    "refitted": (quantizing, {"scheme": "int8", "begin_epoch": 1}, {"guidance": "second_order"}),
    "noise": (quantizing, {"scheme": "int4", "noise": True}, {}),
    "patterns": (quantizing, {"scheme": "int8"}, {"pattern": "2:4"}),
}


@pytest.mark.parametrize("name", WITH_ZEROS)
@pytest.mark.parametrize("first", [True, False])
def test_masked_weights_stay_zero_on_the_lattice_after_each_step(name, first):
    make, options, others = WITH_ZEROS[name]
    bits, zeros = make(**options), sparse(**others)
    most = get_scheme(bits.options.scheme).levels

    def looks_right(model):
        found = kernels(model)
        assert levels(model) <= most or not bits.rounds or bits.options.noise
        return all(not found[path][~mask].any() for path, mask in zeros.masks.items())

    looking = Looking(looks_right)
    model = network(keras.optimizers.SGD(0.1, momentum=0.9))
    fit(*([bits, zeros] if first else [zeros, bits]), looking, model=model)
    assert all(looking.seen) and len(looking.seen) == 10
    assert 0.5 <= zeros.summary.sparsity < 0.56
    assert all((kernel == 0).mean() > 0.1 for kernel in kernels(model).values())


def test_zeros_that_cost_too_much_come_back_as_numbers():
    scores = Scores(0.8, 0.9, 0.1, 0.1, 0.1)
    zeros = sparse(0.9, begin_epoch=1, schedule="one_shot", patience=1, **JUDGED)
    bits = quantizing("int4")
    with pytest.warns(UserWarning, match="SparsityCallback stopped short"):
        model, _ = fit(scores, zeros, bits)
    assert {r.decision for r in zeros.rounds} == {"undone"}
    assert_equal(kernels(model), scores.seen[1])
    assert levels(model) <= 15


@pytest.mark.parametrize("scheme", ["binary", "quaternary", "pcm", "mu_law", "pairs", "qam"])
def test_lattices_without_a_zero_are_refused_beside_zeros(scheme):
    model = network()
    before = kernels(model)
    with pytest.raises(ValueError, match=r"'end/kernel' to zero, and .* has no level 0\. Give"):
        fit(sparse(), quantizing("int4", overrides={"end": scheme}), model=model)
    assert_equal(kernels(model), before)
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))


def test_lattices_without_a_zero_are_fine_where_there_are_no_zeros():
    bits = quantizing("int4", overrides={"end": "binary"})
    model, _ = fit(sparse(overrides={"end": 0}), bits)
    assert len(np.unique(np.abs(model.layers[-1].kernel.numpy()[:, 0]))) == 1
    assert (model.layers[0].kernel.numpy() == 0).mean() > 0.3


def test_quantization_waits_until_channels_are_judged():
    scores = Scores(0.9, 0.9, 0.2, 0.9, 0.9, 0.9)
    channels = slim(begin_epoch=1, patience=3, **JUDGED)
    bits = quantizing(begin_epoch=2)
    model, _ = fit(scores, channels, bits, epochs=6)
    assert [(r.epoch, r.decision) for r in channels.rounds] == [(1, "kept")]
    assert [r.epoch for r in bits.rounds] == [3]
    assert levels(model) == 3


def test_weights_on_the_level_zero_may_leave_it_after_channels_left():
    zeros = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: zeros.append(
            {path: kernel == 0 for path, kernel in kernels(model).items()}
        )
    )
    model = network(keras.optimizers.Adam(0.02))
    given = model.layers[0].kernel.numpy()
    given[:2] = 0
    model.layers[0].kernel.assign(given)
    fit(quantizing(), slim(begin_epoch=0), look, model=model, epochs=6)
    assert any((zeros[1][path] & ~zeros[5][path]).any() for path in zeros[5])
    assert zeros[5]["one/kernel"][:2].all()


@pytest.mark.parametrize("who", ["channels", "weights"])
def test_a_teacher_of_another_callback_teaches_beside_few_bits(who):
    own = slim(teacher=True) if who == "channels" else sparse(teacher=True)
    looking = Looking(levels)
    model, history = fit(quantizing("int4"), own, looking, epochs=3)
    assert max(looking.seen) <= 15
    assert np.isfinite(history.history["distillation_loss"][1:]).all()
    assert {"train_step", "make_train_function"}.isdisjoint(vars(model))


def test_a_run_prints_what_it_brought(capsys):
    callback = quantizing("int4", verbose=1)
    fit(callback, epochs=2)
    assert "SGDAP: 9,216 → " in capsys.readouterr().out
    assert str(callback.summary).splitlines()[0].startswith("bits")
    assert callback.summary.bits["one/kernel"] == (32 * 128, 4 * 128 + 32 * 16)


def test_a_fit_that_stops_before_quantization_says_that_the_model_is_float():
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", True)
    )
    model = network()
    with pytest.warns(UserWarning, match="kernels of few bits: they are float"):
        fit(quantizing(begin_epoch=2), stop, model=model)


def test_of_a_convolution_beside_channels_and_zeros_all_is_held():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Reshape((4, 2, 1)),
            layers.Conv2D(8, 2, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(4, "softmax", name="end"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    zeros = sparse(0.6)
    bits = quantizing("int4", "int8", learned_scales=True)
    fit(slim(0.6), zeros, bits, model=model, epochs=5)
    assert model.get_layer("conv").filters < 8
    for name in ("conv", "end"):
        kernel, mask = model.get_layer(name).kernel.numpy(), zeros.masks[f"{name}/kernel"]
        assert not kernel[~mask].any()
        assert max(len(np.unique(c)) for c in kernel.reshape(-1, kernel.shape[-1]).T) <= 15
    assert (zeros.summary.sparsity >= 0.6) and bits.ranges
