"""The proof on small backbones of `keras_hub`, made from configs."""

import keras
import keras_hub
import numpy as np
import pytest

import sgdap

pytestmark = [
    pytest.mark.architectures,
    pytest.mark.compiled,
    # A backbone holds the weights of its head, which only the task's model calls.
    pytest.mark.filterwarnings("ignore:Gradients do not exist for variables .*reverse_embeddings"),
]

TEXT = {
    "vocabulary_size": 30,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
}
GROUPED = {
    "vocabulary_size": 30,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 12,
}
VISION = {
    "image_shape": (32, 32, 3),
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
}
BACKBONES = {
    "Albert": {**TEXT, "embedding_dim": 6},
    "Bart": TEXT,
    "Bert": TEXT,
    "Bloom": TEXT,
    "DistilBert": TEXT,
    "Electra": {
        "vocab_size": 30,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 8,
        "embedding_dim": 8,
        "intermediate_dim": 12,
    },
    "ESM": TEXT,
    "Falcon": {
        "vocabulary_size": 30,
        "num_layers": 2,
        "num_attention_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 12,
    },
    "FNet": {"vocabulary_size": 30, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 12},
    "Gemma": {**GROUPED, "head_dim": 4},
    "GPT2": TEXT,
    "GPTNeoX": {**TEXT, "hidden_dim": 32},
    "Llama": GROUPED,
    "Mistral": GROUPED,
    "OPT": TEXT,
    "Phi3": GROUPED,
    "Qwen": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 4},
    "Roberta": TEXT,
    "Whisper": {
        **TEXT,
        "num_mels": 4,
        "max_encoder_sequence_length": 8,
        "max_decoder_sequence_length": 6,
    },
    "XLMRoberta": TEXT,
    "DeiT": {**VISION, "intermediate_dim": 12},
    "ViT": {**VISION, "mlp_dim": 12},
    "MiT": {
        "image_shape": (32, 32, 3),
        "hidden_dims": [4, 8],
        "num_layers": 2,
        "layerwise_depths": [1, 1],
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
    },
    "MobileNet": {
        "stackwise_expansion": [[40, 56], [64]],
        "stackwise_num_blocks": [2, 1],
        "stackwise_num_filters": [[16, 16], [24]],
        "stackwise_kernel_size": [[3, 3], [5]],
        "stackwise_num_strides": [[2, 1], [1]],
        "stackwise_se_ratio": [[None, None], [0.25]],
        "stackwise_activation": [["relu", "relu"], ["hard_swish"]],
        "stackwise_padding": [[1, 1], [2]],
        "input_num_filters": 16,
        "output_num_filters": 48,
        "last_layer_filter": 48,
        "depthwise_filters": 8,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "squeeze_and_excite": 0.5,
        "image_shape": (32, 32, 3),
    },
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
