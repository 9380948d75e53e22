"""Interrupted at any line, a model is wholly what it was or wholly what it was to become."""

import itertools
import random
from collections.abc import Callable

import keras
import numpy as np
import pytest
from hypothesis import settings
from keras import layers, optimizers

import sgdap
from sgdap import _keras
from sgdap.model.tracing import trace
from sgdap.surgery import prune_in_place, restore_snapshot, take_snapshot
from sgdap.surgery.adopt import Change, adopt
from sgdap.surgery.prepare import prepare
from sgdap.surgery.prune import pruned
from tests.interruption import behaviour, equal, held_by, interrupt, unchanged
from tests.models import outputs
from tests.oracles import random_removal

X = np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32")
Y = np.arange(8) % 3


def compiled(model: keras.Model, optimizer) -> keras.Model:
    """A model that was trained and asked, so that there is something to keep consistent."""
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.train_on_batch(X, Y)
    model.predict(X, verbose=0)
    model.test_on_batch(X, Y)
    return model


def nested() -> keras.Model:
    """Models in models, wrappers, operations whose arguments change, normalization, averages."""
    inner = keras.Sequential(
        [
            keras.Input((3, 4)),
            layers.TimeDistributed(layers.Dense(5, "tanh")),
            layers.BatchNormalization(),
        ],
        name="inner",
    )
    inputs = keras.Input((3, 4))
    x = keras.ops.reshape(inner(inputs), (-1, 15))
    x = layers.Dense(6, "elu", name="hidden")(x)
    x = keras.ops.concatenate([x[:, :3], x[:, 3:]], -1)
    model = keras.Model(inputs, layers.Dense(3, "softmax", name="end")(x))
    return compiled(model, optimizers.Adam(0.01, use_ema=True))


def scaled() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((3, 4)),
            layers.LSTM(5, dropout=0.3, seed=1),
            layers.Dense(4, "tanh"),
            layers.Dense(3, "softmax"),
        ]
    )
    return compiled(model, optimizers.LossScaleOptimizer(optimizers.Adafactor(0.01)))


def shared_out() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((3, 4)),
            layers.Flatten(),
            layers.Dense(5, "tanh", name="first"),
            layers.Dense(3, "softmax", name="end"),
        ],
        name="shared",
    )
    by_path = {"shared/first/.*": optimizers.SGD(0.01, momentum=0.9)}
    by_layer = optimizers.OptimizerMap(optimizers.Adam(0.01), by_path)
    return compiled(model, optimizers.MultiOptimizer(by_layer))


class Own(keras.Model):
    """With a `call` of its own."""

    def __init__(self):
        super().__init__(name="own")
        self.flatten = layers.Flatten()
        self.first = layers.Dense(5, "tanh")
        self.second = layers.Dense(3, "softmax")

    def call(self, x):
        return self.second(self.first(self.flatten(x)))


def own() -> keras.Model:
    model = Own()
    model(X)
    return compiled(model, optimizers.SGD(0.01, momentum=0.5))


MODELS = (nested, scaled, shared_out, own)

LINES = settings().max_examples // 2
"""How many lines of whole rounds are interrupted."""


def made(make: Callable[[], keras.Model]) -> keras.Model:
    """The same model with the same weights and names each time."""
    with _keras.name_counters_kept():
        keras.utils.set_random_seed(0)
        return make()


def slim(make: Callable[[], keras.Model]) -> keras.Model:
    model = made(make)
    prune(model)
    return model


def prune(model: keras.Model) -> None:
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, random_removal(graph))


def prepared(model: keras.Model) -> Change:
    graph = sgdap.channel_graph(model)
    return pruned(graph, random_removal(graph))


@pytest.mark.parametrize("make", MODELS)
def test_preparing_a_change_leaves_no_trace(make):
    def begin() -> None:
        keras.utils.set_random_seed(1)
        keras.backend.clear_session()

    def drawn() -> list:
        return [layers.Dropout(0.5).name, random.random(), keras.random.uniform((2,)).numpy()]

    model = made(make)
    before = held_by(model)
    begin()
    expected = drawn()
    begin()
    assert prepared(model).insides
    assert unchanged(before)
    for value, other in zip(drawn(), expected, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("make", MODELS)
def test_an_adoption_that_is_interrupted_at_any_line_is_whole(make, tmp_path):
    expected = behaviour(slim(make), X, Y, tmp_path)
    model = made(make)
    change, before = prepared(model), held_by(model)
    for line in itertools.count():
        lines = interrupt(lambda model=model, change=change: adopt(model, change), line)
        if unchanged(before):  # the interruption left no trace at all
            continue
        assert equal(behaviour(model, X, Y, tmp_path), expected)
        if len(lines) < line:  # all was run
            break
        model = made(make)
        change, before = prepared(model), held_by(model)
    assert line > 100


@pytest.mark.parametrize("make", MODELS)
def test_a_removal_and_its_undoing_interrupted_anywhere_leave_a_whole_model(make, tmp_path):
    snapshot = take_snapshot(made(make))
    expected = [behaviour(model, X, Y, tmp_path) for model in (made(make), slim(make))]

    def undo(model: keras.Model) -> None:
        restore_snapshot(model, snapshot, counters=True)

    for start, action in ((made, prune), (slim, undo)):
        for line in some_lines(lambda start=start, action=action: action(start(make)), LINES // 8):
            model = start(make)
            interrupt(lambda model=model, action=action: action(model), line)
            found = behaviour(model, X, Y, tmp_path)
            assert any(equal(found, whole) for whole in expected), line


@pytest.mark.compiled
def test_a_change_of_values_alone_keeps_all_objects_and_training_goes_on_from_it():
    model = made(shared_out)
    layer = model.get_layer("first")
    weights, slots = layer.weights, [v.numpy() for v in model.optimizer.variables]
    key = next(path for path, one in trace(model).layers().items() if one is layer), 0
    zeros = np.where(np.arange(60).reshape(12, 5) % 3, 0, layer.kernel.numpy())
    adopt(model, prepare(trace(model), {}, {}, {key: zeros}, {}))
    assert all(one is other for one, other in zip(layer.weights, weights, strict=True))
    np.testing.assert_array_equal(layer.kernel, zeros)
    for slot, value in zip(model.optimizer.variables, slots, strict=True):
        np.testing.assert_array_equal(slot, value)
    np.testing.assert_allclose(model.predict(X, verbose=0), outputs(model, X), atol=1e-6)
    before = model.get_weights()
    model.train_on_batch(X, Y)
    assert all(np.any(one != other) for one, other in zip(before, model.get_weights(), strict=True))


def test_a_fit_that_is_interrupted_anywhere_leaves_a_whole_model(tmp_path):
    def still() -> keras.Model:
        model = keras.Sequential(
            [
                *(keras.Input((3, 4)), layers.Flatten()),
                *(layers.Dense(6, "tanh"), layers.Dense(3, "softmax")),
            ]
        )
        return compiled(model, optimizers.SGD(0.0, momentum=0.5))

    def fit(model: keras.Model) -> None:
        half = sgdap.Budget(flops=0.5)
        callback = sgdap.SGDAPCallback(half, schedule="one_shot", jit_compile=None, verbose=0)
        model.fit(X, Y, epochs=2, verbose=0, shuffle=False, callbacks=[callback])

    def weights_of(model: keras.Model) -> list[np.ndarray]:
        model.optimizer.learning_rate = 0.1
        return [value for value in behaviour(model, X, Y, tmp_path) if value.ndim]

    whole, pruned_one = made(still), made(still)
    fit(pruned_one)
    expected = [weights_of(model) for model in (whole, pruned_one)]
    assert not equal(*expected)
    for line in some_lines(lambda: fit(made(still)), LINES // 5):
        model = made(still)
        interrupt(lambda model=model: fit(model), line)
        found = weights_of(model)
        assert any(equal(found, one) for one in expected), line


def some_lines(action: Callable[[], object], count: int) -> list[int]:
    """Numbers of lines that an action runs, at random, as many of each module as of another."""
    files = np.array(interrupt(action, None))
    choice = np.random.default_rng(LINES)
    modules = sorted(set(files))
    picked = [modules[choice.integers(len(modules))] for _ in range(count)]
    return [int(choice.choice(np.flatnonzero(files == module))) for module in picked]
