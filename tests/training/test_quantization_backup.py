"""A `fit` on lattices that was killed ends as one that was not, to the bit."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.quantization import Affine, Pairs
from tests.largest import X, Y, network


class Killed(Exception):  # noqa: N818
    pass


class KilledAt(keras.callbacks.Callback):
    """Ends the process, as it were, in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.at, self.epoch = epoch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (self.at, 1):
            raise Killed


def quantizing(**options):
    return sgdap.QuantizationCallback(
        **{"scheme": "int4", "begin_epoch": 1, "verbose": 0} | options
    )


def slim(**options):
    own = {"guidance": "magnitude", "allocation": "layerwise", "begin_epoch": 1} | options
    own |= {"schedule": "one_shot", "round_to": 1, "jit_compile": None, "verbose": 0}
    return sgdap.SGDAPCallback(sgdap.Budget(params=0.6), **own)


def sparse(**options):
    own = {"guidance": "magnitude", "begin_epoch": 0, "schedule": sgdap.Linear(rounds=3)} | options
    return sgdap.SparsityCallback(0.6, verbose=0, **own)


def dense():
    return network(keras.optimizers.Adam(0.01))


def by_xla():
    return network(keras.optimizers.Adam(0.01), jit_compile=True)


def averaging():
    return network(keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True))


def scaled():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Reshape((4, 2, 1), name="image"),
            layers.Conv2D(6, 2, activation="relu", dtype="mixed_float16", name="conv"),
            layers.BatchNormalization(dtype="mixed_float16", name="norm"),
            layers.Flatten(name="flat"),
            layers.Dropout(0.2, name="some"),
            layers.Dense(4, "softmax", name="end"),
        ]
    )
    scaling = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), 8.0, 3)
    model.compile(scaling, "sparse_categorical_crossentropy", jit_compile=False)
    return model


RUNS = {
    "steps of a scheme": (dense, {}, ()),
    "asymmetric groups": (dense, {"scheme": Affine(bits=3, per=3, symmetric=False)}, ()),
    "levels": (dense, {"scheme": "quaternary"}, ()),
    "pairs": (dense, {"scheme": Pairs(size=4)}, ()),
    "noise": (dense, {"noise": True, "seed": 3}, ()),
    "learned": (dense, {"scheme": "ternary", "learned_scales": True}, ()),
    "activations": (dense, {"activations": "int8"}, ()),
    "averages": (averaging, {}, ()),
    "a scaled loss": (scaled, {"activations": "int8", "learned_scales": True}, ()),
    "channels": (dense, {"activations": "int8", "learned_scales": True}, (slim,)),
    "zeros": (dense, {"scheme": "ternary", "learned_scales": True}, (sparse,)),
    "all": (dense, {"activations": "int8"}, (sparse, slim)),
}
COMPILED = {"XLA": (by_xla, {"activations": "int8", "learned_scales": True}, (sparse,))}


def fit(name, *others, folder=None):
    make, options, beside = (RUNS | COMPILED)[name]
    model = make()
    callback = quantizing(backup_dir=folder, **options)
    callbacks = [callback, *(own() for own in beside), *others]
    history = model.fit(X, Y, epochs=4, batch_size=32, verbose=0, callbacks=callbacks)
    return model, callback, history


uninterrupted = functools.cache(fit)


def state(model) -> list[np.ndarray]:
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def assert_same(found, wanted) -> None:
    (model, callback, history), (other, expected, whole) = found, wanted
    for one, two in zip(state(model), state(other), strict=True):
        np.testing.assert_array_equal(one, two)
    assert callback.rounds == expected.rounds and callback.summary == expected.summary
    assert callback.ranges == expected.ranges and callback.schemes == expected.schemes
    assert history.history["loss"] == whole.history["loss"][history.epoch[0] :]


@pytest.mark.parametrize("name", [*RUNS, pytest.param("XLA", marks=pytest.mark.compiled)])
def test_a_run_that_is_killed_in_its_middle_ends_as_one_that_is_not(tmp_path, name):
    """The backup is of the epoch's beginning; for activations their ranges are frozen by then."""
    with pytest.raises(Killed):
        fit(name, KilledAt(3), folder=tmp_path / "run")
    found = fit(name, folder=tmp_path / "run")
    assert found[2].epoch == [3]
    assert_same(found, uninterrupted(name))
    assert not (tmp_path / "run").exists()


def test_the_moment_does_not_matter(tmp_path):
    """Before epoch 1 all is float; in 1 and 2, where channels leave, ranges are being gathered."""
    for epoch in range(1, 4):
        with pytest.raises(Killed):
            fit("all", KilledAt(epoch), folder=tmp_path)
    assert_same(fit("all", folder=tmp_path), uninterrupted("all"))


def test_a_backup_with_other_settings_is_refused_and_nothing_changes(tmp_path):
    with pytest.raises(Killed):
        fit("steps of a scheme", KilledAt(2), folder=tmp_path)
    for name, words in (
        ("learned", "other settings: learned_scales=False, now True; scheme='int4', now 'ternary'"),
        ("zeros", "other settings: .*SparsityCallback.sparsity"),
        ("a scaled loss", "other settings|another model or optimizer"),
    ):
        model = RUNS[name][0]()
        before = model.get_weights()
        callbacks = [
            quantizing(backup_dir=tmp_path, **RUNS[name][1]),
            *(o() for o in RUNS[name][2]),
        ]
        with pytest.raises(ValueError, match=words):
            model.fit(X, Y, epochs=4, verbose=0, callbacks=callbacks)
        for one, two in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(one, two)
        assert {"train_step", "make_train_function"}.isdisjoint(vars(model))
