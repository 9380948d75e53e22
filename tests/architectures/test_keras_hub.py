"""The proof on small backbones of `keras_hub`, made from configs."""

import keras
import keras_hub
import numpy as np
import pytest

import sgdap

pytestmark = [pytest.mark.architectures, pytest.mark.compiled]

TEXT = {
    "vocabulary_size": 30,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
}
BACKBONES = {
    "Albert": {**TEXT, "embedding_dim": 6},
    "Bert": TEXT,
    "DistilBert": TEXT,
    "GPT2": TEXT,
    "Roberta": TEXT,
    "DenseNet": {"stackwise_num_repeats": [1, 2, 1], "image_shape": (32, 32, 3)},
    "EfficientNet": {
        "stackwise_kernel_sizes": [3, 3],
        "stackwise_num_repeats": [1, 2],
        "stackwise_input_filters": [8, 8],
        "stackwise_output_filters": [8, 12],
        "stackwise_expansion_ratios": [1, 4],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
        "stackwise_strides": [1, 2],
        "stackwise_block_types": ["v1", "v1"],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "image_shape": (32, 32, 3),
    },
    "ResNet": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [1, 2],
        "stackwise_num_strides": [1, 2],
        "block_type": "bottleneck_block",
        "image_shape": (32, 32, 3),
    },
    "VGG": {
        "stackwise_num_repeats": [2, 2],
        "stackwise_num_filters": [6, 8],
        "image_shape": (16, 16, 3),
    },
    "Xception": {
        "stackwise_conv_filters": [[8, 8], [8, 10]],
        "stackwise_pooling": [True, False],
        "image_shape": (32, 32, 3),
    },
}
"""Small configs by name of the backbone."""


def functional(backbone: keras.Model) -> keras.Model:
    """A backbone as a functional model, for sequences of 6 where it leaves the length open."""
    named = backbone.input if isinstance(backbone.input, dict) else {"images": backbone.input}
    given = {
        name: keras.Input([size or 6 for size in x.shape[1:]], dtype=x.dtype, name=name)
        for name, x in named.items()
    }
    whole = given if isinstance(backbone.input, dict) else given["images"]
    return sgdap.functional(keras.Model(whole, backbone.call(whole)))


def inputs(model: keras.Model):
    """A batch for a backbone: tokens, masks of ones, segments of zeros, images or sounds."""
    random = np.random.default_rng(0)

    def batch(name: str, x: keras.KerasTensor) -> np.ndarray:
        shape = (4, *x.shape[1:])
        if "mask" in name or "segment" in name:
            return np.full(shape, "mask" in name, x.dtype)
        if "int" in x.dtype:
            return random.integers(1, 30, shape).astype(x.dtype)
        return random.normal(size=shape).astype("float32")

    if isinstance(model.input, dict):
        return {name: batch(name, x) for name, x in model.input.items()}
    return batch("", model.input)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_pruned_at_random_passes_the_proof(name, tmp_path, tabulated):
    backbone = getattr(keras_hub.models, f"{name}Backbone")(**BACKBONES[name])
    model = functional(backbone)
    tabulated(f"keras_hub {name}", model, inputs(model), tmp_path)
