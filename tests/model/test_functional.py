"""Models with code of their own: slim in place, slim as functional models, saved and reloaded."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops

import sgdap
from sgdap import _keras
from sgdap.surgery import prune_in_place
from sgdap.surgery.apply import copied
from tests.models import (
    STEPS,
    Composite,
    OwnModel,
    assemble,
    examples_of_models,
    outputs,
    randomise,
    samples,
)
from tests.oracles import masked_outputs, random_removal

RECIPES = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 11)), min_size=1, max_size=4
)


def random_plan(model: keras.Model) -> sgdap.Plan:
    x = np.random.default_rng(0).normal(size=(16, *model.get_build_config()["input_shape"][1:]))
    return sgdap.plan(model, x, sgdap.Budget(params=0.6), guidance="random", reconstruction=False)


def own(shape: tuple[int, ...] = (6,)) -> keras.Model:
    """A model in a model, layers in a list, a layer with code of its own, `training`."""
    parts = [layers.Dense(8, name="first"), Composite("residual", 8, name="residual")]
    inner = keras.Sequential([keras.Input(shape), *parts], name="inner")
    model = OwnModel(inner, name="own")
    model(np.zeros((2, *shape), "float32"))
    return randomise(model)


@pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning")
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning")
@pytest.mark.compiled
@examples_of_models
@given(st.integers(0, 3), RECIPES)
def test_random_models_in_a_call_are_pruned_in_place_and_as_functional_models(spatial, recipe):
    def make() -> keras.Model:
        model = OwnModel(assemble(spatial, recipe))
        model(samples(model.body))
        return model

    model, slim = make(), make()
    randomise(model)
    slim.set_weights(model.get_weights())
    x = samples(model.body)
    graph = sgdap.channel_graph(slim)
    kept = random_removal(graph)
    other = copied(graph)
    prune_in_place(other, kept)
    prune_in_place(graph, kept)
    expected = masked_outputs(model, slim, x)
    np.testing.assert_allclose(outputs(slim, x), expected, rtol=1e-4, atol=1e-4)
    found = outputs(other.program.model, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_tracing_leaves_nothing_behind():
    model = own()
    parts = list(_keras.flatten_layers(model))
    before = [
        (layer.name, len(layer._inbound_nodes), len(layer._outbound_nodes), len(layer.variables))
        for layer in parts
    ]
    call, symbolic_call = keras.Layer.__call__, keras.Operation.symbolic_call
    sgdap.channel_graph(model)
    assert before == [
        (layer.name, len(layer._inbound_nodes), len(layer._outbound_nodes), len(layer.variables))
        for layer in parts
    ]
    assert list(map(id, parts)) == list(map(id, _keras.flatten_layers(model)))
    assert (keras.Layer.__call__, keras.Operation.symbolic_call) == (call, symbolic_call)


def test_apply_returns_a_functional_model_that_loads_without_the_class(tmp_path):
    model = own()
    before = model.get_weights()
    slim = sgdap.apply(model, random_plan(model))
    assert slim.count_params() < model.count_params()
    assert {"after", "last"} <= {layer.name for layer in slim.layers}
    slim.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras")
    x = np.ones((3, 6), "float32")
    np.testing.assert_array_equal(outputs(slim, x), outputs(loaded, x))
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.compiled
def test_a_model_with_its_own_call_trains_on_exports_and_takes_weights(tmp_path):
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    model = own()
    model.compile("adam", "mse")
    model.fit(x, x[:, :3], verbose=0)
    plan = random_plan(model)
    same = own()
    sgdap.apply(model, plan, in_place=True)
    sgdap.apply(same, plan, in_place=True)
    model.fit(x, x[:, :3], epochs=2, verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), outputs(model, x), atol=1e-5)
    model.save_weights(tmp_path / "slim.weights.h5")
    same.load_weights(tmp_path / "slim.weights.h5")
    np.testing.assert_allclose(outputs(same, x), outputs(model, x), atol=1e-6)
    model.export(tmp_path / "served", verbose=False)
    served = keras.layers.TFSMLayer(str(tmp_path / "served"), call_endpoint="serve")
    np.testing.assert_allclose(served(x), outputs(model, x), atol=1e-5)
    np.testing.assert_allclose(outputs(sgdap.functional(model), x), outputs(model, x), atol=1e-6)


@pytest.mark.compiled
def test_a_model_with_its_own_call_is_pruned_in_fit():
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    model = OwnModel()
    model(x)
    model.compile("adam", "mse")
    callback = sgdap.SGDAPCallback(sgdap.Budget(params=0.7), verbose=0)
    model.fit(x, x[:, :3], epochs=4, validation_data=(x, x[:, :3]), callbacks=[callback], verbose=0)
    assert model.count_params() <= 0.7 * (7 * 4 + 5 * 6 + 7 * 3)


class Many(keras.Model):
    """Inputs by name, outputs by name, a layer that is called twice."""

    def __init__(self):
        super().__init__(name="many")
        self.shared = layers.Dense(6, "relu", name="shared")
        self.ends = {name: layers.Dense(2, name=name) for name in ("sum", "left")}

    def call(self, inputs):
        left, right = self.shared(inputs["left"]), self.shared(inputs["right"])
        if left.shape[-1] == right.shape[-1]:
            right = left + right
        return {"sum": self.ends["sum"](right), "left": self.ends["left"](left)}


def test_inputs_and_outputs_keep_their_names():
    model = Many()
    x = {"left": np.ones((2, 4), "float32"), "right": np.zeros((2, 4), "float32")}
    model(x)
    graph = sgdap.channel_graph(model)
    other = copied(graph)
    kept = random_removal(graph)
    prune_in_place(other, kept)
    prune_in_place(graph, kept)
    expected, found = model(x), other.program.model(x)
    assert model.shared.units == 3
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


class Sized(keras.Model):
    """Writes a size as a number, and another one from a shape."""

    def __init__(self):
        super().__init__(name="sized")
        self.fixed, self.free = layers.Dense(6, name="fixed"), layers.Dense(6, name="free")
        self.end = layers.Dense(2)

    def call(self, x):
        x = ops.reshape(self.fixed(x), (-1, 3, 2))
        x = self.free(ops.reshape(x, (-1, 6)))
        return self.end(ops.reshape(x, (-1, x.shape[-1])))


def test_a_size_written_as_a_number_keeps_its_channels_and_is_named():
    model = Sized()
    model(np.ones((2, 4), "float32"))
    graph = sgdap.channel_graph(model)
    assert not graph.group("fixed").prunable
    assert "`call` of 'sized' does not follow" in graph.group("fixed").reasons[0]
    assert "ops.reshape(self.fixed(x), (-1, 3, 2))" in graph.group("fixed").reasons[0]
    assert graph.group("free").prunable


class Deciding(keras.Model):
    """Looks at values."""

    def __init__(self):
        super().__init__(name="deciding")
        self.end = layers.Dense(2)

    def build(self, input_shape):
        self.end.build(input_shape)

    def call(self, x):
        if ops.max(x) > 0:
            x = -x
        return self.end(x)


def test_what_cannot_be_traced_is_refused_with_its_line_and_the_remedy():
    model = Deciding()
    model(np.ones((2, 4), "float32"))
    with pytest.raises(
        ValueError, match=r"(?s)'deciding' .*test_functional\.py:\d+ .*`if ops\.max"
    ):
        sgdap.channel_graph(model)


@keras.saving.register_keras_serializable("tests")
class Backbone(keras.Model):
    """A functional model whose class has its own config, as those of keras_hub."""

    def __init__(self, width, **kwargs):
        inputs = keras.Input((4,))
        super().__init__(inputs, layers.Dense(2)(layers.Dense(width)(inputs)), **kwargs)
        self.width = width

    def get_config(self):
        return {"name": self.name, "width": self.width}


def test_a_functional_model_with_its_own_config_is_saved_as_a_plain_one(tmp_path):
    model = Backbone(8)
    graph = sgdap.channel_graph(model)
    plan = random_plan_of(graph)
    slim = sgdap.apply(model, plan)
    slim.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras")
    x = np.ones((3, 4), "float32")
    np.testing.assert_array_equal(outputs(slim, x), outputs(loaded, x))
    assert slim.count_params() < model.count_params()
    assert not isinstance(slim, Backbone)


def random_plan_of(graph) -> sgdap.Plan:
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    budget = sgdap.Budget(params=0.6)
    return sgdap.plan(graph.program.model, x, budget, guidance="random", reconstruction=False)


@keras.saving.register_keras_serializable("tests")
class Pooling(layers.Layer):
    """Reads the mask that comes with its input."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4, name="inner")
        self.supports_masking = True

    def call(self, x, mask=None):
        x = self.dense(x)
        return ops.sum(x * ops.cast(mask, x.dtype)[:, :, None], 1) if mask is not None else x[:, 0]


def test_a_layer_behind_a_mask_is_left_whole():
    inputs = keras.Input((5,))
    x = Pooling(name="pooling")(layers.Embedding(7, 6, mask_zero=True, name="table")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    graph = sgdap.channel_graph(model)
    assert "pooling" in dict(graph.kept)
    assert not graph.group("table").prunable
    x = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]])
    np.testing.assert_allclose(outputs(sgdap.functional(model), x), outputs(model, x), atol=1e-6)


class Scaled(keras.Model):
    """Reads a weight of its own."""

    def __init__(self):
        super().__init__(name="scaled")
        self.hidden, self.end = layers.Dense(4, name="hidden"), layers.Dense(2)
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, x):
        return self.end(self.hidden(x) * self.scale)


def test_a_weight_outside_of_layers_is_named_where_a_functional_model_is_wanted():
    model = Scaled()
    model(np.ones((2, 4), "float32"))
    with pytest.raises(ValueError, match="'scaled' reads the weight 'scale'.*in_place=True"):
        sgdap.functional(model)
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, random_removal(graph))
    assert model.hidden.units in (2, 4)


@keras.saving.register_keras_serializable("tests")
class DropPath(layers.Layer):
    """Stochastic depth: drops whole samples in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x, training=None):
        if training:
            noise = keras.random.uniform((ops.shape(x)[0], 1), seed=self.seed_generator)
            return ops.where(noise < 0.5, 0.0, 2 * x)
        return x


def with_stochastic_depth() -> keras.Model:
    inputs = keras.Input((6,))
    x = layers.Dense(6, name="stem")(inputs)
    for n in range(2):
        y = layers.Dense(8, "relu", name=f"hidden_{n}")(x)
        x = layers.Add()([x, DropPath(name=f"drop_{n}")(layers.Dense(6)(y))])
    return randomise(keras.Model(inputs, layers.Dense(3)(x)))


def differs_in_training(model: keras.Model) -> bool:
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    return not np.array_equal(model(x, training=True), model(x, training=False))


@pytest.mark.parametrize("depth", [False, 0.25])
def test_what_a_layer_without_weights_does_in_training_alone_is_in_every_copy(depth):
    model = with_stochastic_depth()
    assert differs_in_training(sgdap.functional(model))
    graph = sgdap.channel_graph(model)
    assert graph.group("hidden_0").prunable and graph.group("stem").prunable
    x = samples(model, 32)
    slim = sgdap.apply(model, sgdap.plan(model, x, sgdap.Budget(params=0.7), depth=depth))
    assert differs_in_training(slim)
    assert not differs_in_training(layers_without_drops(slim))


def layers_without_drops(model: keras.Model) -> keras.Model:
    """The control: the same model where nothing is dropped."""
    return keras.models.clone_model(
        model,
        clone_function=lambda layer: (
            layers.Identity(name=layer.name)
            if isinstance(layer, DropPath)
            else type(layer).from_config(layer.get_config())
        ),
    )


class TrainsOtherwise(keras.Model):
    """Counts its steps and drops, in training alone; `usual`: as Keras' layers do."""

    def __init__(self, usual: bool):
        super().__init__(name="own")
        self.usual, self.drop = usual, layers.Dropout(0.5)
        self.hidden, self.end = layers.Dense(8), layers.Dense(2)
        self.steps = self.add_weight(shape=(), name="steps", initializer="zeros", trainable=False)

    def call(self, x, training=None):
        x = self.hidden(x)
        if training and not self.usual:
            self.steps.assign_add(1)
            x = self.drop(x, training=True)
        if self.usual:
            x = self.drop(x, training=training)
        return self.end(x)


def test_a_functional_copy_says_that_it_lacks_what_a_call_does_in_training_alone():
    model = TrainsOtherwise(usual=False)
    model(np.ones((2, 6), "float32"))
    with pytest.warns(UserWarning, match="`call` of 'own'.*something else then.*in_place=True"):
        sgdap.functional(model)
    assert float(model.steps) == 0


def test_layers_that_are_told_of_training_are_copied_without_a_warning():
    model = TrainsOtherwise(usual=True)
    model(np.ones((2, 6), "float32"))
    assert differs_in_training(sgdap.functional(model))
