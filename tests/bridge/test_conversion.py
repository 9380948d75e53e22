import keras
import numpy as np
import pytest
import tf_keras
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

import sgdap
from tests.bridge.comparing import assert_same_outputs, inputs_of, outputs_of
from tests.models import (
    assemble,
    convnet,
    digits_like,
    examples_of_models,
    mlp,
    outputs,
    randomise,
    samples,
)


def both_ways(model: keras.Model, x):
    """Converts a model there and back, and compares the outputs."""
    there = sgdap.to_tf_keras(model)
    back = sgdap.from_tf_keras(there)
    assert_same_outputs(model, there, x)
    assert_same_outputs(model, back, x)
    return there, back


def branched() -> keras.Model:
    """Two named inputs, a shared layer, a frozen model that is called twice, three outputs."""
    x, y = keras.Input((6,), name="first one"), keras.Input((6,), name="second one")
    shared = layers.Dense(6, "relu", name="shared")
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, name="dense"), layers.BatchNormalization(name="norm")],
        name="inner",
    )
    inner.trainable = False
    total = layers.Add(name="sum")([inner(shared(x)), inner(shared(y))])
    outputs = {"end": layers.Dense(2, name="end")(total), "sum": total, "given": x}
    return randomise(keras.Model({"first one": x, "second one": y}, outputs, name="branched"))


def branched_inputs() -> dict:
    random = np.random.default_rng(0)
    names = ("first one", "second one")
    return {name: random.normal(size=(4, 6)).astype("float32") for name in names}


def test_several_inputs_and_outputs_and_shared_and_nested_models_go_over():
    model = branched()
    there, back = both_ways(model, branched_inputs())
    assert isinstance(there.get_layer("inner"), tf_keras.Sequential)
    assert isinstance(back.get_layer("inner"), keras.Sequential)
    assert set(there(branched_inputs())) == set(back(branched_inputs())) == set(model.output)
    names = [layer.name.replace(" ", "_") for layer in model.layers]
    assert [layer.name for layer in there.layers] == names
    assert {layer.name for layer in back.layers} == {layer.name for layer in model.layers}


def test_what_trains_here_trains_there():
    model = branched()
    model.get_layer("shared").trainable = False
    there, back = both_ways(model, branched_inputs())
    for made in (model, there, back):
        assert len(made.trainable_weights) == 2
        assert not made.get_layer("inner").trainable and not made.get_layer("shared").trainable


def test_a_layer_that_trains_in_a_frozen_model_trains_there_as_in_keras_3():
    model = branched()
    model.get_layer("inner").get_layer("dense").trainable = True
    there, back = both_ways(model, branched_inputs())
    for made in (model, there, back):
        assert len(made.trainable_weights) == 6
        assert not made.get_layer("inner").get_layer("norm").trainable


def test_a_frozen_model_of_keras_2_freezes_the_layers_in_it():
    dense = tf_keras.layers.Dense(3, name="dense")
    inner = tf_keras.Sequential([tf_keras.Input((4,)), dense], name="inner")
    model = tf_keras.Sequential([tf_keras.Input((4,)), inner, tf_keras.layers.Dense(2)])
    inner.trainable = False
    dense.trainable = True
    assert len(model.trainable_weights) == len(sgdap.from_tf_keras(model).trainable_weights) == 2


def test_a_sequential_model_of_keras_2_that_a_call_built_comes_over():
    model = tf_keras.Sequential(
        [tf_keras.layers.Dense(4, "relu", name="hidden"), tf_keras.layers.Dense(2, name="end")]
    )
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    model(x)
    made = sgdap.from_tf_keras(model)
    assert_same_outputs(model, made, x)
    assert [layer.name for layer in made.layers] == ["hidden", "end"]


def test_no_numbers_of_names_are_used_up():
    def number() -> int:
        tensor = tf_keras.Input((), name="input")
        return int("0" + tf_keras.Model(tensor, tensor).name.removeprefix("model").strip("_"))

    old = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2)])
    before = number()
    sgdap.to_tf_keras(sgdap.from_tf_keras(old))
    assert number() == before + 1


def test_a_frozen_cell_keeps_its_weights_and_its_place():
    cells = [layers.LSTMCell(4, name="first"), layers.LSTMCell(4, name="second")]
    cells[0].trainable = False
    tensor = keras.Input((5, 4))
    model = randomise(keras.Model(tensor, layers.RNN(cells)(tensor)))
    there, back = both_ways(model, samples(model))
    for made in (there, back):
        assert [cell.trainable for cell in made.layers[-1].cell.cells] == [False, True]


def test_open_sizes_stay_open():
    tensor = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, padding="same")(tensor)
    model = randomise(keras.Model(tensor, layers.GlobalMaxPooling2D()(x)))
    there, back = both_ways(model, inputs_of(model, size=7))
    assert tuple(there.input_shape) == tuple(back.input_shape) == (None, None, None, 3)


def test_weights_are_copies():
    model = mlp()
    before = model.get_weights()
    there, back = both_ways(model, samples(model))
    for weight in [*there.weights, *back.weights]:
        weight.assign(np.zeros(weight.shape))
    np.testing.assert_equal(model.get_weights(), before)


def test_a_compiled_model_trains_on_there():
    x, y = digits_like()
    model = convnet(optimizer=keras.optimizers.Adam(0.005), metrics=["accuracy"])
    there = sgdap.to_tf_keras(model)
    before = there.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(before, model.evaluate(x, y, verbose=0), rtol=1e-4)
    there.fit(x, y, epochs=3, verbose=0)
    assert there.evaluate(x, y, verbose=0)[0] < before[0]
    assert sgdap.from_tf_keras(there).evaluate(x, y, verbose=0)[1] == pytest.approx(
        there.evaluate(x, y, verbose=0)[1]
    )


def test_optimizers_and_schedules_and_losses_carry_over():
    model = mlp()
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 100, alpha=0.1)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-4, clipnorm=2.0), loss)
    there = sgdap.to_tf_keras(model)
    back = sgdap.from_tf_keras(there)
    for made in (there, back):
        told = made.optimizer.get_config()
        assert (told["weight_decay"], told["clipnorm"]) == (1e-4, 2.0)
        assert told["learning_rate"]["config"]["alpha"] == 0.1
        assert made.loss.get_config()["label_smoothing"] == 0.1


def test_a_loss_of_ones_own_is_left_out_with_all_that_compile_takes():
    model = mlp()

    def own(y_true, y_pred):
        return keras.ops.mean(abs(y_true - y_pred))

    model.compile("sgd", own)
    assert getattr(sgdap.to_tf_keras(model), "optimizer", None) is None


@pytest.mark.parametrize("scaled", [False, True])
def test_half_precision_goes_over_with_its_scaled_loss(scaled: bool):
    tensor = keras.Input((6,))
    x = layers.Dense(5, "relu", dtype="mixed_float16")(tensor)
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4, dtype="mixed_float16")])
    model = randomise(keras.Model(tensor, layers.Dense(2, dtype="float32")(inner(x))))
    adam = keras.optimizers.Adam(0.01)
    model.compile(keras.optimizers.LossScaleOptimizer(adam) if scaled else adam, "mse")
    there = sgdap.to_tf_keras(model)
    back = sgdap.from_tf_keras(there)
    x = samples(model)
    for made in (there, back):
        assert type(made.optimizer).__name__.startswith("LossScaleOptimizer")
        assert made.layers[1].compute_dtype == "float16"
        np.testing.assert_allclose(made(x), outputs(model, x), atol=2e-3)
        made.fit(x, np.zeros((8, 2)), verbose=0)


def test_a_model_with_a_call_of_its_own_goes_over_as_a_functional_one():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = layers.Dense(5, "relu", name="hidden")

        def call(self, x):
            return keras.ops.tanh(self.hidden(x)) + 1

    model = Own()
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    model(x)
    there = sgdap.to_tf_keras(model)
    assert_same_outputs(model, there, x)
    assert there.get_layer("hidden").units == 5


def test_training_goes_its_own_way_only_where_the_user_said_so():
    x = keras.Input((6,))
    dropped = layers.Dropout(0.5)(x)
    kept = layers.Dropout(0.5, name="always")(dropped, training=True)
    there = sgdap.to_tf_keras(keras.Model(x, [dropped, kept]))
    ones = np.ones((4, 6), "float32")
    first, second = outputs_of(there, ones)
    np.testing.assert_array_equal(first, ones)
    assert not np.array_equal(second, ones)
    assert not np.array_equal(there(ones, training=True)[0], ones)


def test_all_that_has_no_equal_is_named_before_anything_is_made():
    @keras.saving.register_keras_serializable("tests.bridge")
    class Mine(keras.layers.Layer):
        def call(self, x):
            return x

    x = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), Mine(name="deep")], name="inner")
    y = layers.RMSNormalization(name="norm")(keras.ops.cumsum(inner(x), -1))
    gates = layers.LSTM(3, recurrent_activation="hard_sigmoid", name="gates")
    model = keras.Model(x, gates(y[:, None]))
    with pytest.raises(ValueError) as error:
        sgdap.to_tf_keras(model)
    for word in ("'inner/deep' (of class Mine", "Cumsum", "'norm'", "'gates'", "hard_sigmoid"):
        assert word in str(error.value)


def test_layers_alike_in_several_models_inside_wrappers_are_all_named():
    @keras.saving.register_keras_serializable("tests.bridge")
    class Strange(keras.layers.Layer):
        def call(self, x):
            return x

    def inside(name: str) -> keras.Model:
        return keras.Sequential([keras.Input((4,)), Strange(name=name)], name=f"with_{name}")

    model = keras.Sequential(
        [
            keras.Input((5, 4)),
            layers.TimeDistributed(inside("one"), name="first"),
            layers.TimeDistributed(inside("two"), name="second"),
        ]
    )
    with pytest.raises(ValueError, match="'first/with_one/one', 'second/with_two/two' .of class S"):
        sgdap.to_tf_keras(model)


def test_an_argument_that_the_other_class_does_not_take_is_named():
    layer = layers.Resizing(8, 8, pad_to_aspect_ratio=True, name="padded")
    model = keras.Sequential([keras.Input((4, 4, 3)), layer])
    with pytest.raises(ValueError, match="'padded' .of class Resizing.*pad_to_aspect_ratio=True"):
        sgdap.to_tf_keras(model)


@pytest.mark.parametrize("name", ["UpSampling2D", "Resizing"])
def test_a_value_that_the_other_class_does_not_know_is_named(name: str):
    sizes = {"UpSampling2D": ((2, 2),), "Resizing": (8, 8)}[name]
    layer = getattr(tf_keras.layers, name)(*sizes, interpolation="area", name="big")
    model = tf_keras.Sequential([tf_keras.Input((4, 4, 3)), layer])
    with pytest.raises(ValueError, match=rf"'big' .of class {name}.*interpolation='area'"):
        sgdap.from_tf_keras(model)


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos3", "lanczos5"])
def test_images_are_resized_in_the_same_way(interpolation: str):
    layer = layers.Resizing(7, 9, interpolation)
    model = keras.Sequential([keras.Input((4, 4, 3)), layer])
    both_ways(model, inputs_of(model))


def test_a_call_that_the_other_class_does_not_take_is_named():
    x, mask = keras.Input((5, 8)), keras.Input((5,), dtype="bool")
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x, query_mask=mask)
    with pytest.raises(ValueError, match="'attention' .of class MultiHeadAttention. can't be"):
        sgdap.to_tf_keras(keras.Model([x, mask], y))


def test_a_layer_of_ones_own_goes_over_as_what_it_calls():
    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(4, "relu", name="inside")

        def build(self, input_shape):
            self.dense.build(input_shape)

        def call(self, x):
            return self.dense(x) + x

    model = keras.Sequential([keras.Input((4,)), Block(name="block"), layers.Dense(2, name="end")])
    with pytest.raises(ValueError, match="'block'.*sgdap.functional"):
        sgdap.to_tf_keras(model)
    both_ways(sgdap.functional(randomise(model)), samples(model))


def test_a_layer_of_the_other_side_without_an_equal_is_named():
    model = tf_keras.Sequential(
        [tf_keras.Input((6, 2)), tf_keras.layers.LocallyConnected1D(3, 2, name="local")]
    )
    with pytest.raises(ValueError, match="'local' .of class LocallyConnected1D: Keras 3 has no"):
        sgdap.from_tf_keras(model)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (tf_keras.Sequential([tf_keras.layers.Dense(2)]), ValueError, "is not built"),
        (3, TypeError, "Expected a tf_keras.Model. Received: 3"),
        (keras.Sequential(), TypeError, "Expected a tf_keras.Model"),
    ],
    ids=["not built", "no model", "Keras 3"],
)
def test_what_is_no_model_of_tf_keras_is_refused(model, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        sgdap.from_tf_keras(model)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (keras.Sequential([layers.Dense(2)]), ValueError, "is not built"),
        (3, TypeError, "Expected a keras.Model. Received: 3"),
        (tf_keras.Sequential(), TypeError, "Received a tf_keras model"),
    ],
    ids=["not built", "no model", "tf_keras"],
)
def test_what_is_no_model_of_keras_3_is_refused(model, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        sgdap.to_tf_keras(model)


def test_a_missing_package_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "tf_keras", None)
    with pytest.raises(ImportError, match="pip install tf_keras"):
        sgdap.to_tf_keras(mlp())


def test_names_of_keras_2_with_slashes_and_numbers_of_operations_do_not_meet():
    x = tf_keras.Input((6,))
    y = tf_keras.layers.Dense(6, name="block/add")(x) + tf_keras.layers.Dense(6, name="add_1")(x)
    model = tf_keras.Model(x, y + tf_keras.layers.Dense(6, name="add")(x) + 1.0)
    back = sgdap.from_tf_keras(model)
    assert {"block_add", "add_1", "add"} <= {layer.name for layer in back.layers}
    assert_same_outputs(model, back, np.ones((2, 6), "float32"))


def test_a_converted_model_is_saved_and_loaded(tmp_path):
    model = branched()
    there, back = both_ways(model, branched_inputs())
    there.save(tmp_path / "there.keras")
    back.save(tmp_path / "back.keras")
    loaded = tf_keras.models.load_model(tmp_path / "there.keras")
    assert_same_outputs(model, loaded, branched_inputs())
    loaded = keras.models.load_model(tmp_path / "back.keras")
    assert_same_outputs(model, loaded, branched_inputs())


def test_the_random_state_of_the_process_stays():
    model = mlp()
    keras.utils.set_random_seed(3)
    expected = keras.random.normal((4,)).numpy()
    keras.utils.set_random_seed(3)
    sgdap.from_tf_keras(sgdap.to_tf_keras(model))
    np.testing.assert_array_equal(keras.random.normal((4,)).numpy(), expected)


GOES_OVER = """
    activation activity_regularization add alpha_dropout attention average average_pooling
    batch_normalization bidirectional cells concatenate convolution convolutional_recurrent cropping
    dense depthwise_convolution dot dropout einsum_dense elu embedding flatten gaussian_dropout
    gaussian_noise global_average_pooling global_max_pooling group_normalization grouped
    grouped_convolution identity image layer_normalization leaky_relu masking max_pooling maximum
    minimum multi_head_attention multiply nested normalization operator ops_broadcast ops_clip
    ops_compare ops_concatenate ops_constant ops_expand ops_flip ops_pad ops_power
    ops_reshape_all ops_reshape_split ops_slice_channels ops_slice_positions ops_split
    ops_stack ops_swapaxes ops_transpose ops_unary ops_where permute prelu recurrent relu
    repeat_vector rescaling reshape separable_convolution shared spatial_dropout subtract
    time_distributed transposed_convolution unit_normalization up_sampling zero_padding
""".split()
"""Steps of random models all of whose layers and operations have equals."""


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning")
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning")
@examples_of_models
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from(GOES_OVER), st.integers(0, 11)), min_size=2, max_size=8),
)
def test_random_models_go_over_and_come_back(spatial: int, recipe):
    model = assemble(spatial, recipe)
    both_ways(model, samples(model))
