"""What a train step of the user's own calls beside `call` keeps what enters and leaves it."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import sgdap
from sgdap.model.own_training import called_in_training
from tests.oracles import random_removal

REAL = np.random.default_rng(0).random((64, 12)).astype("float32")
NOISE = np.random.default_rng(1).normal(size=(64, 4)).astype("float32")


class Adversaries(keras.Model):
    """A GAN whose `call` judges what it makes of noise."""

    def __init__(self):
        super().__init__()
        bodies = {"generator": (4, 16, 12), "discriminator": (12, 16, 1)}
        for name, (given, hidden, made) in bodies.items():
            body = [layers.Dense(hidden, "relu", name="hidden"), layers.Dense(made, name="end")]
            setattr(self, name, keras.Sequential([keras.Input((given,)), *body], name=name))
        self.slow = keras.optimizers.Adam(1e-3)

    def call(self, noise):
        return self.discriminator(self.generator(noise))

    def train_step(self, real):
        noise = keras.random.normal((ops.shape(real)[0], 4))
        with tf.GradientTape() as tape:
            loss = self.judged(real, 1.0) + self.judged(self.generator(noise), 0.0)
        variables = self.discriminator.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        with tf.GradientTape() as tape:
            fooled = self.judged(self.generator(noise), 1.0)
        variables = self.generator.trainable_variables
        self.slow.apply(tape.gradient(fooled, variables), variables)
        return {"loss": loss, "fooled": fooled}

    def judged(self, x, truth):
        found = self.discriminator(x)
        return ops.mean(keras.losses.binary_crossentropy(found * 0 + truth, found, True))


def adversaries() -> Adversaries:
    keras.utils.set_random_seed(0)
    model = Adversaries()
    model(NOISE)
    model.compile(optimizer="adam")
    return model


def test_images_between_generator_and_discriminator_stay_with_the_reason():
    graph = sgdap.channel_graph(adversaries())
    assert graph.group("generator/hidden").removable.all()
    assert graph.group("discriminator/hidden").removable.all()
    reasons = graph.group("generator/end").reasons
    assert reasons == tuple(
        f"'{name}' takes or makes them, and the training code of Adversaries may call it by itself"
        for name in ("generator", "discriminator")
    )


def test_fit_prunes_a_gan_inside_of_its_models():
    model = adversaries()
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(params=0.6), calibration_data=NOISE, guidance="magnitude"
    )
    model.fit(REAL, epochs=3, batch_size=32, callbacks=[callback], verbose=0)
    assert model.count_params() <= 0.6 * adversaries().count_params()
    assert model.generator(NOISE).shape == (64, 12)
    assert model.discriminator(REAL).shape == (64, 1)


def test_a_gan_pruned_in_place_trains_on():
    model = adversaries()
    plan = sgdap.plan(model, NOISE, sgdap.Budget(params=0.5), guidance="magnitude")
    sgdap.apply(model, plan, in_place=True)
    model.fit(REAL, epochs=1, batch_size=32, verbose=0)
    assert model.count_params() <= 0.5 * adversaries().count_params()


class Held(keras.Model):
    """Holds layers in several ways."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(3, name="first"), layers.Dense(3, name="second")
        self.many = [layers.Dense(3, name="in_a_list")]
        self.by_name = {"one": layers.Dense(3, name="in_a_dict")}

    def call(self, x):
        return self.second(self.first(self.by_name["one"](self.many[0](x))))

    def deeper(self):
        return self.second


def outside(model):
    return model.first


class Plain(Held):
    def train_step(self, data):
        x, y = data
        return self.compute_loss(x, y, self(x, training=True))


class Directly(Held):
    def train_step(self, data):
        return [self.second(part) for part in data]


class Deeper(Directly):
    def train_step(self, data):
        return (lambda: self.deeper()(data))()

    @functools.lru_cache  # noqa: B019  # wrapped as users wrap
    def deeper(self):
        return self.many[0]


class Inherited(Directly):
    def train_step(self, data):
        return super().train_step(data)


class ByProperty(Held):
    @property
    def chosen(self):
        return self.by_name["one"]

    @tf.function
    def test_step(self, data):
        return self.chosen(data)


class Outside(Held):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return outside(self)(x)


class ByText(Held):
    def train_step(self, data):
        return getattr(self, "fir" + "st")(data)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Held, set()),
        (Plain, set()),
        (Directly, {"second"}),
        (Deeper, {"second", "in_a_list"}),
        (Inherited, {"second"}),
        (ByProperty, {"in_a_dict"}),
        (Outside, {"first"}),
        (ByText, {"first", "second", "in_a_list", "in_a_dict"}),
    ],
)
def test_layers_are_found_by_the_names_in_the_training_code(kind, names):
    assert {layer.name for layer in called_in_training(kind())} == names


class Student(keras.Model):
    """A functional model whose train step also calls a part of a part."""

    def train_step(self, data):
        return self.get_layer("body").inner(data)


def test_a_layer_asked_for_by_name_may_be_any():
    inputs = keras.Input((4,))
    hidden = layers.Dense(8, name="hidden")(inputs)
    model = Student(inputs, layers.Dense(2)(hidden))
    assert not sgdap.channel_graph(model).group("hidden").prunable
    ordinary = keras.Model(inputs, model.output)
    assert sgdap.channel_graph(ordinary).group("hidden").removable.all()
    assert random_removal(sgdap.channel_graph(model)).all()


class Halving(keras.Model):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) / 2


def test_a_copy_that_trains_otherwise_says_so():
    inputs = keras.Input((4,))
    hidden = layers.Dense(8, name="hidden")(inputs)
    model = Halving(inputs, layers.Dense(2)(layers.Dense(6)(hidden)))
    sgdap.remove(model, {})  # a model that is not compiled is not trained
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"without `compute_loss` of its class \(Halving\)"):
        sgdap.quantize(model, None, compensate=False)
    plan = sgdap.plan(model, np.ones((8, 4)), sgdap.Budget(params=1.0), depth=0.9)
    assert plan.bypassed
    with pytest.warns(UserWarning, match="without `compute_loss`"):
        sgdap.apply(model, plan)
