"""Every layer with a rule: the slim model equals the original with the removed channels masked."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap import _keras
from sgdap.channels.registry import _RULES
from sgdap.surgery import prune_in_place
from sgdap.surgery.apply import copy_model
from tests.models import (
    INPUT_SHAPES,
    SOME_RANKS,
    SPATIAL_ONLY,
    STEPS,
    all_layers,
    assemble,
    outputs,
    randomise,
    samples,
)
from tests.oracles import lost_filters, masked_outputs, random_removal

pytestmark = pytest.mark.compiled  # grouped convolutions need XLA on CPUs

POSITIONAL = {"dense", "flatten", "reshape", "concatenate"} | SPATIAL_ONLY
EVERYWHERE = [
    (name, spatial, spatial)
    for name in STEPS
    for spatial in SOME_RANKS.get(name, range(4) if name in POSITIONAL else (0, 2))
    if spatial or name not in SPATIAL_ONLY
]
VARIED = ("dense", "convolution", "shared", "nested", "reshape", "add", "multiply", "concatenate")
CHOICES = [(name, 2, number) for name in VARIED for number in range(6) if number != 2]
CHOICES += [("composite", 2, number) for number in (0, 1)]
CHOICES += [("recurrent", 1, number) for number in (0, 2, 3, 4)]
CHOICES += [("cells", 1, number) for number in range(5)]
CHOICES += [("bidirectional", 1, number) for number in (0, 2, 3, 4, 6, 9, 11)]
CHOICES += [("convolutional_recurrent", 3, number) for number in (0, 1)]
CHOICES += [("time_distributed", 2, number) for number in (0, 1, 3, 4)]
CHOICES += [("spectral_normalization", 1, number) for number in (0, 2)]
CHOICES += [("multi_head_attention", 1, number) for number in (0, 2, 3, 5, 6, 8)]
CHOICES += [("grouped_query_attention", 1, number) for number in (0, 2, 4, 5, 9)]
CHOICES += [("attention", 1, number) for number in (0, 2, 3, 4)]
CHOICES += [("dot", 1, number) for number in (0, 2)]
CHOICES += [("image", 2, number) for number in range(9) if number != 2]
CHOICES += [("reversible_embedding", 1, number) for number in (0, 2, 4)]
CHOICES += [(name, 2, number) for name in STEPS if name[:4] == "ops_" for number in (3,)]
CHOICES += [("ops_product", 1, number) for number in range(3)]
CHOICES += [("operator", 2, number) for number in range(9) if number != 2]
MIXING = {
    "grouped_convolution",
    "grouped",
    "softmax",
    "activation",
    "reshape",
    "layer_normalization",
    "rms_normalization",
    "unit_normalization",
    "group_normalization",
    "rescaling",
    "normalization",
    "embedding",
    "reversible_embedding",
    "masking",
    "dot",
    "permute",
    "composite",
    "ops_any",
    "ops_argmax",
    "ops_array_split",
    "ops_compare",
    "ops_constant",
    "ops_constant_product",
    "ops_reduce_channels",
    "ops_roll",
    "ops_slice_channels",
    "ops_softmax",
    "ops_sort",
    "ops_swapaxes",
    "ops_transpose",
    "tensorflow_mixing",
}
"""Steps that protect the channels they get, or lead them to the output, for some numbers."""

REMOVABLE = {
    ("convolution", 2, 2): 13,
    ("separable_convolution", 2, 2): 13,
    ("batch_normalization", 2, 2): 8,
    ("group_normalization", 2, 2): 6,
    ("prelu", 2, 2): 8,
    ("multiply", 2, 4): 8,
    ("multi_head_attention", 1, 3): 32,
    ("grouped_query_attention", 1, 5): 20,
    ("attention", 1, 2): 12,
    ("cells", 1, 3): 20,
    ("bidirectional", 1, 9): 11,
    ("convolutional_recurrent", 3, 0): 11,
    ("time_distributed", 2, 4): 17,
    ("spectral_normalization", 1, 2): 8,
    ("embedding", 1, 1): 8,
    ("reversible_embedding", 1, 4): 12,
    ("ops_product", 1, 2): 12,
    ("ops_split", 2, 3): 8,
    ("ops_array_split", 2, 2): 4,
    ("ops_concatenate", 2, 2): 11,
    ("flatten", 2, 2): 8,
}
"""How many channels may leave by what the layers' rules say: to try them protects none of these."""


@pytest.mark.parametrize(
    "name", ["composite", "own_model", *(name for name in STEPS if name.startswith("ops_"))]
)
@pytest.mark.parametrize("number", [1])
def test_slim_operations_are_saved_and_reloaded_as_they_run(name, number, tmp_path):
    slim = pruned(assemble(1, [(name, number)]))
    slim.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras")
    x = samples(slim)
    np.testing.assert_array_equal(outputs(slim, x), outputs(loaded, x))
    for layer in slim.layers:
        assert tuple(layer.output.shape) == tuple(loaded.get_layer(layer.name).output.shape)


def pruned(model: keras.Model) -> keras.Model:
    slim = copy_model(model)
    graph = sgdap.channel_graph(slim)
    prune_in_place(graph, random_removal(graph))
    return slim


@pytest.mark.parametrize(("name", "spatial", "number"), EVERYWHERE + CHOICES)
def test_slim_model_equals_the_original_with_the_removed_channels_masked(name, spatial, number):
    model = assemble(spatial, [(name, number)])
    before = model.get_weights()
    slim = copy_model(model)
    graph = sgdap.channel_graph(slim)
    if (name, spatial, number) in REMOVABLE:
        removable = sum(int(group.removable.sum()) for group in graph.groups)
        assert removable == REMOVABLE[(name, spatial, number)]
    prune_in_place(graph, random_removal(graph))
    x = samples(model)
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)
    assert slim.count_params() < model.count_params()
    assert all(map(np.array_equal, before, model.get_weights()))
    if name not in MIXING:
        assert lost_filters(model.layers[1], slim.layers[1]).any()


POSITION_WISE = ("convolution", "depthwise_convolution", "separable_convolution", "recurrent")
POSITION_WISE += ("transposed_convolution", "grouped_convolution", "group_normalization")


@pytest.mark.parametrize(
    "name", [*POSITION_WISE, "max_pooling", "embedding", "layer_normalization"]
)
def test_channels_that_became_positions_stay_where_a_layer_works_along_them(name):
    model = assemble(1, [("permute", 1), (name, 0)])
    slim = pruned(model)
    x = samples(model)
    np.testing.assert_allclose(outputs(slim, x), masked_outputs(model, slim, x), atol=1e-5)


def test_random_models_can_hold_every_layer_that_has_a_rule():
    made = set()
    for name, spatial, number in EVERYWHERE + CHOICES:
        inputs = keras.Input(INPUT_SHAPES[spatial])
        output = STEPS[name]([layers.Dense(4)(inputs)], number)
        if output is not None:
            whole = all_layers(keras.Model(inputs, output))
            made |= {type(part) for layer in whole for part in _keras.flatten_layers(layer)}
    ruled = {
        rule
        for rule in _RULES
        if rule.__module__.startswith("keras.") and issubclass(rule, layers.Layer)
    }
    assert ruled <= made, {layer.__name__ for layer in ruled - made}


def test_rows_of_an_open_number_of_steps_that_a_reshape_splits_lose_whole_blocks():
    first, end = layers.Dense(4, name="first"), layers.Dense(3)
    model = randomise(
        keras.Sequential([keras.Input((None, 3)), first, layers.Reshape((-1, 2)), end])
    )
    assert "2 of 2 channels removable" in str(sgdap.channel_graph(model).group("first"))
    slim = pruned(model)
    (gone,) = np.flatnonzero(lost_filters(first, slim.layers[0]))[:1]
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    rows = first(x).numpy().reshape(2, 10, 2)
    rows[..., gone % 2] = 0
    np.testing.assert_allclose(slim(x), end(rows), atol=1e-5)


def plain_network(order: dict, axis: int, shape: tuple[int, ...]) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(6, 3, activation="relu", **order),
            layers.BatchNormalization(axis=axis),
            layers.MaxPooling2D(padding="same", **order),
            layers.Conv2D(5, 3, strides=2, padding="same", **order),
            layers.Flatten(**order),
            layers.Dense(4),
            layers.Dense(2),
        ]
    )


def branched_network(order: dict, axis: int, shape: tuple[int, ...]) -> keras.Model:
    images = keras.Input(shape)
    x = layers.SeparableConv2D(6, 3, depth_multiplier=2, padding="same", **order)(images)
    x = layers.GroupNormalization(3, axis=axis)(x)
    y = layers.DepthwiseConv2D(3, padding="same", **order)(x)
    y = layers.Concatenate(axis=axis)([x, layers.ReLU()(y)])
    y = layers.Conv2DTranspose(8, 2, strides=2, **order)(y)
    y = layers.Conv2D(4, 3, groups=2, padding="same", **order)(layers.SpatialDropout2D(0.1)(y))
    x = layers.Conv2D(4, 1, **order)(layers.UpSampling2D(2, **order)(x))
    x = layers.GlobalAveragePooling2D(**order)(layers.Add()([x, y]))
    return keras.Model(images, layers.Dense(2)(x))


@pytest.mark.parametrize("network", [plain_network, branched_network])
def test_channels_first_models_lose_what_their_channels_last_twins_lose(network):
    """TensorFlow convolves channels first only on GPUs, so weights are compared.

    No output is as wide as it has channels: Keras would add the bias along the wrong axis then.
    """
    last = randomise(network({"data_format": "channels_last"}, -1, (12, 12, 3)))
    first = network({"data_format": "channels_first"}, 1, (3, 12, 12))
    first.set_weights(last.get_weights())
    slim = pruned(first)
    for one, other in zip(slim.layers, pruned(last).layers, strict=True):
        if len(one.output.shape) == 4:
            assert one.output.shape[1] == other.output.shape[-1]
        assert all(map(np.array_equal, one.get_weights(), other.get_weights()))
