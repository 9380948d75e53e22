"""A model is unrolled into calls that compute what it computes."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import sgdap
from sgdap.model.symbolic_graph import symbolic_graph
from sgdap.model.tracing import trace
from sgdap.surgery import prune_in_place
from tests.models import OwnModel, all_layers, convnet, outputs, randomise, samples
from tests.oracles import random_removal


def run(program, x, taps=None):
    return program.run_flat(program.flat_inputs(x), taps)


def branched() -> keras.Model:
    """Two inputs, two outputs, a nested model called twice, a shared layer and an operator."""
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    encoder = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, "relu"), layers.Dropout(0.5)], name="encoder"
    )
    shared = layers.Dense(3, name="shared")
    left, right = shared(encoder(a)), shared(encoder(b))
    return randomise(keras.Model([a, b], {"sum": left + right, "left": left}, name="branched"))


def test_a_program_computes_what_the_model_does_in_inference_mode():
    model = branched()
    x = [np.random.default_rng(seed).normal(size=(6, 4)).astype("float32") for seed in (0, 1)]
    expected = keras.tree.flatten(model(x, training=False))
    for mine, theirs in zip(run(trace(model), x), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_inputs_by_name_are_put_in_order():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    model = keras.Model({"b": b, "a": a}, a - b)
    (result,) = run(trace(model), {"a": np.ones((1, 2)), "b": np.zeros((1, 2))})
    assert result.numpy().tolist() == [[1, 1]]


def test_layers_of_nested_models_have_their_path_and_come_once():
    paths = list(trace(branched()).layers())
    encoder = [path for path in paths if path.startswith("encoder/")]
    assert len(encoder) == 2
    assert paths.count("shared") == 1


def test_every_layer_is_found_in_the_order_of_the_calls():
    model = convnet()
    program = trace(model)
    assert list(program.layers().values()) == list(all_layers(model))
    known = set(program.inputs)
    for call in program.calls:
        assert set(call.inputs) <= known
        known |= set(call.outputs)
    assert set(program.outputs) <= known


def test_shapes_and_dtypes_are_those_of_the_symbolic_tensors():
    model = convnet()
    program = trace(model)
    for symbol, ref in symbolic_graph(program)[0]:
        assert tuple(symbol.shape) == program.shapes[ref.index]
        assert symbol.dtype == program.dtypes[ref.index]


def test_a_tap_stands_in_for_a_call():
    model = convnet()
    program = trace(model)
    number = next(n for n, call in enumerate(program.calls) if call.path == "hidden")
    seen = []

    def tap(call, compute, inputs):
        seen.append((call.path, inputs[0].shape))
        return 0 * compute()

    (result,) = run(program, samples(model, 4), {number: tap})
    end = model.get_layer("end")
    expected = end.activation(end.bias[None]).numpy()
    np.testing.assert_allclose(result, np.repeat(expected, 4, axis=0), rtol=1e-6)
    assert seen == [("hidden", (4, 20))]


def test_a_model_built_by_its_first_batch_is_read():
    model = keras.Sequential([layers.Dense(3), layers.Dense(2)])
    x = np.ones((2, 5), "float32")
    model(x)
    np.testing.assert_array_equal(run(trace(model), x)[0], outputs(model, x))


def test_a_model_that_starts_inside_another_ends_at_its_own_input():
    whole = convnet()
    tail = keras.Model(whole.get_layer("flatten").output, whole.outputs[0])
    assert list(trace(tail).layers()) == ["hidden", "dropout", "end"]


def test_layers_of_a_model_inside_are_told_what_it_is_told_of_training():
    x = keras.Input((4,))
    base = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="norm")])
    model = randomise(keras.Model(x, layers.Dense(2)(base(x, training=False))))
    copy = sgdap.functional(model)
    data = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    for training in (False, True):
        expected = model(data, training=training)
        np.testing.assert_allclose(copy(data, training=training), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Layer 'inner' .* was passed an input with a mask:UserWarning")
def test_a_model_inside_that_is_given_a_mask_is_one_call_and_keeps_its_channels():
    x, mask = keras.Input((5, 4)), keras.Input((5,), dtype="bool")
    steps = keras.Input((5, 4))
    inner = keras.Model(steps, layers.LSTM(3)(steps), name="inner")
    hidden = layers.Dense(4, name="hidden")(x)
    model = randomise(keras.Model([x, mask], layers.Dense(2)(inner(hidden, mask=mask))))
    graph = sgdap.channel_graph(model)
    assert not graph.group("hidden").prunable
    random = np.random.default_rng(0)
    data = [random.normal(size=(3, 5, 4)).astype("float32"), np.tri(3, 5, 1, dtype="bool")]
    np.testing.assert_allclose(run(graph.program, data)[0], model(data), atol=1e-6)


@keras.saving.register_keras_serializable("tests")
class Inside(layers.Layer):
    """Holds a layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.inner = layers.Dense(4, name="inner")

    def build(self, shape):
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        return self.inner(x)


def test_only_layers_that_a_mask_can_reach_are_not_looked_into():
    tokens, x = keras.Input((5,)), keras.Input((5, 4))
    y = layers.Embedding(7, 4, mask_zero=True)(tokens)
    masked, free = Inside(name="masked")(y), Inside(name="free")(x)
    paths = list(trace(keras.Model([tokens, x], [masked, free])).layers())
    assert "masked" in paths
    assert "free/inner" in paths


def test_numbers_that_a_model_inside_takes_in_another_dtype_are_converted():
    tokens, x = keras.Input((4,), dtype="int32"), keras.Input((4,))
    inner = keras.Model(x, layers.Dense(6, name="hidden")(x / 2), name="inner")
    model = randomise(keras.Model(tokens, layers.Dense(2, name="end")(inner(tokens))))
    data = np.arange(12).reshape(3, 4)
    program = trace(model)
    np.testing.assert_allclose(run(program, data)[0], model(data), atol=1e-6)
    graph = sgdap.channel_graph(model)
    assert graph.group("inner/hidden").removable.all()
    prune_in_place(graph, random_removal(graph))
    assert inner.output_shape == (None, 3)
    assert model(data).shape == (3, 2)


def test_operations_of_a_graph_keep_their_names_and_those_of_a_call_are_counted():
    x = keras.Input((4,))
    y = ops.add(ops.add(x, 1), 2)
    named = keras.Model(x, y, name="named")
    model = OwnModel(named)
    model(np.ones((2, 4), "float32"))
    own = [operation.name for operation in named.operations[1:]]
    program = trace(model)
    paths = list(program.layers())
    assert [path for path in paths if path.startswith("named/")] == [f"named/{n}" for n in own]
    counted = [call.path for call in program.calls if not call.in_graph]
    assert all(
        path.startswith("ops.")
        for path in counted
        if not isinstance(program.layers()[path], layers.Layer)
    )
    assert all(call.in_graph for call in program.calls if call.path.startswith("named/"))


class Adversaries(keras.Model):
    """Trained by a step of its own, and without a `call`."""

    def __init__(self):
        super().__init__(name="gan")
        self.generator = keras.Sequential([keras.Input((3,)), layers.Dense(2)])


class Own(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("a path", TypeError, r"Expected a keras\.Model\. Received: 'a path' \(of type str\)"),
        (
            keras.Sequential([layers.Dense(2)], name="raw"),
            ValueError,
            "'raw' is not built.*keras.Input.*call it once",
        ),
        (keras.Sequential([keras.Input((3,))], name="bare"), ValueError, "'bare' has no layers"),
        (Own(name="own"), ValueError, "'own' is not built.*Call it once on a batch"),
        (Adversaries(), ValueError, "'gan' has no `call`.*that it holds \\(generator\\)"),
    ],
)
def test_what_has_no_graph_is_refused_with_the_remedy(model, error, message):
    with pytest.raises(error, match=message):
        trace(model)


class Traced(keras.Model):
    """A model whose `call` goes on behind a hidden layer; its shapes are known in any case."""

    def __init__(self):
        super().__init__()
        self.hidden, self.end = layers.Dense(6, "relu", name="hidden"), layers.Dense(2, name="end")

    def build(self, input_shape):
        self.built = True

    def call(self, x):
        return self.end(self.behind(self.hidden(x)))


class OnNumPy(Traced):
    def behind(self, x):
        return np.maximum(x, 0.1)


class WithIf(Traced):
    def behind(self, x):
        return x * 2 if ops.sum(x) > 0 else x


class WithPython(Traced):
    def behind(self, x):
        return tf.reshape(tf.py_function(lambda y: y * 2, [x], tf.float32), (-1, 6))


class WithRawOperation(Traced):
    def behind(self, x):
        return tf.raw_ops.Relu(features=x)


class WithBatchSize(Traced):
    def behind(self, x):
        return x + ops.zeros((x.shape[0], 6))


class WithRandomNumbers(Traced):
    def behind(self, x):
        return x + keras.random.normal(ops.shape(x))


class WithNewLayer(Traced):
    def behind(self, x):
        return layers.Dense(4)(x)


@pytest.mark.parametrize(
    ("kind", "line", "remedy"),
    [
        (OnNumPy, "np.maximum", "a keras.layers.Layer of its own"),
        (WithIf, "if ops.sum", "no `if` or loop on the values of tensors"),
        (WithPython, "tf.py_function", "a keras.layers.Layer of its own"),
        (WithRawOperation, "tf.raw_ops", "Use keras.layers and keras.ops there"),
        (WithBatchSize, "ops.zeros", r"with ops.zeros_like\("),
        (WithRandomNumbers, "keras.random", "Draw random numbers of that size in a keras.layers"),
        (WithNewLayer, "layers.Dense", "Make layers in `__init__`"),
    ],
)
def test_a_call_that_cannot_be_traced_is_refused_with_the_line_and_the_remedy(kind, line, remedy):
    model = kind()
    model(np.ones((3, 5), "float32"))
    name = re.escape(f"model '{model.name}' (of class {kind.__name__})")
    with pytest.raises(ValueError, match=f"{name} can't be traced.*test_tracing.*{line}.*{remedy}"):
        trace(model)


def test_a_model_that_keras_could_not_trace_either_is_refused_with_what_shows_the_line():
    class WithoutBuild(keras.Model):
        def __init__(self):
            super().__init__()
            self.end = layers.Dense(2)

        def call(self, x):
            return self.end(x * 2 if ops.sum(x) > 0 else x)

    model = WithoutBuild()
    model(np.ones((3, 5), "float32"))
    with pytest.raises(ValueError, match=r"does not know the shapes.*`build\(self, input_shape\)`"):
        trace(model)


def test_a_call_of_several_arguments_needs_the_shapes_of_all():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.end = layers.Dense(2)

        def call(self, x, y):
            return self.end(x + y)

    class Built(Two):
        def build(self, x_shape, y_shape):
            self.built = True

    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    model = Two()
    model(x, x)
    with pytest.raises(ValueError, match=r"takes x and y.*`build\(self, x_shape, y_shape\)`"):
        trace(model)
    model = Built()
    expected = model(x, 2 * x)
    np.testing.assert_allclose(trace(model).run_flat([x, 2 * x])[0], expected)


def test_a_call_that_returns_nothing_is_refused():
    class Nothing(Traced):
        def call(self, x):
            self.end(self.hidden(x))

    model = Nothing()
    model(np.ones((3, 5), "float32"))
    with pytest.raises(ValueError, match="returns no tensor.*Received: None"):
        trace(model)


def test_a_batch_size_that_is_taken_from_a_tensor_leaves_the_other_sizes_known():
    class Flattened(Traced):
        def behind(self, x):
            return ops.reshape(x, (ops.shape(x)[0], -1))

    model = randomise_after_call(Flattened(), (3, 4, 5))
    graph = sgdap.channel_graph(model)
    assert graph.group("hidden").removable.all()
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype("float32")
    np.testing.assert_allclose(outputs(sgdap.functional(model), x), outputs(model, x), rtol=1e-6)


def test_a_sequential_model_in_a_call_is_traced_for_any_batch_size():
    class Branches(Traced):
        def __init__(self):
            super().__init__()
            self.branch = keras.Sequential(
                [layers.Dense(4, name="inner"), layers.ReLU()], name="branch"
            )

        def behind(self, x):
            return ops.concatenate([x, self.branch(x)], -1)

    model = randomise_after_call(Branches(), (3, 5))
    assert all(shape[0] is None for shape in trace(model).shapes)
    graph = sgdap.channel_graph(model)
    assert all(graph.group(name).prunable for name in ("hidden", "branch/inner"))


def randomise_after_call(model: keras.Model, shape: tuple[int, ...]) -> keras.Model:
    model(np.ones(shape, "float32"))
    return randomise(model)


KERAS_FUNCTIONS = [
    (keras.Layer, "__call__"),
    (keras.Operation, "symbolic_call"),
    *((ops, name) for name in ("shape", "reshape", "arange", "broadcast_to", "zeros", "full")),
]


class Positions(keras.Model):
    """Counts positions, while other threads wait for their turn."""

    def __init__(self):
        super().__init__()
        self.hidden, self.end = layers.Dense(6, name="hidden"), layers.Dense(2, name="end")

    def call(self, x):
        positions = ops.arange(ops.shape(x)[1], dtype="float32")
        time.sleep(0.001)
        return self.end(self.hidden(x) + ops.reshape(positions, (1, -1, 1)))


def test_eight_threads_that_trace_at_once_leave_keras_own_functions_in_place():
    models = [randomise_after_call(Positions(), (2, 5, 3)), convnet()] * 4
    before = [getattr(owner, name) for owner, name in KERAS_FUNCTIONS]
    alone = [list(trace(model).layers()) for model in models]
    together = threading.Barrier(8)

    def traced(model: keras.Model) -> list[list[str]]:
        together.wait()
        return [list(trace(model).layers()) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(traced, models))
    assert found == [[paths] * 3 for paths in alone]
    assert [getattr(owner, name) for owner, name in KERAS_FUNCTIONS] == before


def test_other_threads_call_keras_own_functions_while_one_traces():
    model = convnet()
    x = samples(model, 2)
    expected = outputs(model, x)
    inside, done = threading.Event(), threading.Event()

    class Waiting(Traced):
        def behind(self, y):
            inside.set()
            assert done.wait(60)
            return y

    done.set()
    waiting = Waiting()
    waiting(np.ones((3, 5), "float32"))
    inside.clear()
    done.clear()

    def predicted():
        assert inside.wait(60)
        functional = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
        done.set()
        return outputs(model, x), functional.output_shape

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(predicted)
        assert list(trace(waiting).layers()) == ["hidden", "end"]
    np.testing.assert_array_equal(answer.result()[0], expected)
    assert answer.result()[1] == (None, 2)


def test_keras_own_functions_come_back_after_an_error():
    class Failing(Traced):
        def behind(self, x):
            raise KeyboardInterrupt

    model = Failing()
    with pytest.raises(KeyboardInterrupt):
        model(np.ones((3, 5), "float32"))
    before = [getattr(owner, name) for owner, name in KERAS_FUNCTIONS]
    with pytest.raises(KeyboardInterrupt):
        trace(model)
    assert [getattr(owner, name) for owner, name in KERAS_FUNCTIONS] == before
    assert list(trace(convnet()).layers())


def test_a_model_of_keras_2_is_refused_by_its_name():
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    words = "tf_keras model, 'sequential.*convert it with sgdap.from_tf_keras"
    with pytest.raises(TypeError, match=words):
        trace(model)
    callback = sgdap.SGDAPCallback(sgdap.Budget(flops=0.5))
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match=words):
        model.fit(np.ones((4, 3)), np.ones((4, 2)), callbacks=[callback], verbose=0)


def test_a_call_compiled_by_hand_is_told_to_leave_that_to_keras():
    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        @tf.function
        def call(self, x):
            return tf.nn.relu(self.dense(x))

    model = Compiled()
    model(np.ones((2, 3)))
    with pytest.raises(ValueError, match="Take `@tf.function` off `call`"):
        trace(model)
