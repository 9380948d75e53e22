"""Activations and other layers that treat every channel alike and by itself."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from sgdap.channels.labels import Labels, Symbol
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall


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
)
def pass_through(layer: Any, call: RuleCall) -> Symbol:
    """The output's channels are the input's."""
    return call.input


@register_rule(layers.Activation)
def activation(layer: Any, call: RuleCall) -> Symbol:
    """The output's channels are the input's, where the function has no eye for the others."""
    if not is_elementwise(layer.activation):
        call.keep(call.input, f"'{layer.name}' mixes the channels")
    return call.input


@register_rule(layers.Softmax)
def softmax(layer: Any, call: RuleCall) -> Symbol:
    """A softmax along an axis mixes what lies on that axis; the others pass."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    for axis in axes:
        channels = call.input.axes[axis]
        if channels is not None:
            call.keep(channels, f"'{layer.name}' mixes the channels")
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


def is_elementwise(function: Any) -> bool:
    """Whether an activation function treats every channel by itself, tried on random numbers.

    One with weights, which it may have for each channel, does not.
    """
    name = getattr(function, "__name__", None)
    if getattr(keras.activations, str(name), None) is function and name == "linear":
        return True
    values = np.random.default_rng(0).normal(size=(7, 4)).astype("float32") * 3
    try:
        if isinstance(function, keras.Layer) and (function.weights or not function.built):
            function = function.from_config(function.get_config())  # to call is to build it
        whole = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(values)))
        half = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(values[:, ::2])))
    except Exception:  # a function of the user's that takes no (7, 4) array
        return False
    if whole.shape != values.shape or half.shape != (7, 2) or getattr(function, "weights", None):
        return False
    return bool(np.allclose(whole[:, ::2], half, rtol=1e-5, atol=1e-6))


def keep_unless_elementwise(layer: Any, call: RuleCall, outputs: Labels) -> None:
    """Protects a layer's outputs where the activation it ends with mixes them."""
    if not is_elementwise(layer.activation):
        call.keep(outputs, f"the activation of '{layer.name}' mixes the channels")
