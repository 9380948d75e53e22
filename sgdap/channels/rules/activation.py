"""Activations and other layers that treat every channel alike and by itself."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from sgdap import _keras
from sgdap.channels.labels import Labels, Symbol
from sgdap.channels.probing import Array, treats_each_alone
from sgdap.channels.registry import register_rule
from sgdap.channels.remembering import Remembered, key_of
from sgdap.channels.rule_call import RuleCall
from sgdap.model.program import arrays_of

_known: Remembered[bool] = Remembered(1024)
_, _STOCHASTIC_DEPTH, _ = _keras.application_layers()


@register_rule(
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.AlphaDropout,
    layers.ActivityRegularization,
    layers.Identity,
    _STOCHASTIC_DEPTH,
    _keras.operation_class(keras.ops.zeros_like, keras.KerasTensor((1,))),
)
def pass_through(layer: Any, call: RuleCall) -> Symbol:
    """The output's channels are the input's."""
    return call.input


@register_rule(layers.Activation)
def activation(layer: Any, call: RuleCall) -> Symbol:
    """The output's channels are the input's, where the function has no eye for the others."""
    widths = {len(channels) for channels in call.input.all_channels()}
    if not all(is_elementwise(layer.activation, width) for width in widths):
        call.keep(call.input, f"'{layer.name}' mixes the channels")
    return call.input


@register_rule(layers.PReLU)
def prelu(layer: Any, call: RuleCall) -> Symbol:
    """Its slopes lie along the input's axes."""
    shared = set(layer.shared_axes or ())
    call.weight(
        layer.alpha,
        *(None if axis + 1 in shared else c for axis, c in enumerate(call.input.axes[1:])),
    )
    return call.input


def is_elementwise(function: Any, width: int) -> bool:
    """Whether an activation function treats every channel by itself, tried on random numbers.

    One with weights, which it may have for each channel, does not.

    Args:
        function: The activation function.
        width: The number of channels that it is called on.
    """
    if function is keras.activations.linear:
        return True
    return _known.get((key_of(function), width), lambda: _is_elementwise(function, width))


def _is_elementwise(function: Any, width: int) -> bool:
    try:
        if isinstance(function, keras.Layer) and (function.weights or not function.built):
            function = function.from_config(function.get_config())  # to call is to build it

        def run(values: Array) -> Array:
            (made,) = arrays_of(function(keras.ops.convert_to_tensor(values)))
            return made

        alone = treats_each_alone(run, width)
    except Exception:  # a function of the user's that takes no array of two axes
        return False
    return alone and not getattr(function, "weights", None)


def keep_unless_elementwise(layer: Any, call: RuleCall, outputs: Labels) -> None:
    """Protects a layer's outputs where the activation it ends with mixes them."""
    if not is_elementwise(layer.activation, len(outputs)):
        call.keep(outputs, f"the activation of '{layer.name}' mixes the channels")
