"""What a linear layer makes, seen before its activation while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.facts import Place
from sgdap.model.interception import replaced
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

    def without_activation(original: Callable[..., Any], own: Any, *args: Any, **kw: Any) -> Any:
        return original(_linear(own) if own is layer else own, *args, **kw)

    with replaced({(type(layer), "call"): without_activation}):
        before = compute()
    after = layer.activation(before)
    _keras.attach_mask(after, _keras.mask_of(before))
    return before, after


def _linear(layer: Any) -> Any:
    """The same layer, with the same variables, without an activation; others use `layer` too."""
    linear = object.__new__(type(layer))
    vars(linear).update(vars(layer), activation=keras.activations.linear)
    return linear


@contextmanager
def tensors_inside(
    operation: Any, places: Sequence[Place], see: Callable[[Place, Any], None]
) -> Iterator[None]:
    """Shows tensors inside a layer while this thread calls it.

    Args:
        operation: The layer.
        places: Which of its tensors are observed.
        see: What each of these places and its tensor are shown to.
    """
    of_part: dict[int, list[Place]] = {}
    for place in places:
        of_part.setdefault(id(place.layer_of(operation)), []).append(place)

    def showing(original: Callable[..., Any], own: Any, x: Any, *args: Any, **kw: Any) -> Any:
        here = of_part.get(id(own), [])
        for place in here:
            if not place.made:
                see(place, x)
        y = original(own, x, *args, **kw)
        for place in here:
            if place.made:
                see(place, y)
        return y

    parts = {type(place.layer_of(operation)) for place in places}
    with replaced({(part, "call"): showing for part in parts}):
        yield


def kernel_matrix(place: Place, operation: Any) -> npt.NDArray[np.float64]:
    """A consumer's kernel as a matrix, `(features, outputs)`; the identity where there is none."""
    if place.kernel is None:
        return np.eye(len(place.features))
    kernel = _keras.layer_variables(operation)[place.kernel].numpy()
    return place.patches.kernel_matrix(np.asarray(kernel, np.float64))
