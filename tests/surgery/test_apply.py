"""Applying a plan: on a copy or in place, and only to the model it was made for."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.surgery.apply import copy_model, prune_by_plan
from tests.models import convnet, digits_like, mlp, outputs, randomise, samples
from tests.oracles import masked_outputs


@pytest.fixture(scope="module")
def pruned():
    model, x = convnet(), digits_like()[0]
    return model, sgdap.plan(model, x, sgdap.Budget(flops=0.5), samples=64), x


def test_the_slim_copy_is_another_model_and_the_original_stays(pruned):
    model, plan, x = pruned
    before, expected = model.get_weights(), outputs(model, x)
    slim = sgdap.apply(model, plan)
    assert slim is not model
    assert not {id(v) for v in slim.variables} & {id(v) for v in model.variables}
    assert all(map(np.array_equal, before, model.get_weights()))
    assert np.array_equal(outputs(model, x), expected)
    assert slim.count_params() == plan.params[1] < plan.params[0] == model.count_params()
    assert [layer.name for layer in slim.layers] == [layer.name for layer in model.layers]


def test_in_place_gives_the_model_itself_with_the_same_weights_as_the_copy(pruned):
    model, plan, _ = pruned
    slim = sgdap.apply(model, plan)
    mine = keras.models.clone_model(model)
    mine.set_weights(model.get_weights())
    assert sgdap.apply(mine, plan, in_place=True) is mine
    assert all(map(np.array_equal, slim.get_weights(), mine.get_weights()))


def test_without_reconstruction_the_slim_model_is_the_original_masked():
    model, x = convnet(), digits_like()[0]
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.4), reconstruction=False, samples=64)
    slim = sgdap.apply(model, plan)
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)


def test_reconstruction_comes_closer_to_the_original_than_slicing():
    model, x = convnet(), digits_like(256)[0]
    distance = {}
    for reconstruction in (True, False):
        plan = sgdap.plan(model, x, sgdap.Budget(flops=0.4), reconstruction=reconstruction)
        slim = sgdap.apply(model, plan)
        distance[reconstruction] = np.square(outputs(slim, x) - outputs(model, x)).mean()
    assert distance[True] < 0.5 * distance[False]


class Inside(layers.Layer):
    """A layer that gives the layers in it no names."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.first, self.second = layers.Dense(6, "relu"), layers.Dense(3)

    def call(self, x):
        return self.second(self.first(x))


def test_layers_that_a_layer_makes_are_known_by_their_names_in_the_copy():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2)(Inside()(layers.Dense(9, "relu")(inputs))))
    x = samples(model, 64)
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.7))
    copy = sgdap.apply(model, plan)
    expected = sgdap.apply(model, plan, in_place=True)
    np.testing.assert_allclose(outputs(copy, x), outputs(expected, x), atol=1e-6)
    names = [[own.name for own in m._flatten_layers()] for m in (copy, expected)]
    assert names[0] == names[1]


def test_a_compiled_model_gives_a_copy_that_is_compiled_alike(pruned):
    _, plan, (x, y) = *pruned[:2], digits_like(32)
    model = convnet(optimizer="adam", metrics=["accuracy"])
    slim = sgdap.apply(model, plan)
    assert isinstance(slim.optimizer, keras.optimizers.Adam)
    assert slim.optimizer is not model.optimizer
    assert set(slim.evaluate(x, y, verbose=0, return_dict=True)) == {"loss", "accuracy"}
    assert model.compiled


def test_a_loss_that_cannot_be_copied_is_told_in_a_warning(pruned):
    _, plan, _ = pruned
    model = convnet()

    class Unserialisable(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return y_pred

        def get_config(self):
            raise NotImplementedError("no config")

    model.compile("adam", Unserialisable())
    with pytest.warns(UserWarning, match="not compiled.*Call its `compile`"):
        slim = sgdap.apply(model, plan)
    assert not slim.compiled


def test_a_plan_for_another_model_is_refused_and_names_what_differs(pruned):
    _, plan, _ = pruned
    other = keras.Sequential(
        [keras.Input((8, 8, 2)), layers.Conv2D(9, 3, name="conv_1"), layers.Flatten()],
        name="stranger",
    )
    before = other.get_weights()
    with pytest.raises(ValueError, match=r"another model than 'stranger'.*'conv_1' has 6.*9"):
        sgdap.apply(other, plan)
    assert all(map(np.array_equal, before, other.get_weights()))


def test_a_reconstruction_for_other_weights_is_refused(pruned):
    _, plan, x = pruned
    model = convnet()
    model.get_layer("hidden").bias.assign_add(np.ones(7))
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"weights of model 'convnet' or the.* changed.*new plan"):
        sgdap.apply(model, plan, in_place=True)
    assert all(map(np.array_equal, before, model.get_weights()))
    only_widths = sgdap.plan(convnet(), x, sgdap.Budget(flops=0.5), reconstruction=False)
    assert sgdap.apply(model, only_widths).count_params() < model.count_params()


def test_a_reconstruction_for_other_weights_is_refused_wherever_a_plan_is_applied(pruned):
    _, plan, _ = pruned
    model = convnet()
    model.get_layer("hidden").bias.assign_add(np.ones(7))
    before = model.get_weights()
    with pytest.raises(ValueError, match="or the plan's channels changed since"):
        prune_by_plan(sgdap.channel_graph(model), plan)
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.parametrize("wrong", [None, "plan.json", {"groups": []}])
def test_what_is_no_plan_is_refused(wrong):
    with pytest.raises(TypeError, match=r"plan must be a sgdap\.Plan\. Received"):
        sgdap.apply(convnet(), wrong)


def test_what_is_no_model_is_refused(pruned):
    with pytest.raises(TypeError, match=r"Expected a keras\.Model\. Received: 'model\.keras'"):
        sgdap.apply("model.keras", pruned[1])


def test_a_layer_that_cannot_be_copied_is_named(pruned):
    class Opaque(layers.Layer):
        def __init__(self, secret, **kwargs):
            super().__init__(**kwargs)
            self.secret = secret

        def call(self, x):
            return x

    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), Opaque(object()), layers.Dense(3), layers.Dense(2)]
    )
    plan = sgdap.plan(model, np.eye(8, 4), sgdap.Budget(params=0.9))
    with pytest.raises(ValueError, match=r"(?s)can't be copied.*get_config.*in_place=True"):
        sgdap.apply(model, plan)
    assert sgdap.apply(model, plan, in_place=True) is model


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("zz:0", lambda value: value, "no such variable"),
        ("conv2", lambda value: value, "no such variable"),
        (None, lambda value: value[..., :-1], "of shape"),
        (None, lambda value: value * np.nan, "finite"),
    ],
)
def test_weights_that_someone_edited_are_refused_and_the_model_stays(pruned, key, change, said):
    model, plan, x = pruned
    expected = outputs(model, x)
    first = next(iter(plan.weights))
    weights = {**plan.weights, key or first: change(plan.weights[first])}
    with pytest.raises(ValueError, match=said):
        sgdap.apply(model, dataclasses.replace(plan, weights=weights), in_place=True)
    assert np.array_equal(outputs(model, x), expected)


OPTIMIZERS = {
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    "shared out": lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            keras.optimizers.SGD(0.1, momentum=0.9), {".*bias": keras.optimizers.Adam(0.01)}
        )
    ),
}


def trained_by_hand(model, optimizer, x, y):
    loss = keras.losses.MeanSquaredError()
    with tf.GradientTape() as tape:
        value = loss(y, model(x, training=True))
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            value = optimizer.scale_loss(value)
    optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("in_place", [True, False])
def test_the_optimizer_of_a_loop_of_ones_own_follows_as_that_of_compile_does(make, in_place):
    compiled = randomise(mlp())
    by_hand = copy_model(compiled)
    compiled.compile(make(), "mse")
    x = samples(compiled, 32)
    y = np.random.default_rng(1).random((32, 2)).astype("float32")
    own = make()
    for _ in range(3):
        compiled.train_on_batch(x, y)
        trained_by_hand(by_hand, own, x, y)
    plan = sgdap.plan(compiled, x, sgdap.Budget(params=0.5), reconstruction=False)
    sgdap.apply(compiled, plan, in_place=True)
    before = [v.numpy() for v in (*by_hand.variables, *own.variables)]
    slim, optimizer = sgdap.apply(by_hand, plan, in_place=in_place, optimizer=own)
    assert (slim is by_hand) == (optimizer is own) == in_place
    for _ in range(2):
        compiled.train_on_batch(x, y)
        trained_by_hand(slim, optimizer, x, y)
    for mine, other in zip(slim.variables, compiled.variables, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
    if not in_place:
        for variable, value in zip((*by_hand.variables, *own.variables), before, strict=True):
            np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("in_place", [True, False])
def test_an_optimizer_of_another_model_is_refused(in_place):
    model, other = convnet(), convnet()
    own = keras.optimizers.Adam(0.01)
    own.build(other.trainable_variables)
    before = model.count_params()
    with pytest.raises(ValueError, match="built for another model: it updates no variable of"):
        sgdap.remove(model, {"conv_1": [0]}, in_place=in_place, optimizer=own)
    assert model.count_params() == before


@pytest.mark.parametrize("in_place", [True, False])
def test_an_optimizer_that_is_not_built_yet_stays_so(in_place):
    model = randomise(mlp())
    plan = sgdap.plan(model, samples(model, 32), sgdap.Budget(params=0.5))
    own = keras.optimizers.Adam(0.02)
    slim, optimizer = sgdap.apply(model, plan, in_place=in_place, optimizer=own)
    assert not optimizer.built and float(optimizer.learning_rate) == pytest.approx(0.02)
    optimizer.build(slim.trainable_variables)


def test_what_is_no_optimizer_is_refused(pruned):
    model, plan, *_ = pruned
    with pytest.raises(TypeError, match="optimizer must be a keras.optimizers.Optimizer.*'adam'"):
        sgdap.apply(model, plan, optimizer="adam")


@pytest.mark.parametrize("in_place", [True, False])
def test_removing_named_channels_gives_the_original_with_them_zeroed(in_place):
    model, x = convnet(), digits_like(32)[0]
    whole = keras.models.clone_model(model)
    whole.set_weights(model.get_weights())
    slim = sgdap.remove(model, {"conv_1": [0, 4], "conv_2": np.array([2])}, in_place=in_place)
    assert (slim is model) == in_place
    assert slim.get_layer("conv_1").filters == whole.get_layer("conv_1").filters - 2
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(whole, slim, x), atol=1e-5)
    kernel = whole.get_layer("conv_1").kernel.numpy()
    kept = np.delete(kernel, [0, 4], axis=-1)
    assert np.array_equal(slim.get_layer("conv_1").kernel.numpy(), kept)


def test_a_removal_that_is_refused_changes_nothing():
    model, x = convnet(optimizer="adam"), digits_like(8)[0]
    before = outputs(model, x)
    with pytest.raises(ValueError, match="can't be removed"):
        sgdap.remove(model, {"conv_1": [0], "end": [0]}, in_place=True)
    assert np.array_equal(outputs(model, x), before)
    assert model.get_layer("conv_1").filters == 6


def test_the_optimizer_of_a_loop_of_ones_own_follows_a_removal():
    model = mlp()
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    name = next(g.name for g in sgdap.channel_graph(model).groups if g.prunable)
    slim, following = sgdap.remove(model, {name: [0]}, optimizer=optimizer)
    slots = [v.shape for v in following.variables if "momentum" in v.path]
    assert slots == [v.shape for v in slim.trainable_variables]
