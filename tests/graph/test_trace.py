"""A model is unrolled into calls that compute what it computes."""

import keras
import numpy as np
import pytest
from keras import layers

from sgdap.graph.trace import trace
from tests.models import all_layers, convnet, outputs, randomise, samples


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
    for mine, theirs in zip(trace(model).run(x), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_inputs_by_name_are_put_in_order():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    model = keras.Model({"b": b, "a": a}, a - b)
    (result,) = trace(model).run({"a": np.ones((1, 2)), "b": np.zeros((1, 2))})
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
    for symbol, ref in program.symbols:
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

    (result,) = program.run(samples(model, 4), {number: tap})
    end = model.get_layer("end")
    expected = end.activation(end.bias[None]).numpy()
    np.testing.assert_allclose(result, np.repeat(expected, 4, axis=0), rtol=1e-6)
    assert seen == [("hidden", (4, 20))]


def test_a_model_built_by_its_first_batch_is_read():
    model = keras.Sequential([layers.Dense(3), layers.Dense(2)])
    x = np.ones((2, 5), "float32")
    model(x)
    np.testing.assert_array_equal(trace(model).run(x)[0], outputs(model, x))


def test_a_model_that_starts_inside_another_ends_at_its_own_input():
    whole = convnet()
    tail = keras.Model(whole.get_layer("flatten").output, whole.outputs[0])
    assert list(trace(tail).layers()) == ["hidden", "dropout", "end"]


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
        (Own(name="own"), ValueError, "'own' is not built.*Call it once on a batch"),
    ],
)
def test_what_has_no_graph_is_refused_with_the_remedy(model, error, message):
    with pytest.raises(error, match=message):
        trace(model)
