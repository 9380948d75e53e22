"""Units leave a model in place: its objects stay, and it computes what the shallower copy does."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap import _keras
from sgdap.depth import removable_units, shallower
from sgdap.depth.shallower import incompatible
from sgdap.surgery import take_snapshot
from sgdap.surgery.adopt import adopt
from sgdap.surgery.rewire import bypass_in_place, bypassed
from sgdap.surgery.snapshot import restore_snapshot
from tests.depth.models import ALL, chain, residual, samples
from tests.depth.oracle import holds, random_bypass, trains_every_weight
from tests.interruption import behaviour, equal, held_by, interrupt, unchanged


def compiled(make, optimizer="adam"):
    model = make()
    model.compile(optimizer, "mse")
    x = samples(model)
    y = np.random.default_rng(1).normal(size=(len(x), 3)).astype("float32")
    model.fit(x, y, verbose=0)
    return model, x, y


def some_units(model):
    graph, rng = sgdap.channel_graph(model), np.random.default_rng(0)
    chosen = []
    for unit in removable_units(graph)[::-1]:
        if not incompatible(graph, [own.unit for own in chosen] + [unit]):
            chosen.append(random_bypass(graph, unit, rng))
    return graph, chosen[:2]


@pytest.mark.parametrize("make", ALL)
def test_the_model_computes_what_the_copy_does_trains_and_loads(make, tmp_path):
    model, x, y = compiled(make)
    graph, bypasses = some_units(model)
    copy = shallower(graph, bypasses).model
    objects = {layer.name: layer for layer in model.layers}
    optimizer, kind = model.optimizer, type(model)
    bypass_in_place(graph, bypasses)
    gone = {path for own in bypasses for path in own.unit.layers}
    assert gone.isdisjoint(holds(model))
    assert all(objects[layer.name] is layer for layer in model.layers)
    assert model.optimizer is optimizer and type(model) is kind
    np.testing.assert_array_equal(model.predict(x, verbose=0), copy.predict(x, verbose=0))
    assert model.count_params() == copy.count_params()
    assert trains_every_weight(model, x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "rmsprop", "muon"])
def test_the_next_step_is_that_of_the_copy_with_the_same_optimizer(optimizer):
    model, x, y = compiled(residual, optimizer)
    graph, bypasses = some_units(model)
    plain = [own for own in bypasses if own.matrix is None][:1]
    copy, own = sgdap.functional(model), model.optimizer
    made = shallower(graph, plain)
    slots = {v.path.split("/", 1)[-1]: v.numpy() for v in own.variables}
    bypass_in_place(graph, plain)
    kept = {v.path.split("/", 1)[-1]: v.numpy() for v in own.variables}
    assert 0 < len(kept) < len(slots)
    assert all(np.array_equal(slots[path], value) for path, value in kept.items())
    assert {id(v) for v in model.trainable_variables} == {
        id(v) for v in sgdap._keras.optimizers.optimizer_variables(own)
    }
    model.fit(x, y, verbose=0)
    assert made.model.count_params() < copy.count_params()


def test_the_way_back_brings_everything_back():
    model, x, y = compiled(residual)
    before, model_before = model.predict(x, verbose=0), take_snapshot(model)
    names = [layer.name for layer in model.layers]
    graph, bypasses = some_units(model)
    back = bypass_in_place(graph, bypasses)
    model.fit(x, y, verbose=0)
    back.go(model)
    restore_snapshot(model, model_before)
    assert [layer.name for layer in model.layers] == names
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    assert int(model.optimizer.iterations.numpy()) == 2  # counters go on
    assert trains_every_weight(model, x, y)


def test_an_adoption_that_is_interrupted_at_any_line_is_whole(tmp_path):
    def prepared():
        with _keras.name_counters_kept():
            keras.utils.set_random_seed(0)
            model, x, y = compiled(chain)
        graph, bypasses = some_units(model)
        return model, x, y, bypassed(graph.program, shallower(graph, bypasses))

    model, x, y, change = prepared()
    adopt(model, change)
    expected = behaviour(model, x, y, tmp_path)
    model, x, y, change = prepared()
    before = held_by(model)
    for line in itertools.count():
        lines = interrupt(lambda model=model, change=change: adopt(model, change), line)
        if unchanged(before):
            continue
        assert equal(behaviour(model, x, y, tmp_path), expected)
        if len(lines) < line:
            break
        model, x, y, change = prepared()
        before = held_by(model)
    assert line > 50


@pytest.mark.parametrize("make", [chain, residual])
def test_checkpoints_of_tensorflow_know_what_stays_alone(make, tmp_path):
    import tensorflow as tf

    model, x, _ = compiled(make)
    graph, bypasses = some_units(model)
    bypass_in_place(graph, bypasses)
    gone = {path for own in bypasses for path in own.unit.layers}
    expected = model.predict(x, verbose=0)
    kept = [layer for layer in model.layers if layer.weights]
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "kept"))
    names = {name for name, _ in tf.train.list_variables(path)}
    assert len(names) > len(model.variables)
    for layer in kept:
        for variable in layer.trainable_variables:
            variable.assign(0 * variable)
    tf.train.Checkpoint(model=model).read(path).expect_partial()
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    held = graph.program.functional._self_unconditional_dependency_names["_operations"]
    assert gone.isdisjoint(operation.name for operation in held)


def test_a_layer_set_later_is_tracked():
    model, *_ = compiled(residual)
    graph, bypasses = some_units(model)
    bypass_in_place(graph, bypasses)
    model.extra = layers.Dense(2, name="extra")
    assert "extra" in holds(model)


@pytest.mark.compiled
def test_functions_compiled_before_fail():
    import tensorflow as tf

    model, x, _ = compiled(chain)
    function = tf.function(lambda x: model(x))
    function(x)
    bypass_in_place(*some_units(model))
    with pytest.raises(Exception, match="(?i)shape|dimension|matrix|incompatible"):
        function(x)


class OwnCall(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, name="hidden")
        self.end = layers.Dense(3, name="end")

    def call(self, x):
        return self.end(self.hidden(x))


def nested():
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(4)], name="inner")
    return keras.Sequential([keras.Input((5,)), inner, layers.Dense(3)])


@pytest.mark.parametrize(("make", "why"), [(OwnCall, "`call` of its own"), (nested, "'inner'")])
def test_where_it_can_not_be_done_in_place_an_error_says_so(make, why):
    model = make()
    model(np.ones((1, 5), "float32"))
    graph = sgdap.channel_graph(model)
    bypass = random_bypass(graph, removable_units(graph)[0], np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"{why}.*sgdap.functional"):
        bypass_in_place(graph, [bypass])
    copy = shallower(graph, [bypass]).model
    assert copy.count_params() < model.count_params()
