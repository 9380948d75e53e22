"""Layers made like others whose configs do not tell all."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.model.copying import made_like
from tests.models import outputs, randomise, samples


@keras.saving.register_keras_serializable("tests")
class Forgetting(layers.Layer):
    """Its config leaves out `power`, which has a default."""

    def __init__(self, units, power=1.0, **kwargs):
        super().__init__(**kwargs)
        self.units, self.power = units, power
        self._exponent = power

    def get_config(self):
        return {**super().get_config(), "units": self.units}

    def call(self, x):
        return x**self._exponent


@keras.saving.register_keras_serializable("tests")
class Lacking(Forgetting):
    """Its config leaves out an argument that it needs."""

    def __init__(self, units, power, **kwargs):
        super().__init__(units, power, **kwargs)


@keras.saving.register_keras_serializable("tests")
class Failing(Forgetting):
    """Its config names an attribute that it does not have."""

    def get_config(self):
        return {**super().get_config(), "power": self.exponent}


@keras.saving.register_keras_serializable("tests")
class Without(Forgetting):
    """Has no config of its own, and arguments that Keras can't save."""

    get_config = layers.Layer.get_config


@keras.saving.register_keras_serializable("tests")
class Surplus(Forgetting):
    """Its config tells more than it takes."""

    def get_config(self):
        return {**super().get_config(), "power": self.power, "squares": self.power * 2}


@pytest.mark.parametrize("kind", [Forgetting, Lacking, Failing, Without, Surplus])
def test_arguments_that_a_config_does_not_tell_are_read_from_the_attributes(kind):
    layer = kind(3, 2.0, dtype=keras.DTypePolicy("float32"), name="layer", trainable=False)
    new = made_like(layer, {})
    assert type(new) is kind and new.name == "layer" and not new.trainable
    x = np.array([[2.0, 3.0]], "float32")
    np.testing.assert_array_equal(new(x), x**2)


@pytest.mark.parametrize("kind", [Forgetting, Lacking, Failing, Without, Surplus])
def test_a_copy_tells_what_its_class_does_not_and_is_loaded(kind, tmp_path):
    inputs = keras.Input((4,))
    y = kind(3, 2.0, name="layer")(layers.Dense(3)(inputs))
    copy = sgdap.functional(randomise(keras.Model(inputs, layers.Dense(2)(y))))
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    x = np.ones((3, 4), "float32")
    np.testing.assert_allclose(outputs(loaded, x), outputs(copy, x), rtol=1e-6)


LAMBDAS = {
    "lambda": lambda: layers.Lambda(lambda x: x * 2.0),
    "lambda with its shape": lambda: layers.Lambda(lambda x: x * 2.0, output_shape=lambda s: s),
    "lambda with arguments": lambda: layers.Lambda(lambda x, by: x * by, arguments={"by": 2.0}),
    "function": lambda: layers.Lambda(keras.activations.relu),
}


@pytest.mark.parametrize("make", LAMBDAS.values(), ids=LAMBDAS)
@pytest.mark.parametrize("way", ["apply", "in place", "functional", "twice"])
def test_a_slim_model_with_a_lambda_is_loaded_as_the_whole_one_is(make, way, tmp_path):
    inputs = keras.Input((6,))
    hidden = layers.Dense(8)(layers.Dense(16, "relu")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(3)(make()(hidden))))
    x = samples(model, 32)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.7))
    slim = sgdap.apply(model, plan, in_place=way == "in place")
    if way in ("functional", "twice"):
        slim = sgdap.functional(slim)
    if way == "twice":
        slim = sgdap.functional(slim)
    slim.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras", safe_mode=False)
    assert loaded.layers[1].units < 16
    np.testing.assert_allclose(outputs(loaded, x), outputs(slim, x), rtol=1e-6)


@keras.saving.register_keras_serializable("tests")
class Calling(layers.Layer):
    """Has no config, and takes a function that Keras can't write."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


def test_what_cannot_be_read_back_is_not_written():
    layer = Calling(lambda x: x * 2.0)
    copy = made_like(layer, {})
    assert copy.function is layer.function
    for one in (layer, copy):
        with pytest.raises(NotImplementedError, match="get_config"):
            one.get_config()


def test_entries_that_change_take_the_place_of_attributes():
    new = made_like(Lacking(3, 2.0), {"units": 2})
    assert (new.units, new.power) == (2, 2.0)


@keras.saving.register_keras_serializable("tests")
class Halved(layers.Layer):
    """Keras finds out the shape of its output by a run, which takes dense tensors only."""

    def call(self, x):
        return keras.ops.mean(keras.ops.square(x), -1, keepdims=True) * x


@keras.saving.register_keras_serializable("tests")
class Around(layers.Layer):
    """A layer around another one that says its shape by itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.halved, self.dense = Halved(), layers.Dense(4)

    def build(self, shape):
        self.halved.build(shape)
        self.dense.build(shape)
        self.built = True

    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        return self.dense(self.halved(x))


def test_a_product_with_a_number_goes_into_any_layer_of_a_copy(tmp_path):
    inputs = keras.Input((4,))  # Keras takes such a product for a sparse tensor
    model = randomise(keras.Model(inputs, Around()(inputs * 2.0)))
    copy = sgdap.functional(model)
    copy.save(tmp_path / "copy.keras")
    x = np.ones((3, 4), "float32")
    for other in (copy, keras.models.load_model(tmp_path / "copy.keras")):
        np.testing.assert_allclose(outputs(other, x), outputs(model, x), rtol=1e-6)


class Hiding(layers.Layer):
    """Nothing tells what it was made with."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.applied = function

    def call(self, x):
        return self.applied(x)


def adapted(kind: str) -> tuple[keras.Model, object]:
    """A model that begins with a layer that learnt from data, and a batch for it."""
    if kind == "normalization":
        batch = np.random.default_rng(0).normal(3, 2, size=(64, 5)).astype("float32")
        x, first = keras.Input((5,)), layers.Normalization()
        first.adapt(batch)
    elif kind == "discretization":
        batch = np.random.default_rng(0).normal(size=(64, 1)).astype("float32")
        x, first = keras.Input((1,)), layers.Discretization(num_bins=4, output_mode="one_hot")
        first.adapt(batch)
    elif kind == "text":
        batch = tf.constant([["a b"], ["c a"], ["d"]] * 2)
        x, first = keras.Input((1,), dtype="string"), layers.TextVectorization(output_mode="tf_idf")
        first.adapt(batch)
    elif kind == "integers":
        batch = np.array([[3], [7], [7], [9]] * 2)
        x, first = keras.Input((1,), dtype="int64"), layers.IntegerLookup(output_mode="one_hot")
        first.adapt(batch)
    elif kind == "own":
        batch = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
        x, first = keras.Input((5,)), Total()
        first.build((None, 5))
        first.load_own_variables({"0": np.arange(5.0)})
    else:
        batch = tf.constant([["a"], ["b"], ["c"]] * 2)
        x, first = keras.Input((1,), dtype="string"), layers.StringLookup(output_mode="one_hot")
        first.adapt(batch)
    y = layers.Dense(12, "relu", name="hidden")(first(x))
    return keras.Model(x, layers.Dense(2)(y)), batch


@keras.saving.register_keras_serializable("tests")
class Total(layers.Layer):
    """Multiplies by the sum of its weights, which it computes when it loads them."""

    def build(self, shape):
        self.parts = self.add_weight(shape=(shape[-1],), trainable=False)
        self.total = 0.0

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.total = float(keras.ops.sum(self.parts))

    def call(self, x):
        return x * self.total


KINDS = ["normalization", "discretization", "text", "integers", "strings", "own"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_learnt_from_data_is_copied(kind, tmp_path):
    model, batch = adapted(kind)
    plan = sgdap.plan(model, batch, sgdap.Budget(params=1.0))
    copies = {
        "apply": sgdap.apply(model, plan),
        "functional": sgdap.functional(model),
        "to_dra": sgdap.layers.to_dra(model),
    }
    copies["fold"] = sgdap.fold(copies["to_dra"])
    expected = np.array(model(batch))
    for name, copy in copies.items():
        np.testing.assert_allclose(np.array(copy(batch)), expected, atol=1e-5, err_msg=name)
    copies["apply"].save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    np.testing.assert_allclose(np.array(loaded(batch)), expected, atol=1e-5)
    sgdap.pack(model, tmp_path / "copy.sgdap")
    unpacked = sgdap.unpack(tmp_path / "copy.sgdap", custom_objects={"Total": Total})
    np.testing.assert_array_equal(np.array(unpacked(batch)), expected)


def test_a_layer_that_nothing_tells_about_is_named_with_the_remedy():
    inputs = keras.Input((4,))
    x = Hiding(lambda x: x**2, name="hiding")(layers.Dense(3)(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Dense(6, name="wide")(x))))
    graph = sgdap.channel_graph(model)
    assert graph.group("wide").prunable
    x = np.ones((8, 4), "float32")
    plan = sgdap.plan(model, x, sgdap.Budget(params=0.8), guidance="random", reconstruction=False)
    with pytest.raises(ValueError, match="(?s)'hiding'.*override.*get_config.*in_place=True"):
        sgdap.apply(model, plan)
    before = model.count_params()
    sgdap.apply(model, plan, in_place=True)
    assert model.count_params() < before


class Block(layers.Layer):
    """A layer of layers, as those of keras_hub's backbones; its config tells its widths."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.wide, self.end = layers.Dense(width, "relu", name="wide"), layers.Dense(4, name="end")

    def build(self, shape):
        self.wide.build(shape)
        self.end.build((*shape[:-1], self.width))
        self.built = True

    def get_config(self):
        return {**super().get_config(), "width": self.width}

    def call(self, x):
        return x + self.end(self.wide(x))


class OfBlocks(keras.Model):
    """A functional model with a config of its own."""

    def __init__(self, width, **kwargs):
        x = inputs = keras.Input((None, 4))
        for number in range(2):
            x = Block(width, name=f"block_{number}")(x)
        super().__init__(inputs, x, **kwargs)
        self.width = width

    def get_config(self):
        return {"width": self.width}


@pytest.mark.parametrize("in_place", [False, True])
def test_layers_of_layers_in_a_model_with_its_own_config_are_pruned_inside(in_place, tmp_path):
    model = randomise(OfBlocks(8))
    x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32")
    whole = model.count_params()
    plan = sgdap.plan(model, x, sgdap.Budget(params=0.7), guidance="random", reconstruction=False)
    other = sgdap.apply(model, plan)
    slim = sgdap.apply(model, plan, in_place=in_place)
    assert slim.count_params() <= 0.7 * whole
    np.testing.assert_allclose(outputs(slim, x), outputs(other, x), atol=1e-6)
    sgdap.functional(slim).save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras")
    np.testing.assert_allclose(outputs(loaded, x), outputs(slim, x), atol=1e-6)
    slim.compile("sgd", "mse")
    slim.fit(x, x, verbose=0)


class OfLayers(keras.Model):
    """A functional model of plain layers with a config of its own."""

    def __init__(self, width, **kwargs):
        inputs = keras.Input((None, 4))
        super().__init__(inputs, layers.Dense(4)(layers.Dense(width)(inputs)), **kwargs)
        self.width = width

    def get_config(self):
        return {"width": self.width}


def test_a_model_around_one_with_its_own_config_is_copied_as_a_plain_one(tmp_path):
    inputs = keras.Input((None, 4))
    model = randomise(keras.Model(inputs, layers.Dense(2)(OfLayers(8)(inputs))))
    x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32")
    plan = sgdap.plan(model, x, sgdap.Budget(params=0.7), guidance="random", reconstruction=False)
    slim = sgdap.apply(model, plan)
    slim.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras")
    np.testing.assert_allclose(outputs(loaded, x), outputs(slim, x), atol=1e-6)


def test_a_plain_model_with_layers_of_layers_says_to_prune_the_functional_one():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Block(8, name="block")(inputs))
    (reason,) = sgdap.channel_graph(model).group("block/wide").reasons
    assert "prune sgdap.functional(model) instead" in reason
    assert sgdap.channel_graph(sgdap.functional(model)).group("wide").prunable


@pytest.mark.parametrize("called", [False, True])
def test_an_activation_with_weights_is_copied_and_never_built_by_looking(called):
    """Keras builds it in the first call of its layer, for the layer's width."""
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(8, "relu", name="before"),
            layers.Dense(6, activation=layers.PReLU(), name="kept"),
            layers.Dense(3, name="end"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(20, 5)).astype("float32")
    if called:
        model(x)
        model.layers[1].activation.alpha.assign(np.linspace(0, 1, 6))
    inspected = sgdap.inspect(model)
    assert (inspected.removable, inspected.channels) == (8, 17)
    assert model.layers[1].activation.built == called
    slim = sgdap.apply(model, sgdap.plan(model, x, sgdap.Budget(params=0.7)))
    assert slim.layers[0 if slim.layers[0].name == "before" else 1].units < 8
    np.testing.assert_allclose(outputs(sgdap.functional(model), x), outputs(model, x), atol=1e-6)
    assert model.layers[1].activation.alpha.shape == (6,)
