"""In-place surgery: the same model, layers and optimizer, only slimmer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import sgdap
from sgdap.surgery import prune_in_place
from tests.models import all_layers, convnet, digits_like, outputs, randomise, samples
from tests.oracles import masked_outputs, random_removal


def prune(model: keras.Model, seed: int = 0) -> None:
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, random_removal(graph, seed))


def trained() -> keras.Model:
    model = convnet(optimizer="adam", metrics=["accuracy"])
    model.fit(*digits_like(32), epochs=1, verbose=0)
    return model


def test_the_model_its_layers_and_its_optimizer_stay_the_same_objects():
    model = trained()
    before = [model, model.optimizer, *model.layers]
    names = [layer.name for layer in model.layers]
    prune(model)
    assert all(a is b for a, b in zip(before, [model, model.optimizer, *model.layers], strict=True))
    assert [layer.name for layer in model.layers] == names
    assert [model.get_layer(name).name for name in names] == names


def test_the_slim_model_computes_what_the_original_does_without_the_removed_channels():
    model, x = trained(), digits_like()[0]
    original = keras.models.clone_model(model)
    original.set_weights(model.get_weights())
    prune(model)
    np.testing.assert_allclose(outputs(model, x), masked_outputs(original, model, x), atol=1e-5)


def test_symbolic_shapes_and_summary_tell_the_new_widths():
    model = trained()
    prune(model)
    for layer in model.layers:
        if isinstance(layer, (layers.Conv2D, layers.Dense)):
            width = layer.filters if isinstance(layer, layers.Conv2D) else layer.units
            assert layer.output.shape[-1] == layer.kernel.shape[-1] == layer.bias.shape[0] == width
    lines: list[str] = []
    model.summary(print_fn=lines.append)
    assert f"{model.get_layer('conv_1').output.shape}" in "\n".join(lines)
    trainable = sum(np.prod(v.shape) for v in model.trainable_weights)
    assert f"Trainable params: {trainable:,}" in "\n".join(lines)


@pytest.mark.compiled
@pytest.mark.parametrize("jit_compile", [False, True])
def test_training_goes_on_and_learns(jit_compile):
    x, y = digits_like()
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Flatten(),
            layers.Dense(16, "relu"),
            layers.Dropout(0.2),
            layers.Dense(3, "softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=jit_compile)
    model.fit(x, y, verbose=0)
    model.predict(x, verbose=0)
    prune(model)
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=10, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before
    np.testing.assert_allclose(model.predict(x, verbose=0), outputs(model, x), atol=1e-5)
    assert model.jit_compile is jit_compile


def test_a_saved_slim_model_loads_equal_to_the_bit(tmp_path):
    model, x = trained(), digits_like()[0]
    prune(model)
    model.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras")
    assert np.array_equal(outputs(model, x), outputs(loaded, x))
    assert all(map(np.array_equal, model.get_weights(), loaded.get_weights()))
    for mine, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        assert np.array_equal(mine.numpy(), other.numpy())


def test_what_a_layer_was_configured_with_stays():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, kernel_regularizer="l2", bias_constraint="non_neg", name="frozen"),
            layers.Dense(8, dtype="mixed_bfloat16"),
            layers.Dense(2),
        ]
    )
    model.compile("adam", "mse")
    model.layers[0].trainable = False
    model.layers[0].note = "a user's own attribute"
    before = [layer.get_config() for layer in model.layers]
    prune(model)
    for old, layer in zip(before, model.layers, strict=True):
        new = layer.get_config()
        assert {k: v for k, v in new.items() if k != "units"} == {
            k: v for k, v in old.items() if k != "units"
        }
    assert model.layers[0].note == "a user's own attribute"
    assert not model.layers[0].trainable
    assert len(model.trainable_variables) == 4


def test_a_frozen_layer_that_keeps_its_width_trains_when_it_is_thawed():
    model = convnet()
    model.get_layer("hidden").trainable = False
    x, _ = digits_like()
    plan = sgdap.plan(model, x, sgdap.Budget(flops=0.7), layers=["conv_1"])
    assert "hidden:0" in plan.weights  # refitted
    slim = sgdap.apply(model, plan)
    thawed = slim.get_layer("hidden")
    thawed.trainable = True
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(slim(x) ** 2)
    assert all(g is not None for g in tape.gradient(loss, thawed.trainable_variables))


def test_a_frozen_layer_stays_frozen_through_training():
    model = convnet()
    model.get_layer("conv_2").trainable = False
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*digits_like(), verbose=0)
    prune(model)
    before = model.get_layer("conv_2").kernel.numpy()
    model.fit(*digits_like(), verbose=0)
    assert np.array_equal(model.get_layer("conv_2").kernel.numpy(), before)


def test_models_in_models_shrink_with_the_model(tmp_path):
    encoder = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(6, "relu")], name="encoder"
    )
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(encoder(inputs)))
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    model.fit(x, x[:, :2], verbose=0)
    prune(model)
    assert [layer.units for layer in all_layers(model) if hasattr(layer, "units")] == [4, 3, 2]
    assert model.get_layer("encoder") is encoder
    assert encoder.output.shape == (None, 3)
    np.testing.assert_allclose(
        outputs(model, x), x_through(model.layers[-1], outputs(encoder, x)), atol=1e-6
    )
    model.fit(x, x[:, :2], verbose=0)
    model.save(tmp_path / "nested.keras")
    loaded = keras.models.load_model(tmp_path / "nested.keras")
    assert np.array_equal(outputs(loaded, x), outputs(model, x))


def test_an_operation_in_a_model_that_is_called_twice_follows_its_channels():
    a, b, x = (keras.Input((4,)) for _ in range(3))
    hidden, end = layers.Dense(6), layers.Dense(2)
    inner = keras.Model(x, ops.reshape(hidden(x), (-1, 6)))
    model = randomise(keras.Model([a, b], end(inner(a) + inner(b))))
    data = [np.random.default_rng(seed).normal(size=(3, 4)).astype("float32") for seed in (0, 1)]
    (kernel, bias), (of_end, end_bias) = hidden.get_weights(), end.get_weights()
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, np.arange(graph.count) != graph.groups[0].channels[2])
    summed = np.delete(sum(data) @ kernel + 2 * bias, 2, axis=1)
    expected = summed @ np.delete(of_end, 2, axis=0) + end_bias
    np.testing.assert_allclose(outputs(model, data), expected, atol=1e-5)


def x_through(dense: layers.Dense, x: np.ndarray) -> np.ndarray:
    return x @ dense.kernel.numpy() + dense.bias.numpy()


def test_sizes_that_a_model_inside_leaves_open_stay_open(tmp_path):
    inner = [layers.Conv2D(5, 3, padding="same"), layers.Conv2D(2, 1)]
    head = keras.Sequential([keras.Input((None, None, 4)), *inner], name="head")
    inputs = keras.Input((8, 8, 3))
    large = layers.Conv2D(4, 3, padding="same")(inputs)
    small = layers.Conv2D(4, 3, 2, padding="same")(large)
    made = [layers.Reshape((-1, 2))(head(x)) for x in (large, small)]
    model = randomise(keras.Model(inputs, made))
    whole = sgdap.profile(model, latency=False).flops
    assert whole == 2 * 9 * 64 * 3 * 4 + 2 * 9 * 16 * 4 * 4 + 2 * 80 * (9 * 4 * 5 + 5 * 2)
    prune(model)
    assert head.input_shape[:3] == (None, None, None) and head.input_shape[3] < 4
    assert sgdap.profile(model, latency=False).flops < whole
    model.save(tmp_path / "open.keras")
    loaded = keras.models.load_model(tmp_path / "open.keras")
    assert np.array_equal(outputs(loaded, x := samples(model)), outputs(model, x))


class NoWayBack(layers.Layer):
    """Passes its input; from some time on it has no config to be built from."""

    lost = False

    def __init__(self, secret=None, **kwargs):
        super().__init__(**kwargs)
        self.secret = secret

    def call(self, inputs):
        return inputs

    def get_config(self):
        if self.lost:
            raise NotImplementedError("the config is lost")
        return {**super().get_config(), "secret": None}


def test_a_layer_that_cannot_be_rebuilt_leaves_everything_as_it_was(monkeypatch):
    sgdap.register_rule(NoWayBack)(lambda layer, call: call.input)
    inputs = keras.Input((4,))
    x = layers.Dense(8, name="first")(inputs)
    x = layers.Reshape((2, 4), name="shape")(x)
    x = layers.Flatten()(NoWayBack(object(), name="opaque")(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("adam", "mse")
    data = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    model.fit(*data, verbose=0)
    weights, slots = model.get_weights(), [v.numpy() for v in model.optimizer.variables]
    expected = outputs(model, data[0])
    graph = sgdap.channel_graph(model)
    kept = random_removal(graph)
    assert not kept.all()
    monkeypatch.setattr(NoWayBack, "lost", True)
    with pytest.raises(
        ValueError, match=r"(?s)'opaque' .*NoWayBack.* can't be rebuilt.*get_config"
    ):
        prune_in_place(graph, kept)
    assert all(map(np.array_equal, weights, model.get_weights()))
    assert all(map(np.array_equal, slots, [v.numpy() for v in model.optimizer.variables]))
    assert np.array_equal(outputs(model, data[0]), expected)
    assert model.get_layer("shape").target_shape == (2, 4)
    model.fit(*data, verbose=0)


def test_new_values_replace_the_sliced_ones():
    model = randomise(keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Dense(2)]))
    graph = sgdap.channel_graph(model)
    kept = random_removal(graph)
    bias = np.array([3.0, 4.0], "float32")
    prune_in_place(graph, kept, {(model.layers[1].name, 1): bias})
    assert np.array_equal(model.layers[1].bias.numpy(), bias)


def test_keeping_everything_changes_nothing():
    model = trained()
    weights = model.get_weights()
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, np.ones(graph.count, bool))
    assert all(map(np.array_equal, weights, model.get_weights()))
