"""What a `call` adds to the losses is followed, and is no output."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import sgdap
from sgdap.model.tracing import trace

X = np.random.default_rng(0).random((64, 12)).astype("float32")


class Sampling(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, inputs):
        mean, variance = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        return mean + ops.exp(variance / 2) * noise


class Autoencoder(keras.Model):
    """A variational one, with its divergence as a loss of its own."""

    def __init__(self):
        super().__init__()
        self.encoder = layers.Dense(16, "relu", name="encoder")
        self.mean, self.variance = layers.Dense(4, name="mean"), layers.Dense(4, name="variance")
        self.sampling = Sampling()
        self.decoder = layers.Dense(16, "relu", name="decoder")
        self.end = layers.Dense(12, name="end")

    def call(self, x):
        hidden = self.encoder(x)
        mean, variance = self.mean(hidden), self.variance(hidden)
        divergence = 1 + variance - ops.square(mean) - ops.exp(variance)
        self.add_loss(-0.05 * ops.mean(divergence))
        self.add_loss(1e-3 * ops.mean(ops.max(hidden, axis=-1)))
        return self.end(self.decoder(self.sampling([mean, variance])))


def autoencoder() -> Autoencoder:
    keras.utils.set_random_seed(0)
    model = Autoencoder()
    model(X)
    model.compile("adam", "mse")
    return model


def test_a_variational_autoencoder_is_pruned_in_fit_and_keeps_its_losses():
    model = autoencoder()
    assert model.losses
    graph = sgdap.channel_graph(model)
    assert len(graph.program.losses) == 2
    assert graph.group("encoder").removable.all()
    assert graph.group("decoder").removable.all()
    callback = sgdap.SGDAPCallback(sgdap.Budget(params=0.6))
    model.fit(X, X, epochs=3, batch_size=32, callbacks=[callback], verbose=0)
    assert model.count_params() <= 0.6 * autoencoder().count_params()
    model(X)
    hidden = model.encoder(X)
    mean, variance = (np.asarray(layer(hidden)) for layer in (model.mean, model.variance))
    divergence = -0.05 * np.mean(1 + variance - mean**2 - np.exp(variance))
    found = [float(loss) for loss in model.losses]
    np.testing.assert_allclose(found[0], divergence, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1], 1e-3 * np.asarray(hidden).max(1).mean(), rtol=1e-4)


def test_a_functional_copy_says_that_it_lacks_the_losses():
    model = autoencoder()
    plan = sgdap.plan(model, X, sgdap.Budget(params=0.6))
    for copy in (lambda: sgdap.apply(model, plan), lambda: sgdap.functional(model)):
        with pytest.warns(UserWarning, match="does not have the losses.*in_place=True"):
            copy()


def test_reading_a_model_adds_no_loss():
    model = autoencoder()
    model(X)
    before = list(map(float, model.losses))
    trace(model)
    sgdap.channel_graph(model)
    assert list(map(float, model.losses)) == before


@keras.saving.register_keras_serializable("tests")
class Sparse(layers.Layer):
    """A penalty on what passes; `width` counts it by a number."""

    def __init__(self, width=None, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def call(self, x):
        y = x if self.width is None else ops.reshape(x, (-1, self.width))
        self.add_loss(ops.mean(ops.abs(y)) + ops.mean(ops.logsumexp(y, -1)))
        return x

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@pytest.mark.parametrize("width", [None, 8])
def test_a_small_layer_that_adds_a_loss_lets_channels_pass_unless_it_counts_them(width):
    inputs = keras.Input((5,))
    x = Sparse(width, name="sparse")(layers.Dense(8, "relu", name="hidden")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    group = sgdap.channel_graph(model).group("hidden")
    assert group.removable.all() == (width is None)
    if width is None:
        x = X[:, :5]
        slim = sgdap.apply(model, sgdap.plan(model, x, sgdap.Budget(params=0.6)))
        slim(x)
        hidden = np.maximum(np.asarray(slim.get_layer("hidden")(x)), 0)
        expected = np.abs(hidden).mean() + np.log(np.exp(hidden).sum(-1)).mean()
        np.testing.assert_allclose(float(slim.losses[0]), expected, rtol=1e-4)
    else:
        assert "does not follow their number" in " ".join(group.reasons)


class Judged(layers.Layer):
    """Takes what passes for the logits of as many classes."""

    def call(self, x):
        classes = ops.argmax(x, -1)
        self.add_loss(ops.mean(ops.sparse_categorical_crossentropy(classes, x, True)))
        return x


def test_an_operation_that_counts_channels_by_another_tensor_keeps_them():
    inputs = keras.Input((5,))
    x = Judged(name="judged")(layers.Dense(8, "relu", name="hidden")(inputs))
    graph = sgdap.channel_graph(keras.Model(inputs, layers.Dense(2)(x)))
    assert not graph.group("hidden").prunable


class Supervised(keras.Model):
    """Deep supervision: a head of its own for a loss alone."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(8, "relu", name="hidden")
        self.side = layers.Dense(3, name="side")
        self.end = layers.Dense(2, name="end")

    def call(self, x):
        hidden = self.hidden(x)
        self.add_loss(ops.mean(ops.softmax(self.side(hidden))[:, 0]))
        return self.end(hidden)


def test_a_head_for_a_loss_alone_keeps_its_channels_and_what_it_reads_may_leave():
    keras.utils.set_random_seed(0)
    model = Supervised()
    model(X)
    graph = sgdap.channel_graph(model)
    assert not graph.group("side").prunable
    assert "'side' makes them for a loss alone" in graph.group("side").reasons
    assert graph.group("hidden").removable.all()
    plan = sgdap.plan(model, X, sgdap.Budget(params=0.7))
    sgdap.apply(model, plan, in_place=True)
    model(X)
    assert len(model.losses) == 1
    assert model.side.kernel.shape[0] == model.hidden.units < 8


class OfNothingKnown(Supervised):
    def call(self, x):
        self.add_loss(keras.KerasTensor(()))
        return self.end(self.hidden(x))


def test_a_loss_of_a_tensor_that_no_operation_made_is_refused_in_words():
    model = Supervised()
    model(X)
    model.__class__ = OfNothingKnown
    with pytest.raises(ValueError, match="is made by no layer and no operation"):
        trace(model)
