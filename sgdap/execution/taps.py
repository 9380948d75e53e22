"""What a linear layer makes, seen before its activation while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.facts import Place
from sgdap.model.program import Call


def linear_outputs(place: Place, call: Call, compute: Callable[[], Any]) -> tuple[Any, Any]:
    """Computes a call of a linear layer, its activation apart.

    Args:
        place: Where the layer is observed.
        call: Its call.
        compute: Computes the call.

    Returns:
        The output before and after the activation.
    """
    layer = place.layer_of(call.operation)
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
def tensors_inside(
    operation: Any, places: Sequence[Place], see: Callable[[Place, Any], None]
) -> Iterator[None]:
    """Shows tensors inside a layer while it is called.

    Args:
        operation: The layer.
        places: Which of its tensors are observed.
        see: What each of these places and its tensor are shown to.
    """
    parts = {place.inside: place.layer_of(operation) for place in places}
    for number, part in parts.items():
        part.call = _showing(part.call, [own for own in places if own.inside == number], see)
    try:
        yield
    finally:
        for part in parts.values():
            del part.call


def _showing(
    call: Callable[..., Any], places: Sequence[Place], see: Callable[[Place, Any], None]
) -> Callable[..., Any]:
    @wraps(call)
    def shown(x: Any, *args: Any, **kwargs: Any) -> Any:
        for place in places:
            if not place.made:
                see(place, x)
        y = call(x, *args, **kwargs)
        for place in places:
            if place.made:
                see(place, y)
        return y

    return shown


def kernel_matrix(place: Place, operation: Any) -> npt.NDArray[np.float64]:
    """A consumer's kernel as a matrix, `(features, outputs)`; 1 where there is none."""
    if place.kernel is None:
        return np.eye(len(place.features))
    kernel = _keras.layer_variables(operation)[place.kernel].numpy()
    matrix: npt.NDArray[np.float64] = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    return matrix
