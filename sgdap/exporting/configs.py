"""The config of a model in few bytes, and back; nothing is made of it here.

What a config says as Keras' classes have it by default is left out, beside a table of the defaults
that is frozen with the version of the file (`defaults.json`). So a file means the same whatever
the defaults of a later Keras are. What is left goes through deflate, which knows the words that
most configs have.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from sgdap.exporting.coding import DamagedError

GROWTH = 128
"""Bytes of a config for each byte of its text, at most: a name alone stands for all defaults."""

_IDENTITY = ("module", "class_name", "registered_name")

_WORDS = (
    '{"inbound_nodes":[{"args":[{"class_name":"__keras_tensor__","config":{"shape":[null,'
    '"dtype":"float32","keras_history":["input_layer",0,0]}}],"kwargs":{}}]},'
    '"input_layers":[["output_layers":[[{"Functional":{"name":"functional","layers":['
    '"compile_config":{"optimizer":{"loss":"sparse_categorical_crossentropy","loss_weights":null,'
    '"metrics":["accuracy"],"weighted_metrics":null,"run_eagerly":false,"steps_per_execution":1,'
    '"jit_compile":false}"learning_rate":0.001},"data_format":"channels_first"'
    '{"GlobalAveragePooling2D":{"name":"global_average_pooling2d"}},{"Dropout":{"name":"dropout",'
    '"rate":0.5}},{"BatchNormalization":{"name":"batch_normalization"}},{"ReLU":{"name":"re_lu_1"'
    '}},{"Activation":{"name":"activation","activation":"relu6"}},{"Add":{"name":"add"}},'
    '{"DepthwiseConv2D":{"name":"depthwise_conv2d","strides":[2,2],"depth_multiplier":1,'
    '"padding":"same","use_bias":false,"kernel_initializer":{"HeNormal":{}}'
    '[{"Sequential":{"name":"sequential","layers":[{"InputLayer":{"batch_shape":[null,32,32,3],'
    '"name":"input_layer"}},{"Conv2D":{"name":"conv2d","filters":16,"kernel_size":[3,3],'
    '"activation":"relu"}},{"MaxPooling2D":{"name":"max_pooling2d"}},{"Conv2D":{"name":"conv2d_1",'
    '"filters":32,"kernel_size":[3,3]}},{"MaxPooling2D":{"name":"max_pooling2d_1"}},{"Flatten":'
    '{"name":"flatten"}},{"Dense":{"name":"dense","units":10,"activation":"softmax"}}]}}]'
)
"""Text that deflate takes matches from, the most frequent last."""


def deflated(config: Any) -> tuple[int, bytes]:
    """A config in few bytes.

    Args:
        config: Plain data, as JSON has them.

    Returns:
        The bytes of its text, and the text by deflate.
    """
    small = _reduced(config)
    entries = [small] if _expanded(small) == config else [config, None]
    text = json.dumps(entries, separators=(",", ":")).encode()
    deflating = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_WORDS.encode())
    return len(text), deflating.compress(text) + deflating.flush()


def inflated(packed: bytes, length: int) -> Any:
    """The config that was deflated.

    Args:
        packed: The bytes.
        length: The bytes of its text.

    Raises:
        DamagedError: The bytes are none, or of another length.
    """
    inflating = zlib.decompressobj(-15, zdict=_WORDS.encode())
    try:
        text = inflating.decompress(packed, length + 1)
        entries = json.loads(text)
        if len(text) != length or not inflating.eof or inflating.unused_data:
            raise DamagedError("its architecture is longer than it says")
        if not isinstance(entries, list) or not 1 <= len(entries) <= 2:
            raise DamagedError("it has no architecture")
        return _expanded(entries[0]) if len(entries) == 1 else entries[0]
    except (zlib.error, ValueError, RecursionError) as error:
        raise DamagedError(f"its architecture can't be read: {error}") from error


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("defaults.json").read_text()
    return dict(json.loads(text))


def _reduced(part: Any) -> Any:
    """Objects of known classes by their name and what differs from their defaults."""
    if isinstance(part, list):
        return [_reduced(own) for own in part]
    if not isinstance(part, dict):
        return part
    usual = _defaults().get(str(part.get("class_name")), {})
    config = part.get("config")
    if (
        not usual
        or not isinstance(config, dict)
        or any(key not in part or part[key] != usual[key] for key in _IDENTITY)
        or any(key not in config for key in usual["config"])
    ):
        return {key: _reduced(own) for key, own in part.items()}
    before, none = usual["config"], object()
    others = {k: _reduced(v) for k, v in config.items() if not _same(before.get(k, none), v)}
    rest = {k: _reduced(v) for k, v in part.items() if k not in (*_IDENTITY, "config")}
    return {part["class_name"]: others, **rest}


def _same(one: Any, other: Any) -> bool:
    """Whether two are the same as text: 1, 1.0 and true are three."""
    return one == other and json.dumps(one, default=str) == json.dumps(other, default=str)


def _expanded(part: Any) -> Any:
    """What `_reduced` made small."""
    if isinstance(part, list):
        return [_expanded(own) for own in part]
    if not isinstance(part, dict):
        return part
    first = next(iter(part), "")
    usual, others = _defaults().get(first), part.get(first)
    if usual is None or not isinstance(others, dict):
        return {key: _expanded(own) for key, own in part.items()}
    rest = {k: _expanded(v) for k, v in part.items() if k != first}
    config = {**usual["config"], **{k: _expanded(v) for k, v in others.items()}}
    return {**{key: usual[key] for key in _IDENTITY}, "config": config, **rest}
