"""Layers around a layer: what the inner layer's own rule says holds for them."""

from __future__ import annotations

from typing import Any

from keras import layers

from sgdap.graph.channels import Symbol
from sgdap.graph.registry import RuleCall, register_rule


@register_rule(layers.SpectralNormalization)
def spectral_normalization(layer: Any, call: RuleCall) -> list[Symbol]:
    """Divides the kernel by its norm in training; its vector lies along the kernel's last axis."""
    made = call.inside("layer", "layer", call.inputs, call.output_shapes)
    channels = call.along_weight(layer.kernel, -1)
    call.weight(layer.vector_u, None, channels)
    return made


@register_rule(layers.TimeDistributed)
def time_distributed(layer: Any, call: RuleCall) -> list[Symbol]:
    """The inner layer at every step; it sees no axis of steps."""
    x = call.input
    if x.axes[1] is not None:
        call.keep(x.axes[1], f"'{layer.name}' works along their axis")
    for mask in call.inputs[1:]:
        call.keep(mask, f"'{layer.name}' reads them as a mask")
    step = Symbol((x.shape[0], *x.shape[2:]), (None, *x.axes[2:]))
    shapes = [(shape[0], *shape[2:]) for shape in call.output_shapes]
    made = call.inside("layer", "layer", [step], shapes, each_step=True)
    return [
        Symbol((y.shape[0], shape[1], *y.shape[1:]), (None, None, *y.axes[1:]))
        for y, shape in zip(made, call.output_shapes, strict=True)
    ]
