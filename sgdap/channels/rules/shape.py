"""Layers that move, merge or drop positions and leave values alone."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from sgdap.channels.labels import Symbol, moved
from sgdap.channels.probing import Numbers
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.model.program import arrays_of

_KINDS = (
    "MaxPooling",
    "AveragePooling",
    "AdaptiveMaxPooling",
    "AdaptiveAveragePooling",
    "GlobalMaxPooling",
    "GlobalAveragePooling",
    "ZeroPadding",
    "Cropping",
    "UpSampling",
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
    layers.CenterCrop,
    layers.Resizing,
    layers.RandomBrightness,
    layers.RandomContrast,
    layers.RandomCrop,
    layers.RandomFlip,
    layers.RandomRotation,
    layers.RandomTranslation,
    layers.RandomZoom,
)
def image(layer: Any, call: RuleCall) -> list[Symbol]:
    """Moves or rescales images, every channel by itself."""
    if len(call.inputs) > 1 or call.input.rank != 4:
        return call.keep_all(f"'{layer.name}' takes more than a batch of images")
    return spatial(layer, call)


@register_rule(layers.Permute)
def permute(layer: Any, call: RuleCall) -> Symbol:
    """Axes change places, the channels along them too."""
    return Symbol(call.output_shape, tuple(call.input.axes[axis] for axis in (0, *layer.dims)))


@register_rule(layers.Flatten, layers.RepeatVector)
def moving(layer: Any, call: RuleCall) -> Symbol:
    """Moves and repeats values only, so numbers of labels show where these go."""

    def move(numbers: Numbers) -> Numbers:
        (made,) = arrays_of(layer.call(keras.ops.convert_to_tensor(numbers)))
        return made

    return moved(call.input, call.output_shape, move, call.ledger)


@register_rule(layers.Reshape)
def reshaping(layer: Any, call: RuleCall) -> Symbol:
    """Values keep their row-major order; the target shape shrinks with the channels."""
    output = moving(layer, call)
    for axis, channels in enumerate(output.axes[1:]):
        if channels is not None and layer.target_shape[axis] != -1:
            call.resize(("target_shape", axis), channels)
    return output
