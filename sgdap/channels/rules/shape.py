"""Layers that move, merge or drop positions and leave values alone."""

from __future__ import annotations

from typing import Any

from keras import layers

from sgdap.channels.labels import Symbol
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.channels.rules.trial import tried

_KINDS = (
    *("MaxPooling", "AveragePooling", "GlobalMaxPooling", "GlobalAveragePooling"),
    *("AdaptiveMaxPooling", "AdaptiveAveragePooling", "ZeroPadding", "Cropping", "UpSampling"),
)


@register_rule(*(getattr(layers, f"{kind}{rank}D") for kind in _KINDS for rank in (1, 2, 3)))
def spatial(layer: Any, call: RuleCall) -> list[Symbol]:
    """Works along the spatial axes; the channel axis passes."""
    if len(call.output_shape) > call.input.rank:  # adaptive pooling takes anything
        return call.keep_all(f"'{layer.name}' is not made for inputs of {call.input.rank} axes")
    first = getattr(layer, "data_format", None) == "channels_first"
    axis = 1 if first else call.input.rank - 1
    call.keep_positions(axis)
    target = axis if axis < len(call.output_shape) else len(call.output_shape) - 1
    return [call.output().with_axis(target, call.input.axes[axis])]


@register_rule(
    *(layers.CenterCrop, layers.Resizing, layers.RandomBrightness, layers.RandomContrast),
    *(layers.RandomCrop, layers.RandomFlip, layers.RandomRotation, layers.RandomTranslation),
    layers.RandomZoom,
)
def image(layer: Any, call: RuleCall) -> list[Symbol]:
    """Moves or rescales images, every channel by itself."""
    if len(call.inputs) > 1 or call.input.rank != 4:
        return call.keep_all(f"'{layer.name}' takes more than a batch of images")
    return spatial(layer, call)


@register_rule(layers.Flatten, layers.Permute, layers.RepeatVector)
def moving(layer: Any, call: RuleCall) -> list[Symbol]:
    """A trial shows where the channels go."""
    return tried(layer, call)


@register_rule(layers.Reshape)
def reshaping(layer: Any, call: RuleCall) -> list[Symbol]:
    """A trial shows where the channels go; the target shape shrinks with them."""
    outputs = tried(layer, call)
    for axis, channels in enumerate(outputs[0].axes[1:]):
        if channels is not None and layer.target_shape[axis] != -1:
            call.resize(("target_shape", axis), channels)
    return outputs
