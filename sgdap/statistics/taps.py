"""What a linear layer makes, seen before its activation while a model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from sgdap import _keras
from sgdap.graph.program import Call
from sgdap.graph.record import Linear


def linear_outputs(linear: Linear, call: Call, compute: Callable[[], Any]) -> tuple[Any, Any]:
    """Computes a call of a linear layer, its activation apart.

    Args:
        linear: The layer, or the one inside it.
        call: Its call.
        compute: Computes the call.

    Returns:
        The output before and after the activation.
    """
    layer = linear.layer_of(call.operation)
    activation = layer.activation
    layer.activation = keras.activations.linear
    try:
        before = compute()
    finally:
        layer.activation = activation
    after = activation(before)
    _keras.copy_mask(before, after)
    return before, after
