import keras
import numpy as np
import pytest
from keras import layers

from sgdap.model.tracing import trace
from sgdap.sparsity.kernels import chosen_kernels
from sgdap.sparsity.patterns import NofM, Unstructured
from sgdap.weights.layouts import layout_of


def kernels_of(*stack, pattern=None, **options):
    model = keras.Sequential(stack)
    return chosen_kernels(trace(model).layers(), pattern or Unstructured(), **options)


@pytest.mark.parametrize(
    ("layer", "shape", "sizes"),
    [
        (layers.Dense(3), (4,), (1, 4, 3)),
        (layers.Conv2D(6, 3), (8, 8, 4), (1, 36, 6)),
        (layers.Conv2D(6, 3, groups=2), (8, 8, 4), (2, 18, 3)),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4), (4, 9, 2)),
        (layers.Conv1DTranspose(5, 3), (8, 4), (1, 12, 5)),
        (layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (7, 4), (1, 4, 6)),
        (layers.EinsumDense("abc,bcd->abd", (7, 3)), (7, 4), (7, 4, 3)),
        (layers.Embedding(9, 4), (7,), (1, 9, 4)),
    ],
)
def test_kernels_are_seen_as_reduction_by_outputs_of_each_group(layer, shape, sizes):
    layer.build((1, *shape))
    variable = layer.weights[0]
    layout = layout_of(layer, variable)
    assert layout.sizes == sizes
    kernel = np.arange(np.prod(variable.shape)).reshape(variable.shape)
    np.testing.assert_array_equal(layout.kernel(layout.matrices(kernel), kernel.shape), kernel)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv2D(6, 2, groups=3), (2, 2, 6)),
        (layers.DepthwiseConv2D(2, depth_multiplier=2), (2, 2, 3)),
        (layers.Conv2DTranspose(3, 2), (1, 1, 4)),
        (layers.EinsumDense("abc,bcd->abd", (2, 3)), (2, 4)),
    ],
)
def test_an_output_depends_on_its_own_column_of_its_own_group_only(layer, shape):
    layer.build((1, *shape))
    variable = layer.weights[0]
    layout = layout_of(layer, variable)
    x = np.ones((1, *shape), "float32")
    matrices = np.zeros(layout.sizes, "float32")
    matrices[-1, :, -1] = 1
    variable.assign(layout.kernel(matrices, tuple(variable.shape)))
    made = np.asarray(layer(x)).reshape(-1)
    spread = isinstance(layer, layers.Conv2DTranspose)  # each position has rows of its own
    expected = matrices.shape[1] // (4 if spread else 1)
    assert set(np.round(made, 4)) == {0.0, float(expected)}
    assert (made != 0).sum() == (4 if spread else 1)


def test_kernels_of_all_layers_are_found_by_unlike_names():
    found = kernels_of(
        keras.Input((5, 4)),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="lstm"), name="both"),
        layers.SeparableConv1D(6, 2, name="separable"),
        layers.LayerNormalization(),
    )
    assert [kernel.path for kernel in found] == [
        "both/forward_lstm/lstm_cell/kernel",
        "both/forward_lstm/lstm_cell/recurrent_kernel",
        "both/backward_lstm/lstm_cell/kernel",
        "both/backward_lstm/lstm_cell/recurrent_kernel",
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
    ]


def test_a_shared_layer_has_one_kernel():
    x = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    model = keras.Model(x, shared(shared(x)))
    assert len(chosen_kernels(trace(model).layers(), Unstructured())) == 1


def test_biases_are_chosen_on_demand_and_have_no_pattern():
    found = kernels_of(keras.Input((4,)), layers.Dense(3), pattern=NofM(2, 4), biases=True)
    assert [kernel.pattern for kernel in found] == [NofM(2, 4), Unstructured()]


def test_names_choose_layers_and_overrides_leave_some_out():
    stack = [layers.Dense(4, name=name) for name in ("first", "second", "third")]
    found = kernels_of(
        keras.Input((4,)), *stack, layers=["first", "s*"], overrides={"second": 0, "first": 0.5}
    )
    assert [(kernel.path, kernel.share) for kernel in found] == [("first/kernel", 0.5)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layers": ["frist"]}, ValueError, "Did you mean 'first'"),
        ({"layers": ["act"]}, ValueError, "'act', as layers says, has no kernel"),
        ({"layers": "first"}, TypeError, "must be a list"),
        ({"overrides": {"first": 1.0}}, ValueError, "below 1"),
        ({"overrides": {"first": 0.0}}, ValueError, "No weight may leave"),
        ({"pattern": NofM(2, 4)}, ValueError, r"'first/kernel': .* 6 long, no multiple of 4"),
    ],
)
def test_bad_choices_are_refused_in_words(options, error, words):
    with pytest.raises(error, match=words):
        kernels_of(
            keras.Input((6,)), layers.Dense(4, name="first"), layers.ReLU(name="act"), **options
        )


def test_layers_that_compute_with_other_numbers_are_refused():
    quantized, lora = layers.Dense(4, name="a"), layers.Dense(4, name="b")
    for layer in (quantized, lora):
        layer.build((1, 4))
    quantized.quantize("int8")
    lora.enable_lora(2)
    with pytest.raises(ValueError, match="'a' is quantized to int8"):
        kernels_of(keras.Input((4,)), quantized)
    with pytest.raises(ValueError, match="'b' has LoRA"):
        kernels_of(keras.Input((4,)), lora)
