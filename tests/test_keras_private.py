"""Keras' private attributes are used in one module, and each of these uses still works."""

import ast
import logging
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap import _keras
from tests.models import convnet, digits_like

ROOT = Path(sgdap.__file__).parent


def test_no_other_module_touches_what_is_private_to_another_object():
    wrong = []
    for path in ROOT.rglob("*.py"):
        if path.name == "_keras.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras.src"):
                wrong.append(f"{path.name}:{node.lineno} imports {node.module}")
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
                and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
            ):
                wrong.append(f"{path.name}:{node.lineno} uses .{node.attr}")
    assert not wrong


def test_history_leads_from_a_tensor_to_its_operation_and_arguments():
    x = keras.Input((3,))
    layer = layers.Dense(2)
    operation, index = _keras.history(layer(x))
    assert operation is layer
    args, kwargs = _keras.node_arguments(_keras.node_of(operation, index))
    assert args[0] is x
    assert not kwargs
    assert _keras.history(keras.KerasTensor((None, 3))) is None


def test_functional_graph_of_models_is_found():
    functional = keras.Model(*(lambda x: (x, layers.Dense(2)(x)))(keras.Input((3,))))
    assert _keras.functional_of(functional) is functional
    assert _keras.functional_of(convnet()).inputs
    assert _keras.functional_of(keras.Sequential([layers.Dense(2)])) is None

    class Own(keras.Model):
        def call(self, x):
            return x

    assert _keras.functional_of(Own()) is None


@pytest.mark.parametrize("inputs", [{"a": 1, "b": 2}, [1, 2]])
def test_inputs_are_standardised_in_the_models_order(inputs):
    a, b = keras.Input((1,), name="a"), keras.Input((1,), name="b")
    model = keras.Model({"a": a, "b": b} if isinstance(inputs, dict) else [a, b], a + b)
    given = keras.tree.map_structure(lambda value: np.full((2, 1), value), inputs)
    first, second = _keras.standardize_inputs(model, given)
    assert float(first[0, 0]) == 1
    assert float(second[0, 0]) == 2


def test_symbolic_shapes_can_be_refreshed():
    model = convnet()
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    _keras.set_shape(model.outputs[0], (None, 5))
    assert model.output_shape == (None, 5)
    _keras.set_shape(inner.inputs[0], (None, 7))
    assert inner.get_config()["layers"][0]["config"]["batch_shape"] == (None, 7)


def test_a_layers_inside_can_be_exchanged():
    model = convnet()
    old = model.get_layer("hidden")
    new = layers.Dense(4, name="other")
    new.build((None, 20))
    old.mine = "stays"
    _keras.exchange_inside(old, new)
    assert model.get_layer("hidden") is old
    assert old.units == 4
    assert old.mine == "stays"
    assert [tuple(v.shape) for v in old.weights] == [(20, 4), (4,)]
    assert old.output is model.get_layer("dropout").input


def test_variables_hold_weights_first_then_seeds():
    layer = layers.LSTM(3, dropout=0.5)
    layer.build((None, 4, 2))
    variables = _keras.layer_variables(layer)
    assert variables[: len(layer.weights)] == layer.weights
    assert len(variables) == len(layer.variables) > len(layer.weights)


def test_masks_travel_with_tensors_and_a_frozen_inner_layer_is_copied():
    tokens = keras.ops.convert_to_tensor([[1, 0]])
    embedded = layers.Embedding(3, 2, mask_zero=True)(tokens)
    other = embedded * 2
    _keras.attach_mask(other, _keras.mask_of(embedded))
    assert _keras.mask_of(other).numpy().tolist() == [[True, False]]
    old, new = (layers.TimeDistributed(layers.Dense(2)) for _ in range(2))
    old.layer.trainable = False
    _keras.copy_trainable(old, new)
    assert not new.layer.trainable
    assert new.trainable


def test_states_of_recurrent_layers_are_found_and_kept():
    x = keras.Input(batch_shape=(2, 3, 4))
    model = keras.Model(x, layers.LSTM(5, stateful=True)(x))
    layer = model.layers[1]
    assert _keras.layer_variables(layer)[-2:] == list(layer.states)
    with _keras.recurrent_states_kept(model):
        model(np.ones((2, 3, 4), "float32"))
        assert np.any(layer.states[0])
    assert not np.any(layer.states[0])


@pytest.mark.compiled
def test_compile_state_and_build_shapes_are_forgotten():
    model = keras.Sequential(
        [keras.Input((3,)), keras.Sequential([layers.Dense(2), layers.Dense(2)])]
    )
    model.compile("sgd", "mse")
    model.layers[0].layers[0].trainable = False
    _keras.refresh_trainable_state(model)
    model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)  # warns where `trainable` changed
    assert model.layers[0].get_build_config() is not None
    _keras.forget_build_shapes(model)
    assert model.layers[0].get_build_config() is None
    with _keras.uncompiled(model):
        assert not model.compiled
    assert model.compiled


@pytest.mark.compiled
@pytest.mark.parametrize("wrapped", [False, True])
def test_optimizers_tell_the_variables_that_they_update(wrapped):
    optimizer = keras.optimizers.Adam()
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model = convnet(optimizer=optimizer)
    model.fit(*digits_like(8), verbose=0)
    mine = _keras.optimizer_variables(model.optimizer)
    assert [id(v) for v in mine] == [id(v) for v in model.trainable_variables]
    assert len(_keras.optimizer_parts(model.optimizer)) == 1 + wrapped


def test_optimizers_around_others_are_made_again_and_adopt_the_old_inner_ones():
    variables = [keras.Variable([1.0]), keras.Variable([[2.0]])]
    by_rank = [None, keras.optimizers.Adam(), keras.optimizers.SGD(momentum=0.5)]
    shared = keras.optimizers.MultiOptimizer(lambda variable: by_rank[len(variable.shape)])
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), initial_scale=4.0)
    for old in (shared, scaled):
        old.build(variables)
        inner = [keras.optimizers.Lion() for _ in _keras.inner_optimizers(old)]
        new = _keras.optimizer_around(old, inner)
        _keras.build_optimizer(new, old, variables, variables)
        assert _keras.inner_optimizers(new) == inner
        assert all(part.built for part in inner)
        _keras.adopt_inner_optimizers(old, new)
        assert _keras.inner_optimizers(new) == _keras.inner_optimizers(old)
        new.apply([v * 1.0 for v in variables], variables)
        assert int(_keras.inner_optimizers(old)[0].iterations) == 1
        assert [p.name for p in _keras.optimizer_parts(new)] == [
            p.name for p in _keras.optimizer_parts(old)
        ]


def test_an_optimizers_learning_rate_is_told_and_left_out_of_its_config():
    def rate():
        return 0.25

    optimizer = keras.optimizers.SGD(rate)
    assert _keras.learning_rate_function(optimizer) is rate
    assert isinstance(_keras.config_without_learning_rate(optimizer)["learning_rate"], float)
    assert optimizer.learning_rate == 0.25
    assert _keras.learning_rate_function(keras.optimizers.SGD(0.5)) is None


def test_sizes_in_shapes_can_be_labelled_for_a_while():
    variable = keras.Variable(np.zeros((2, 3)))
    kind = type(variable)
    with _keras.labelled_shapes([keras.Variable(1.0), variable]):
        rows, columns = variable.shape
        assert (rows, columns) == (2, 3)
        assert [(size.variable, size.axis) for size in (rows, columns)] == [(1, 0), (1, 1)]
        slot = keras.optimizers.SGD().add_variable_from_reference(variable)
        assert tuple(slot.shape) == (2, 3)
    assert type(variable) is kind
    assert not isinstance(variable.shape[0], _keras.LabelledSize)


def test_a_variable_can_get_the_path_of_another_one():
    old, new = keras.Variable(1.0, name="old"), keras.Variable(2.0, name="new")
    _keras.keep_variable_path(old, new)
    assert new.path == old.path


def test_a_fit_can_begin_at_a_later_epoch():
    model, seen = convnet(optimizer="sgd"), []
    noted = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: _keras.begin_at_epoch(model, 2),
        on_epoch_begin=lambda epoch, logs: seen.append(epoch),
        on_train_end=lambda logs: _keras.begin_at_epoch(model, None),
    )
    model.fit(*digits_like(8), epochs=4, verbose=0, callbacks=[noted])
    assert seen == [2, 3]
    noted = keras.callbacks.LambdaCallback(on_epoch_begin=lambda e, logs: seen.append(e))
    model.fit(*digits_like(8), epochs=1, verbose=0, callbacks=[noted])
    assert seen == [2, 3, 0]


def test_the_default_generator_of_random_numbers_can_be_set_back():
    keras.utils.set_random_seed(3)
    keras.random.uniform((2,))
    state = _keras.global_seed_state()
    first = keras.random.uniform((2,)).numpy()
    _keras.set_global_seed_state(state)
    np.testing.assert_array_equal(keras.random.uniform((2,)).numpy(), first)


def test_a_nodes_arguments_can_be_written_anew():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inputs[:, :2])
    (operation,) = (x for x in model.operations if not isinstance(x, layers.Layer))
    node = _keras.node_of(operation, 0)
    _keras.write_node_arguments(node, (inputs, (slice(None), slice(1, 3))), {})
    np.testing.assert_array_equal(model(np.arange(4.0)[None]), [[1, 2]])


def test_classes_without_a_public_name_are_found():
    tensor = keras.KerasTensor((None, 2))
    assert _keras.operation_class(keras.ops.add, tensor, tensor).__name__ == "Add"
    assert {c.__name__ for c in _keras.application_layers()} == {
        "LayerScale",
        "StochasticDepth",
        "CustomScaleLayer",
    }
    assert "conv_1" in [layer.name for layer in _keras.flatten_layers(convnet())]


def test_a_callback_finds_those_beside_it():
    class Finder(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.found = _keras.callbacks_beside(self)

    first, finder, last = keras.callbacks.TerminateOnNaN(), Finder(), keras.callbacks.CSVLogger("x")
    model = convnet(optimizer="sgd")
    model.fit(*digits_like(8), verbose=0, callbacks=[first, finder])
    before, after = finder.found
    assert before == [first]
    assert [type(callback) for callback in after] == [keras.callbacks.History]
    assert _keras.callbacks_beside(last) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        ({}, []),
        ({"validation_split": 0.5}, [0, 1, 2, 3]),
        ({"validation_split": 0.5, "validation_freq": 2}, [1, 3]),
        ({"validation_data": digits_like(8), "validation_freq": [1, 4, 9]}, [0, 3]),
    ],
)
def test_the_epochs_that_a_fit_validates_are_known_when_it_begins(arguments, epochs):
    found = []
    finder = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: found.append(_keras.validated_epochs(model))
    )
    model = convnet(optimizer="sgd")
    model.fit(*digits_like(8), epochs=4, verbose=0, callbacks=[finder], **arguments)
    assert found == [epochs]
    validation_freq = 2  # of a loop of one's own
    assert _keras.validated_epochs(model) is None, validation_freq


@pytest.mark.parametrize(
    ("metric", "mode", "better"),
    [("val_accuracy", "auto", True), ("loss", "auto", False), ("own", "max", True)],
)
def test_keras_tells_which_way_a_metric_is_better(metric, mode, better):
    model = convnet(optimizer="sgd", metrics=["accuracy"])
    model.train_on_batch(*digits_like(8))
    assert _keras.more_is_better(model, metric, mode) is better
    with pytest.raises(ValueError, match="maximized or minimized"):
        _keras.more_is_better(model, "own", "auto")


@pytest.mark.parametrize("asked_before", [True, False])
def test_what_keras_counts_and_draws_is_put_back(asked_before):
    keras.utils.clear_session()
    layers.Identity()
    if asked_before:
        keras.random.normal((2,))
    before = _keras.global_seed_state()
    random.seed(1)
    np.random.seed(1)
    expected = random.Random(1).random(), np.random.RandomState(1).random()
    with pytest.raises(ValueError), _keras.global_state_kept():
        keras.random.normal((3,))
        layers.Dropout(0.5)
        layers.Identity()
        random.random(), np.random.random()
        raise ValueError
    after = _keras.global_seed_state()
    assert (before is None) == (after is None)
    assert before is None or (before == after).all()
    assert layers.Identity().name == "identity_1"
    assert (random.random(), np.random.random()) == expected


def test_threads_put_back_one_after_another_what_keras_counts():
    logger = logging.getLogger("tensorflow")
    level = logger.level

    def within(_):
        for _ in range(20):
            with _keras.global_state_kept():
                time.sleep(1e-4)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(within, range(8)))
    assert logger.level == level
