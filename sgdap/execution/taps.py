"""What a linear layer makes, seen before its activation while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.facts import Linear, Reading
from sgdap.model.program import Call


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


@contextmanager
def tensors_inside(operation: Any, seen: Sequence[tuple[Reading, Callable[[Any], None]]]) -> Any:
    """Shows tensors inside a layer while it is called.

    Args:
        operation: The layer.
        seen: What is looked at, and whom its tensors are shown to.
    """
    parts = {layer.name: layer for layer in _keras.flatten_layers(operation)}
    own = {reading.inside: parts[reading.inside] for reading, _ in seen}
    for name, part in own.items():
        part.call = _showing(part.call, [(r, show) for r, show in seen if r.inside == name])
    try:
        yield
    finally:
        for part in own.values():
            del part.call


def _showing(
    call: Callable[..., Any], seen: Sequence[tuple[Reading, Callable[[Any], None]]]
) -> Callable[..., Any]:
    @wraps(call)
    def shown(x: Any, *args: Any, **kwargs: Any) -> Any:
        for reading, show in seen:
            if not reading.made:
                show(x)
        y = call(x, *args, **kwargs)
        for reading, show in seen:
            if reading.made:
                show(y)
        return y

    return shown


def kernel_matrix(linear: Linear | Reading, layer: Any) -> npt.NDArray[np.float64]:
    """A linear layer's kernel as a matrix, `(features, outputs)`; that of a `Reading` is 1."""
    if isinstance(linear, Reading):
        return np.eye(len(linear.features))
    kernel = _keras.layer_variables(layer)[linear.kernel].numpy()
    matrix: npt.NDArray[np.float64] = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    return matrix
