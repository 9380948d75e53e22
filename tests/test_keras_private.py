"""Keras' private attributes are used in one package, and each of these uses still works."""

import ast
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import sgdap
from sgdap import _keras
from sgdap._keras.graphs import graph_entries
from sgdap._keras.logs import expected_logs
from sgdap._keras.optimizers import (
    adopt_inner_optimizers,
    build_optimizer,
    config_without_learning_rate,
    inner_optimizers,
    keeps_weights_apart,
    learning_rate_function,
    moving_averages,
    optimizer_around,
    optimizer_parts,
    optimizer_variables,
    spares_weight_decay,
)
from sgdap._keras.variables import with_value, without_values
from tests.models import convnet, digits_like

ROOT = Path(sgdap.__file__).parent


def test_no_other_module_touches_what_is_private_to_another_object():
    wrong = []
    for path in ROOT.rglob("*.py"):
        if path.parent == ROOT / "_keras":
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


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_logits_are_known_behind_an_activation(activation):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, activation)])
    x = np.ones((4, 3), "float32")
    made = model(x)
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(_keras.logits_behind(made), x @ kernel + bias, rtol=1e-6)
    assert _keras.logits_behind(2 * made) is None


def test_history_leads_from_a_tensor_to_its_operation():
    x = keras.Input((3,))
    layer = layers.Dense(2)
    operation, index = _keras.history(layer(x))
    assert operation is layer
    assert index == 0
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


def hold(changed, attributes) -> None:
    """Gives an object other attributes without Keras' bookkeeping."""
    object.__setattr__(changed, "__dict__", {**vars(changed), **attributes})


def test_a_symbolic_tensor_is_the_only_one_in_a_list_of_inputs():
    x = keras.Input((1,))
    tensor = keras.KerasTensor((None, 1))
    assert len(_keras.standardize_inputs(keras.Model([x], x + 1), tensor)) == 1


def test_nodes_of_a_graph_come_in_the_order_of_running_with_their_arguments():
    x = keras.Input((3,))
    first, second = layers.Dense(3), layers.Dense(2)
    y = first(x)
    nodes = _keras.nodes_of(keras.Model(x, second(first(y), training=False) + 1))
    assert [node.operation for node in nodes[:3]] == [first, first, second]
    assert nodes[1].input_tensors == [y]
    assert nodes[1].outputs[0].shape == (None, 3)
    args, kwargs = _keras.node_arguments(nodes[2])
    assert args == (nodes[1].outputs[0],)
    assert kwargs == {"training": False}


def test_conversions_that_change_nothing_are_known():
    x = keras.Input((3,))
    for dtype, same in (("float32", True), (None, True), ("float16", False)):
        converted = keras.ops.convert_to_tensor(x, dtype=dtype)
        assert _keras.changes_nothing(_keras.history(converted)[0], x) == same
    assert not _keras.changes_nothing(_keras.history(x + 1)[0], x)


@pytest.mark.compiled
def test_functions_in_a_graph_have_graphs_of_their_own():
    inner = tf.function(lambda x: x @ x)
    graph = tf.function(lambda x: inner(x)).get_concrete_function(tf.TensorSpec((2, 2))).graph
    (call,) = (op for op in graph.get_operations() if "Call" in op.type)
    found = _keras.function_graph(graph, call.get_attr("f").name)
    assert "MatMul" in {op.type for op in found.get_operations()}


def test_symbolic_shapes_can_be_refreshed():
    model = convnet()
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    for tensor, shape in ((model.outputs[0], (None, 5)), (inner.inputs[0], (None, 7))):
        for changed in _keras.with_shape(tensor, shape):
            hold(*changed)
    assert model.output_shape == (None, 5)
    assert inner.get_config()["layers"][0]["config"]["batch_shape"] == (None, 7)


def test_a_layers_inside_can_be_exchanged():
    model = convnet()
    old = model.get_layer("hidden")
    new = layers.Dense(4, name="other")
    new.build((None, 20))
    old.mine = "stays"
    hold(old, _keras.with_inside(old, new))
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


def test_states_of_recurrent_layers_are_found():
    x = keras.Input(batch_shape=(2, 3, 4))
    model = keras.Model(x, layers.LSTM(5, stateful=True)(x))
    layer = model.layers[1]
    assert _keras.layer_variables(layer)[-2:] == list(layer.states)


@pytest.mark.compiled
def test_compile_state_tells_the_layers_of_a_rebuilt_wrapper():
    wrapper = layers.TimeDistributed(layers.Dense(2))
    model = keras.Sequential([keras.Input((4, 3)), wrapper])
    model.compile("sgd", "mse")
    before = wrapper.layer
    new = layers.TimeDistributed(layers.Dense(2))
    new.build((None, 4, 3))
    state = _keras.with_trainable_state(model, [(wrapper, new)])
    hold(wrapper, _keras.with_inside(wrapper, new))
    hold(model, state)
    assert before not in state["_compiled_trainable_state"]
    model.fit(np.zeros((4, 4, 3)), np.zeros((4, 4, 2)), verbose=0)  # warns where it is not told
    assert not _keras.with_trainable_state(keras.Sequential(), [])


def test_build_shapes_are_forgotten():
    inner = keras.Sequential([layers.Dense(2), layers.Dense(2)])
    keras.Sequential([keras.Input((3,)), inner])
    assert inner.get_build_config() is not None
    hold(inner, _keras.NOT_BUILT_WITH_SHAPES)
    assert inner.get_build_config() is None


def test_an_uncompiled_stand_in_can_be_cloned_and_leaves_the_model_compiled():
    model = convnet(optimizer="sgd")
    clone = keras.models.clone_model(_keras.uncompiled(model))
    assert not clone.compiled
    assert model.compiled
    assert [layer.name for layer in clone.layers] == [layer.name for layer in model.layers]


def test_a_variable_like_another_one_has_another_value():
    variable = keras.Variable([1.0, 2.0], name="mine", trainable=False)
    other = with_value(variable, np.array([3.0, 4.0], "float32"))
    np.testing.assert_array_equal(other, [3, 4])
    np.testing.assert_array_equal(variable, [1, 2])
    assert (other.name, other.path, other.trainable) == ("mine", variable.path, False)


@pytest.mark.compiled
@pytest.mark.parametrize("wrapped", [False, True])
def test_optimizers_tell_the_variables_that_they_update(wrapped):
    optimizer = keras.optimizers.Adam()
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model = convnet(optimizer=optimizer)
    model.fit(*digits_like(8), verbose=0)
    mine = optimizer_variables(model.optimizer)
    assert [id(v) for v in mine] == [id(v) for v in model.trainable_variables]
    assert len(optimizer_parts(model.optimizer)) == 1 + wrapped


def test_optimizers_around_others_are_made_again_and_adopt_the_old_inner_ones():
    variables = [keras.Variable([1.0]), keras.Variable([[2.0]])]
    by_rank = [None, keras.optimizers.Adam(), keras.optimizers.SGD(momentum=0.5)]
    shared = keras.optimizers.MultiOptimizer(lambda variable: by_rank[len(variable.shape)])
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), initial_scale=4.0)
    for old in (shared, scaled):
        old.build(variables)
        inner = [keras.optimizers.Lion() for _ in inner_optimizers(old)]
        new = optimizer_around(old, inner)
        build_optimizer(new, old, variables, variables, variables)
        assert inner_optimizers(new) == inner
        assert all(part.built for part in inner)
        adopt_inner_optimizers(old, new)
        assert inner_optimizers(new) == inner_optimizers(old)
        new.apply([v * 1.0 for v in variables], variables)
        assert int(inner_optimizers(old)[0].iterations) == 1
        assert [p.name for p in optimizer_parts(new)] == [p.name for p in optimizer_parts(old)]


def test_an_optimizers_learning_rate_is_told_and_left_out_of_its_config():
    def rate():
        return 0.25

    optimizer = keras.optimizers.SGD(rate)
    before = vars(optimizer).copy()
    assert learning_rate_function(optimizer) is rate
    assert isinstance(config_without_learning_rate(optimizer)["learning_rate"], float)
    assert vars(optimizer) == before
    assert learning_rate_function(keras.optimizers.SGD(0.5)) is None


def test_a_stand_in_for_a_variable_has_labelled_sizes_and_the_same_value():
    variable = keras.Variable(np.zeros((2, 3)))
    stand_in = _keras.with_labelled_shape(variable, 7)
    rows, columns = stand_in.shape
    assert (rows, columns) == (2, 3)
    assert [(size.variable, size.axis) for size in (rows, columns)] == [(7, 0), (7, 1)]
    slot = keras.optimizers.SGD().add_variable_from_reference(stand_in)
    assert tuple(slot.shape) == (2, 3)
    stand_in.assign(np.ones((2, 3)))
    assert np.all(variable.numpy() == 1)
    assert not isinstance(variable.shape[0], _keras.LabelledSize)


def test_asking_which_variables_are_spared_weight_decay_leaves_no_trace():
    spared, other = keras.Variable([1.0]), keras.Variable([2.0])
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay([spared])
    for asked in (optimizer, keras.optimizers.SGD()):
        before = vars(asked).copy()
        assert spares_weight_decay(asked, spared) is (asked is optimizer)
        assert not spares_weight_decay(asked, other)
        assert vars(asked) == before
    assert not optimizer._exclude_from_weight_decay_cache


def test_optimizers_tell_the_moving_averages_that_they_keep():
    one, other = keras.Variable([1.0]), keras.Variable([[2.0]])
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    plain = keras.optimizers.SGD()
    assert moving_averages(optimizer) == []  # not built
    for each in (optimizer, plain):
        each.build([one, other])
    assert moving_averages(plain) == []
    pairs = moving_averages(optimizer)
    assert [id(variable) for variable, _ in pairs] == [id(one), id(other)]
    optimizer.apply([np.ones(1, "float32"), np.ones((1, 1), "float32")], [one, other])
    for variable, average in pairs:
        average.assign(np.full(average.shape, 7.0))
        assert (variable.numpy() != 7.0).all()
    optimizer.finalize_variable_values([one, other])
    assert one.numpy() == other.numpy() == 7.0


def test_an_optimizer_built_for_stand_ins_holds_the_variables_themselves():
    variable = keras.Variable([1.0])
    stand_in = _keras.with_labelled_shape(variable, 0)
    old, optimizer = keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.5)
    build_optimizer(optimizer, old, [stand_in], [variable], [variable])
    assert optimizer_variables(optimizer)[0] is variable
    assert len(optimizer.variables) == 2
    optimizer.apply([np.ones(1, "float32")], [variable])
    np.testing.assert_array_equal(variable, [0.5])


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
    _keras.set_global_seed_state(None)
    assert _keras.global_seed_state() is None


def test_names_that_keras_counts_can_be_kept():
    keras.backend.clear_session()
    first = layers.Dense(1).name
    with _keras.name_counters_kept():
        assert layers.Dense(1).name != first
        layers.Flatten()
    assert layers.Dense(1).name == f"{first}_1"
    assert layers.Flatten().name == "flatten"


def test_a_nodes_arguments_can_be_written_anew():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inputs[:, :2])
    (node,) = _keras.nodes_of(model)
    hold(node, _keras.with_arguments(node, (inputs, (slice(None), slice(1, 3))), {}))
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


def test_what_a_fit_validates_with_is_known_when_it_begins():
    found = []
    finder = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: found.append(_keras.validation_arguments(model))
    )
    model = convnet(optimizer="sgd")
    x, y = digits_like(8)
    arguments = {"callbacks": [finder], "verbose": 0, "batch_size": 4}
    model.fit(x, y, **arguments)
    model.fit(x, y, validation_data=(x, y), validation_steps=1, **arguments)
    model.fit(x, y, validation_split=0.25, validation_batch_size=2, **arguments)
    nothing, given, split = found
    assert nothing == {} and _keras.validation_arguments(model) is None
    assert given["x"] is x and given["y"] is y and given["sample_weight"] is None
    assert (given["batch_size"], given["steps"]) == (4, 1)
    assert np.array_equal(split["x"], x[6:]) and split["batch_size"] == 2
    model.evaluate(**split, verbose=0)  # takes them by these names


def test_what_a_fit_trains_on_is_known_when_it_begins():
    found = []
    finder = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: found.append(_keras.training_data(model))
    )
    model = convnet(optimizer="sgd")
    x, y = digits_like(8)
    model.fit(x, y, validation_split=0.25, callbacks=[finder], verbose=0)
    model.fit(
        batches := tf.data.Dataset.from_tensors((x, y)),
        shuffle=False,
        callbacks=[finder],
        verbose=0,
    )
    (split, targets), (given, nothing) = found
    assert np.array_equal(split, x[:6]) and np.array_equal(targets, y[:6])
    assert given is batches and nothing is None
    assert _keras.training_data(model) is None


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


class _Counting(layers.Layer):
    """Gives on what it is given, and has a metric."""

    def __init__(self, metric: keras.metrics.Metric) -> None:
        super().__init__()
        self.counted = metric

    def call(self, x):
        return x


def _two_ends() -> keras.Model:
    inputs = keras.Input((3,))
    x = _Counting(keras.metrics.Mean(name="seen"))(inputs)
    ends = {n: layers.Dense(1, activation="sigmoid", name=n)(x) for n in ("up", "down")}
    return keras.Model(inputs, ends)


@pytest.mark.parametrize(
    "compiled",
    [
        {"loss": "mse"},
        {"loss": "mse", "metrics": {"up": ["accuracy", "mae"], "down": keras.metrics.AUC()}},
        {"loss": "mse", "metrics": {"up": ["mae"]}, "weighted_metrics": {"up": ["mae", "mse"]}},
        {"loss": ["mse", "mae"], "metrics": [None, [keras.metrics.F1Score(name="f1")]]},
    ],
)
def test_names_in_logs_are_known_before_the_first_step(compiled):
    model = _two_ends()
    model.compile("sgd", **compiled)
    before = [variable.path for variable in model.metrics_variables]
    expected = expected_logs(model, model.output)
    assert [variable.path for variable in model.metrics_variables] == before
    y = {name: np.ones((4, 1), "float32") for name in ("up", "down")}
    model.train_on_batch(np.ones((4, 3)), y)
    assert list(expected.names) == list(model.get_metrics_result())
    assert _keras.more_is_better(expected, "loss", "auto") is False


def test_the_direction_of_a_metric_is_known_before_the_first_step():
    model = _two_ends()
    model.compile("sgd", "mse", metrics={"up": ["accuracy", "mae"]})
    expected = expected_logs(model, model.output)
    assert _keras.more_is_better(expected, "accuracy", "auto") is True
    assert _keras.more_is_better(expected, "mae", "auto") is False


def test_names_in_logs_are_not_known_where_the_users_code_makes_them():
    class Own(keras.Sequential):
        def compute_metrics(self, *args, **kwargs):
            return {**super().compute_metrics(*args, **kwargs), "own": 1.0}

    class Several(keras.metrics.Mean):
        def result(self):
            return {"one": 1.0, "two": 2.0}

    for kind, metric in ((Own, keras.metrics.Mean()), (keras.Sequential, Several())):
        model = kind([keras.Input((2,)), _Counting(metric), layers.Dense(1)])
        model.compile("sgd", "mse")
        assert expected_logs(model, model.outputs[0]) is None


def test_metrics_of_labels_are_those_that_a_model_was_compiled_with():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert _keras.metrics_of_labels(model) is None
    model.compile("sgd", "mse", metrics=["mae"])
    assert _keras.metrics_of_labels(model) in model.metrics
    model.train_on_batch(np.ones((3, 2)), np.ones((3, 1)))
    assert list(_keras.metrics_of_labels(model).result()) == ["mae"]


def test_compiled_losses_are_read_with_their_weights_before_and_after_the_first_step():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, {n: layers.Dense(2, name=n)(inputs) for n in ("b", "a")})
    assert _keras.compiled_losses(model, model.output) == []
    own = keras.losses.Huber(2.0)
    model.compile("sgd", {"a": own, "b": "mse"}, loss_weights={"a": 3.0, "b": 4.0})
    targets = {name: np.zeros((4, 2)) for name in ("a", "b")}
    for _ in range(2):
        terms = {number: rest for number, *rest in _keras.compiled_losses(model, model.output)}
        flat = [id(tensor) for tensor in keras.tree.flatten(model.output)]
        of = {name: terms[flat.index(id(model.output[name]))] for name in ("a", "b")}
        assert {name: weight for name, (_, weight) in of.items()} == {"a": 3.0, "b": 4.0}
        assert of["a"][0] is own
        model.fit(np.zeros((4, 3)), targets, verbose=0)


def test_a_loss_that_only_wraps_a_function_tells_it_and_its_arguments():
    function, options = _keras.loss_function(keras.losses.Huber(2.0))
    assert function is keras.losses.huber
    assert options["delta"] == 2.0

    class Own(keras.losses.MeanSquaredError):
        def call(self, y_true, y_pred):
            return y_pred

    assert _keras.loss_function(Own()) == (None, {})


def test_what_layers_add_to_the_loss_is_told_apart_from_penalties():
    class Inner(layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.sum(x))
            return x

    layer = keras.Sequential([Inner(activity_regularizer="l2"), layers.Dense(1)])
    assert _keras.added_losses(layer) == []
    layer(np.ones((2, 3)))
    (found,) = _keras.added_losses(layer)
    assert float(found) == 6
    with keras.StatelessScope(collect_losses=True):
        for number in (1, 2):  # a second call forgets the first one's
            layer(np.full((2, 3), number))
        (found,) = _keras.added_losses(layer)
    assert float(found) == 12
    layer.layers[1].activity_regularizer = keras.regularizers.L2()
    layer(np.ones((2, 3)))
    assert len(_keras.added_losses(layer)) == 1


APART = [
    "SGD",
    "Adam",
    "AdamW",
    "Adamax",
    "Nadam",
    "RMSprop",
    "Adagrad",
    "Adadelta",
    "Lion",
    "Ftrl",
]


@pytest.mark.parametrize("name", APART)
def test_optimizers_that_keep_weights_apart_move_each_by_its_own_gradients(name):
    random = np.random.default_rng(0)
    first, mask = random.normal(size=(4, 3)), random.random((4, 3)) > 0.5
    made = []
    for factor in (1.0, mask):
        optimizer = getattr(keras.optimizers, name)(0.1, clipvalue=0.5)
        assert keeps_weights_apart(optimizer)
        variable = keras.Variable(first)
        for step in range(3):
            gradient = np.random.default_rng(step).normal(size=(4, 3)) * factor
            optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
        made.append(variable.numpy()[mask])
    assert (made[0] != first[mask].astype("float32")).all()
    np.testing.assert_array_equal(*made)


def test_weights_are_not_apart_where_norms_tie_them_or_the_optimizer_is_not_known():
    class Own(keras.optimizers.Adam):
        pass

    known = [getattr(keras.optimizers, name)() for name in ("Muon", "Lamb", "Adafactor")]
    tied = [keras.optimizers.Adam(clipnorm=1.0), keras.optimizers.SGD(global_clipnorm=1.0)]
    assert not any(keeps_weights_apart(optimizer) for optimizer in [*known, *tied, Own()])


def test_variables_can_be_made_without_memory():
    with without_values():
        layer = layers.Dense(1 << 40)
        layer.build((None, 1 << 20))
        assert tuple(layer.kernel.shape) == (1 << 20, 1 << 40)
    with keras.StatelessScope():  # it gives memory to what waits for it when it ends
        pass


def test_all_that_a_functional_model_knows_of_its_graph_is_taken_over():
    """A new attribute of Keras' that holds nodes, operations or tensors would be left behind."""

    def small():
        inputs = keras.Input((3,), name="inputs")
        x = inputs + layers.Dense(3, name="branch")(inputs)
        return keras.Model(inputs, layers.Dense(2, name="end")(x))

    model, copy = small(), small()
    own, new = ({x.name: x for x in m.operations} for m in (model, copy))
    pairs = zip(sorted(own), sorted(new), strict=True)
    entries = graph_entries(model, copy, {id(new[b]): own[a] for a, b in pairs})
    of_graph = {name for x, taken in entries if x is model for name in taken}
    kinds = (layers.Layer, keras.Operation, keras.KerasTensor)
    holding = {
        name
        for name, value in vars(model).items()
        if any(isinstance(leaf, kinds) for leaf in keras.tree.flatten(value))
    }
    assert holding <= {*of_graph, "_tracker"}
    assert {"_nodes", "_nodes_by_depth", "output_names"} <= of_graph & vars(model).keys()
    held = {name for x, taken in entries if x is own["end"] for name in taken}
    assert held == {name for name in vars(own["end"]) if name.endswith("bound_nodes")}
