"""Wrappers, attention and cells: what is inside a layer is pruned by its own rule."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.statistics import collect_statistics
from sgdap.surgery import prune_in_place, restore_snapshot, take_snapshot
from sgdap.surgery.apply import copy_model
from tests.models import outputs, randomise, samples
from tests.oracles import masked_outputs, random_removal


def model_of(make, shape=(5, 6), width=6) -> keras.Model:
    """A producer, what `make` puts behind it, and an end."""
    x = keras.Input(shape)
    y = make(layers.Dense(width, name="first")(x))
    return randomise(keras.Model(x, layers.Dense(2, name="end")(y)))


def pruned(model: keras.Model, seed: int = 0) -> keras.Model:
    slim = copy_model(model)
    graph = sgdap.channel_graph(slim)
    prune_in_place(graph, random_removal(graph, seed))
    return slim


def group(model: keras.Model, name: str) -> sgdap.ChannelGroup:
    return sgdap.channel_graph(model).group(name)


def attended(x):
    """Self-attention with a residual, cross-attention in two axes' worth of heads."""
    y = layers.MultiHeadAttention(2, 4, value_dim=3, name="attention")(x, x)
    y = layers.Add()([x, y])
    return layers.GroupQueryAttention(3, 4, 2, name="grouped")(y, y)


def wrapped(x):
    y = layers.TimeDistributed(layers.Dense(5, "relu"), name="steps")(x)
    y = layers.SpectralNormalization(layers.Conv1D(4, 2), name="spectral")(y)
    return layers.Bidirectional(layers.GRU(3, return_sequences=True), name="both")(y)


def with_cells(x):
    return layers.RNN([layers.LSTMCell(5), layers.GRUCell(4)], return_sequences=True)(x)


EVERY = {"attention": attended, "wrappers": wrapped, "cells": with_cells}


@pytest.mark.parametrize("name", EVERY)
def test_slim_models_reload_with_the_same_outputs_and_train_on(name, tmp_path):
    model = model_of(EVERY[name])
    slim, x = pruned(model), samples(model)
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)
    slim.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(slim, x))
    assert loaded.count_params() == slim.count_params() < model.count_params()
    again = pruned(slim, 1)
    np.testing.assert_allclose(outputs(again, x), masked_outputs(slim, again, x), atol=1e-5)
    slim.compile("adam", "mse")
    slim.fit(x, outputs(slim, x) + 1, verbose=0)


@pytest.mark.parametrize("name", EVERY)
def test_snapshots_bring_layers_in_layers_back(name):
    model = model_of(EVERY[name])
    model.compile("adam", "mse")
    x = samples(model)
    y = outputs(model, x) + 1
    model.fit(x, y, verbose=0)
    snapshot, expected = take_snapshot(model), outputs(model, x)
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, random_removal(graph))
    model.fit(x, y, verbose=0)
    restore_snapshot(model, snapshot)
    np.testing.assert_array_equal(outputs(model, x), expected)
    model.fit(x, y, verbose=0)


@pytest.mark.parametrize("name", EVERY)
def test_fit_prunes_them(name):
    model = model_of(EVERY[name])
    model.compile("adam", "mse")
    x = samples(model, 32)
    before = sgdap.profile(model, latency=False)
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(params=0.6), schedule="one_shot", begin_epoch=0, jit_compile=None
    )
    model.fit(x, outputs(model, x), epochs=2, verbose=0, callbacks=[callback])
    assert sgdap.profile(model, latency=False).params <= 0.6 * before.params


@pytest.mark.compiled
def test_slim_models_are_exported(tmp_path):
    model = model_of(lambda x: with_cells(wrapped(attended(x))))
    slim, x = pruned(model), samples(model)
    slim.export(tmp_path / "served", verbose=False)
    served = keras.layers.TFSMLayer(tmp_path / "served", call_endpoint="serve")(x)
    np.testing.assert_allclose(served, outputs(slim, x), atol=1e-5)


def test_frozen_layers_inside_a_rebuilt_one_stay_frozen():
    model = model_of(attended)
    model.get_layer("attention").query_dense.trainable = False
    graph = sgdap.channel_graph(model)
    prune_in_place(graph, random_removal(graph))
    layer = model.get_layer("attention")
    assert not layer.query_dense.trainable
    assert layer.key_dense.trainable
    assert len(layer.trainable_weights) == 6


# Wrappers


def test_a_dense_layer_at_every_step_is_measured_as_one_on_the_sequence():
    first = layers.Dense(6, "relu", name="first")
    last = layers.Dense(2, name="end")
    x = keras.Input((5, 6))
    inner = layers.Dense(4, "tanh", name="inner")
    plain = randomise(keras.Model(x, last(inner(first(x)))))
    wrapped = keras.Model(x, last(layers.TimeDistributed(inner, name="steps")(first(x))))
    data = samples(plain, 20)
    one, other = (collect_statistics(sgdap.channel_graph(m), data) for m in (plain, wrapped))
    a, b = one.consumers["inner"], other.consumers["steps"]
    np.testing.assert_allclose(a.moments.total().second, b.moments.total().second, rtol=1e-4)
    np.testing.assert_allclose(a.sensitivity, b.sensitivity, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", [100, 7, 2])
def test_a_convolution_at_every_step_is_measured_at_so_many_places(positions):
    model = model_of(
        lambda x: layers.TimeDistributed(layers.Conv1D(4, 2, padding="same"), name="steps")(x),
        (3, 5, 4),
    )
    data = samples(model, 10)
    graph = sgdap.channel_graph(model)
    found = collect_statistics(graph, data, positions=positions).consumers["steps"]
    places = {100: 15, 7: 3 * 2, 2: 2}[positions]
    assert float(found.moments.total().count[0]) == 10 * places
    if positions == 100:
        y = np.pad(model.get_layer("first")(data).numpy(), [(0, 0), (0, 0), (0, 1), (0, 0)])
        rows = np.concatenate([y[:, :, :-1], y[:, :, 1:]], -1).reshape(-1, 12)
        second = (rows - rows.mean(0)).T @ (rows - rows.mean(0))
        np.testing.assert_allclose(found.moments.total().second[0], second, rtol=1e-3, atol=1e-3)


def test_what_an_inner_layer_reads_is_reconstructed():
    model = model_of(lambda x: layers.TimeDistributed(layers.Dense(4), name="steps")(x))
    first = model.get_layer("first")
    kernel, bias = first.get_weights()
    kernel[:, 1], bias[1] = 2 * kernel[:, 0], 2 * bias[0]  # the second tells nothing new
    first.set_weights([kernel, bias])
    data = samples(model, 64)
    plan = sgdap.plan(model, data, sgdap.Budget(params=0.9), layers=["first"])
    assert plan.widths["first"] == 5
    np.testing.assert_allclose(
        outputs(sgdap.apply(model, plan), data), outputs(model, data), atol=1e-3
    )


def test_a_wrapper_of_a_layer_without_a_rule_keeps_its_channels():
    class Own(layers.Layer):
        def call(self, x):
            return x * 2

        def compute_output_shape(self, shape):
            return shape

    model = model_of(lambda x: layers.TimeDistributed(Own(), name="steps")(x))
    graph = sgdap.channel_graph(model)
    assert not graph.group("first").prunable
    reason = (
        "no rule for Own; it keeps all that it reads and makes, unless you register one with "
        "sgdap.register_rule"
    )
    assert graph.kept == (("steps", reason),)


def test_a_wrapped_output_layer_is_known_as_a_classifier():
    x = keras.Input((5, 6))
    head = layers.Dense(3, "softmax", name="end")
    hidden = layers.Dense(4, name="hidden")(x)
    plain = randomise(keras.Model(x, head(hidden)))
    wrapped = keras.Model(x, layers.TimeDistributed(head, name="steps")(hidden))
    data = samples(plain, 20)
    one, other = (collect_statistics(sgdap.channel_graph(m), data) for m in (plain, wrapped))
    np.testing.assert_allclose(
        one.consumers["end"].sensitivity, other.consumers["steps"].sensitivity, rtol=1e-4, atol=1e-6
    )


def frames(x):
    """A small network at every step: two convolutions, a gate, a model in the model."""
    shape = x.shape[2:]
    inner = keras.Input(shape)
    y = layers.BatchNormalization()(layers.Conv1D(6, 2, use_bias=False, name="conv")(inner))
    tail = keras.Sequential([keras.Input(y.shape[1:]), layers.Conv1D(5, 1, activation="relu")])
    y = layers.Flatten()(tail(y))
    y = layers.Dense(4, name="code")(y) * layers.Dense(4, "sigmoid", name="gate")(y)
    return layers.TimeDistributed(keras.Model(inner, y, name="frame"), name="steps")(x)


def test_a_model_at_every_step_is_pruned_by_the_rules_of_its_layers(tmp_path):
    model = model_of(lambda x: layers.GRU(3)(frames(x)), (3, 5, 4))
    graph = sgdap.channel_graph(model)
    assert graph.kept == ()
    assert all(g.removable.all() for g in graph.groups if g.name != "end")
    assert group(model, "steps/frame/code").producers == ("steps/frame/code", "steps/frame/gate")
    slim, x = pruned(model), samples(model)
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)
    assert slim.count_params() < 0.5 * model.count_params()
    slim.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(slim, x))
    again = pruned(slim, 1)
    np.testing.assert_allclose(outputs(again, x), masked_outputs(slim, again, x), atol=1e-5)


def test_what_a_model_at_every_step_computes_is_counted_once_a_step():
    model = model_of(frames, (3, 5, 4))
    places = 4  # of a kernel of 2 over 5
    frame = 2 * (places * (2 * 6 * 6 + 6 * 5) + 20 * 4 + 20 * 4)
    first, end = 2 * 3 * 5 * 4 * 6, 2 * 3 * 4 * 2
    assert sgdap.profile(model, latency=False).flops == first + 3 * frame + end


def test_fit_prunes_a_model_at_every_step():
    model = model_of(frames, (3, 5, 4))
    model.compile("adam", "mse")
    x = samples(model, 32)
    before = model.count_params()
    callback = sgdap.SGDAPCallback(
        sgdap.Budget(params=0.6), schedule="one_shot", begin_epoch=0, jit_compile=None
    )
    model.fit(x, outputs(model, x), epochs=2, verbose=0, callbacks=[callback])
    assert model.count_params() <= 0.6 * before


def test_operations_written_with_sizes_keep_their_channels_in_a_model_at_every_step():
    inner = keras.Input((5, 6))
    y = keras.ops.reshape(layers.Dense(4, name="kept")(inner), (-1, 20))
    frame = keras.Model(inner, layers.Dense(3, name="free")(y), name="frame")
    model = model_of(lambda x: layers.TimeDistributed(frame, name="steps")(x), (3, 5, 4))
    kept = group(model, "steps/frame/kept")
    assert not kept.prunable
    assert "inside 'steps' counts them" in kept.reasons[0]
    slim, x = pruned(model), samples(model)
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)
    assert slim.count_params() < model.count_params()


def test_a_layer_in_two_places_keeps_its_channels_where_one_is_in_a_wrapper():
    def network() -> keras.Model:
        shared = layers.Dense(6, "relu", name="shared")
        x = keras.Input((5, 4))
        y = layers.TimeDistributed(shared, name="steps")(layers.Dense(6, name="one")(x))
        z = shared(layers.Dense(6, name="other")(x))
        y, z = layers.Dense(4, name="free")(y), layers.Dense(4)(z)
        return randomise(keras.Model(x, layers.Dense(2)(y + z)))

    model, slim = network(), network()
    graph = sgdap.channel_graph(slim)
    assert dict(graph.kept) == {
        "steps": "shares weights with 'shared'",
        "shared": "shares weights with 'steps'",
    }
    assert not graph.group("one").prunable
    prune_in_place(graph, random_removal(graph))
    data = samples(model)
    np.testing.assert_allclose(outputs(slim, data), masked_outputs(model, slim, data), atol=1e-5)
    assert slim.get_layer("free").units == 2
    assert slim.get_layer("steps").layer is slim.get_layer("shared")
    with pytest.raises(ValueError, match="can't be copied.*in_place=True"):
        copy_model(model)


# Attention


def test_heads_key_and_value_dimensions_and_outputs_are_groups():
    model = model_of(lambda x: layers.MultiHeadAttention(3, 4, 5, name="attention")(x, x))
    for name, size in (("heads", 3), ("keys", 4), ("values", 5)):
        assert group(model, f"attention:{name}").removable.sum() == size
    assert group(model, "attention").removable.sum() == 6
    assert group(model, "first").removable.sum() == 6


def test_an_output_as_wide_as_the_query_is_written_into_the_config():
    model = model_of(lambda x: layers.MultiHeadAttention(2, 4, name="attention")(x, x))
    graph = sgdap.channel_graph(model)
    for name in ("first", "attention:keys"):
        kept = np.ones(graph.count, bool)
        kept[graph.group(name).channels[:2]] = False
        slim = copy_model(model)
        prune_in_place(sgdap.channel_graph(slim), kept)
        assert slim.get_layer("attention").get_config()["output_shape"] in (6, (6,))
        assert slim.get_layer("attention").output.shape == (None, 5, 6)


def test_no_key_dimension_but_one_is_exact_too():
    model = model_of(lambda x: layers.MultiHeadAttention(2, 4, name="attention")(x, x))
    graph = sgdap.channel_graph(model)
    kept = np.ones(graph.count, bool)
    kept[graph.group("attention:keys").channels[1:]] = False
    slim = copy_model(model)
    prune_in_place(sgdap.channel_graph(slim), kept)
    assert slim.get_layer("attention").key_dim == 1
    x = samples(model)
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)


KINDS = {
    "axes": ({"attention_axes": (2,)}, {}),
    "output of two axes": ({"output_shape": (3, 4)}, {}),
    "dropout and scores": ({"dropout": 0.5}, {"return_attention_scores": True}),
    "window": ({"sliding_window": 2}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_attention_of_every_kind_is_exact(kind):
    arguments, given = KINDS[kind]

    def attend(x):
        return keras.tree.flatten(layers.MultiHeadAttention(2, 4, **arguments)(x, x, **given))[0]

    model = model_of(attend, (3, 4, 6) if kind == "axes" else (5, 6))
    slim, x = pruned(model), samples(model)
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)
    assert slim.count_params() < model.count_params()


@pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning")
@pytest.mark.parametrize("attention", ["multi", "grouped", "dot", "additive", "lstm", "both"])
def test_masked_steps_stay_masked(attention):
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(7, 6, mask_zero=True, name="first")(tokens)
    y = {
        "multi": lambda: layers.MultiHeadAttention(2, 4)(x, x),
        "grouped": lambda: layers.GroupQueryAttention(4, 4, 2)(x, x),
        "dot": lambda: layers.Attention()([x, x]),
        "additive": lambda: layers.AdditiveAttention()([x, x]),
        "lstm": lambda: layers.LSTM(4)(layers.Dense(5, "relu", name="between")(x)),
        "both": lambda: layers.Bidirectional(layers.GRU(4))(x),
    }[attention]()
    model = randomise(keras.Model(tokens, layers.Dense(2)(y)))
    data = np.array(
        [[1, 2, 3, 4, 5, 6], [3, 2, 1, 0, 0, 0], [5, 0, 0, 0, 0, 0], [6, 5, 1, 1, 0, 0]]
    )
    slim = pruned(model)
    np.testing.assert_allclose(outputs(slim, data), masked_outputs(model, slim, data), atol=1e-5)
    assert slim.count_params() < model.count_params()
    plan = sgdap.plan(model, data, sgdap.Budget(params=0.9), folds=2)
    assert sgdap.apply(model, plan).count_params() <= 0.9 * model.count_params()


def test_the_calibration_pass_sees_the_mask_behind_a_measured_layer():
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(7, 6, mask_zero=True)(tokens)
    y = layers.LSTM(5)(layers.Dense(4, "relu", name="between")(x))
    model = randomise(keras.Model(tokens, layers.Dense(2, name="end")(y)))
    data = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [5, 4, 3, 2], [6, 1, 0, 0]])
    found = collect_statistics(sgdap.channel_graph(model), data, folds=2).consumers["end"]
    read = keras.Model(tokens, y)(data).numpy()
    np.testing.assert_allclose(found.moments.total().mean[0], read.mean(0), rtol=1e-4)


def test_an_attention_mask_given_as_a_tensor_keeps_its_channels():
    x = keras.Input((4, 6))
    mask = layers.Dense(4, "sigmoid", name="mask")(x)
    y = layers.MultiHeadAttention(2, 4)(x, x, attention_mask=mask)
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    assert not group(model, "mask").prunable


@pytest.mark.parametrize("kind", [layers.MultiHeadAttention, layers.GroupQueryAttention])
def test_an_attention_of_the_users_own_keeps_its_channels(kind):
    class Own(kind):
        pass

    sizes = (2, 4) if kind is layers.MultiHeadAttention else (4, 2, 2)
    model = model_of(lambda x: Own(*sizes, name="own")(x, x))
    assert not group(model, "first").prunable
    assert "no rule for Own" in group(model, "first").reasons[0]


# Recurrent layers


def test_states_that_a_layer_starts_from_and_returns_leave_with_its_units():
    x = keras.Input((5, 6))
    h, c = layers.Dense(4, name="h")(x[:, 0]), layers.Dense(4, name="c")(x[:, 1])
    y, *states = layers.LSTM(4, return_sequences=True, return_state=True, name="a")(
        x, initial_state=[h, c]
    )
    z = layers.LSTM(4, go_backwards=True, name="b")(y, initial_state=states)
    model = randomise(keras.Model(x, layers.Dense(2)(z)))
    assert group(model, "a").producers == ("h", "c", "a", "b")
    slim, data = pruned(model), samples(model)
    np.testing.assert_allclose(outputs(slim, data), masked_outputs(model, slim, data), atol=1e-5)
    assert slim.get_layer("a").units == slim.get_layer("h").units == 2


def test_both_directions_start_from_states_of_their_own():
    x = keras.Input((5, 6))
    given = [layers.Dense(4, name=f"state_{i}")(x[:, i]) for i in range(2)]
    inner = layers.GRU(4, return_state=True, name="inner")
    y, *states = layers.Bidirectional(inner, name="both")(x, initial_state=given)
    model = randomise(keras.Model(x, layers.Dense(2)(layers.Concatenate()([y, *states]))))
    slim, data = pruned(model), samples(model)
    np.testing.assert_allclose(outputs(slim, data), masked_outputs(model, slim, data), atol=1e-5)
    assert slim.get_layer("both").forward_layer.units == 2


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("backwards", [True, False])
def test_gated_units_are_exact_either_way(reset_after, backwards):
    model = model_of(lambda x: layers.GRU(5, reset_after=reset_after, go_backwards=backwards)(x))
    slim, x = pruned(model), samples(model)
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_stateful_layers_go_on_from_their_state(kind):
    def network(stateful: bool) -> keras.Model:
        x = keras.Input(batch_shape=(3, None, 4))
        y = kind(6, stateful=stateful, return_sequences=True)(layers.Dense(5)(x))
        return keras.Model(x, layers.Dense(2)(y))

    whole = randomise(network(False))
    parts = network(True)
    parts.set_weights(whole.get_weights())
    data = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    parts(data[:, :3])
    graph = sgdap.channel_graph(parts)
    kept = random_removal(graph)
    prune_in_place(graph, kept)  # the state of the units that stay is kept
    slim = copy_model(whole)
    prune_in_place(sgdap.channel_graph(slim), kept)
    expected = slim(data[:, :3])  # units that left had changed the others' state before
    assert parts.layers[2].states[0].shape == (3, 3)
    parts.layers[2].reset_state()
    np.testing.assert_allclose(parts(data[:, :3]), expected, atol=1e-5)
    np.testing.assert_allclose(parts(data[:, 3:]), slim(data)[:, 3:], atol=1e-5)


def test_the_state_of_the_units_that_stay_survives_the_surgery():
    x = keras.Input(batch_shape=(3, 4, 5))
    model = randomise(keras.Model(x, layers.Dense(2)(layers.LSTM(6, stateful=True)(x))))
    model(np.ones((3, 4, 5), "float32"))
    before = [state.numpy() for state in model.layers[1].states]
    graph = sgdap.channel_graph(model)
    kept = random_removal(graph)
    prune_in_place(graph, kept)
    stays = kept[graph.group(model.layers[1].name).channels]
    for state, old in zip(model.layers[1].states, before, strict=True):
        np.testing.assert_array_equal(state, old[:, stays])


def test_calibration_takes_batches_as_a_stateful_model_does_and_leaves_its_state():
    x = keras.Input(batch_shape=(4, 5, 3))
    y = layers.LSTM(6, stateful=True)(layers.Dense(5)(x))
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    data = np.random.default_rng(0).normal(size=(18, 5, 3)).astype("float32")
    plan = sgdap.plan(model, data, sgdap.Budget(params=0.6))
    assert plan.samples == 16
    assert not any(np.any(state) for state in model.layers[2].states)
    assert sgdap.apply(model, plan).count_params() <= 0.6 * model.count_params()


def test_a_cell_of_the_users_own_keeps_its_channels():
    class Cell(layers.GRUCell):
        pass

    model = model_of(lambda x: layers.RNN(Cell(4), name="own")(x))
    (reason,) = group(model, "first").reasons
    assert reason.startswith("no rule for the cell Cell of 'own'; units of Keras' own cells may")


# Layers that are not what their class makes


@pytest.mark.compiled
@pytest.mark.parametrize("change", ["lora", "int8"])
def test_layers_with_lora_or_quantized_weights_keep_their_channels(change):
    x = keras.Input((6,))
    y = layers.Dense(8, "relu", name="free")(layers.Dense(6, "relu", name="before")(x))
    y = layers.Dense(6, "relu", name="changed")(layers.Dense(5, name="read")(y))
    model = randomise(keras.Model(x, layers.Dense(2, name="end")(y)))
    layer = model.get_layer("changed")
    layer.enable_lora(2) if change == "lora" else layer.quantize("int8")
    graph = sgdap.channel_graph(model)
    assert graph.kept[0][0] == "changed"
    assert {"lora": "LoRA", "int8": "quantized to int8"}[change] in graph.kept[0][1]
    assert not graph.group("read").prunable
    assert graph.group("before").prunable
    data = samples(model, 32)
    plan = sgdap.plan(model, data, sgdap.Budget(params=0.8))
    assert "changed" in str(plan)
    slim = pruned(model)
    np.testing.assert_allclose(outputs(slim, data).shape, (32, 2))
    model.compile("sgd", "mse")
    callback = sgdap.SGDAPCallback(sgdap.Budget(params=0.8), max_accuracy_drop=None)
    model.fit(data, outputs(model, data), epochs=3, verbose=0, callbacks=[callback])
    assert sgdap.channel_graph(model).group("before").size < 6


# Attention by an operation


@pytest.mark.parametrize("scale", [0.5, None])
def test_an_attention_operation_loses_heads_and_with_a_scale_dimensions(scale):
    def attend(x):
        query, key, value = (
            layers.EinsumDense("abc,cde->abde", (5, 2, 4), name=name)(x)
            for name in ("query", "key", "value")
        )
        y = keras.ops.dot_product_attention(query, key, value, scale=scale)
        return layers.EinsumDense("abde,dec->abc", (5, 6), name="out")(y)

    model = model_of(attend)
    graph = sgdap.channel_graph(model)
    assert graph.group("query:d").removable.all()
    assert graph.group("query:e").removable.all() == (scale is not None)
    slim, x = pruned(model), samples(model)
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)
    assert slim.get_layer("out").kernel.shape[0] == 1


def test_a_wrapper_in_a_model_in_a_wrapper_can_be_planned():
    wrapped = layers.SpectralNormalization(layers.Dense(5))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(6), wrapped, layers.Dense(3)])
    inputs = keras.Input((5, 4))
    x = layers.Flatten()(layers.TimeDistributed(inner, name="each")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(2)(x)))
    plan = sgdap.plan(model, samples(model), sgdap.Budget(params=0.7))
    slim = sgdap.apply(model, plan)
    assert slim.count_params() <= 0.7 * model.count_params()
