"""What a linear layer makes, seen before its activation while a model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.graph.program import Call
from sgdap.graph.record import Linear, Reading


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
    _keras.attach_mask(after, _keras.mask_of(before))
    return before, after


def kernel_matrix(linear: Linear | Reading, layer: Any) -> npt.NDArray[np.float64]:
    """A linear layer's kernel as a matrix, `(features, outputs)`; that of a `Reading` is 1."""
    if isinstance(linear, Reading):
        return np.eye(len(linear.features))
    kernel = _keras.layer_variables(layer)[linear.kernel].numpy()
    matrix: npt.NDArray[np.float64] = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    return matrix
