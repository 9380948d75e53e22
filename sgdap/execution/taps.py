"""What a linear layer makes, seen before its activation while a model runs."""

from __future__ import annotations

import inspect
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
    operation: Any,
    inputs: Sequence[Any],
    places: Sequence[Place],
    see: Callable[[Place, Any, Any], None],
) -> Iterator[None]:
    """Shows tensors inside a layer while this thread calls it.

    Args:
        operation: The layer.
        inputs: The tensors that it is called on, flattened.
        places: Which of its tensors are observed.
        see: What each of these places is shown to, with its tensor and a mask of the positions
            that the layer looks at, or None. A tensor that a kernel multiplies is that of this
            call alone: others that take the same values take other tensors.
    """
    of_inputs = [_keras.mask_of(x) for x in inputs]  # attention takes them away
    of_part: dict[int, list[Place]] = {}
    for place in places:
        of_part.setdefault(id(place.layer_of(operation)), []).append(place)

    def showing(original: Callable[..., Any], own: Any, *args: Any, **kw: Any) -> Any:
        here = of_part.get(id(own), [])
        if not here:
            return original(own, *args, **kw)
        given = inspect.signature(original).bind(own, *args, **kw)
        name, x = list(given.arguments.items())[1]
        if any(place.is_linear for place in here):
            given.arguments[name] = keras.ops.copy(x)
            _keras.attach_mask(given.arguments[name], _keras.mask_of(x))
            x = given.arguments[name]
        for place in here:
            if not place.made:
                mask = given.arguments.get("mask")
                see(place, x, of_inputs[place.tensor] if mask is None else mask)
        y = original(*given.args, **given.kwargs)
        for place in here:
            if place.made:
                see(place, y, None)
        return y

    parts = {type(place.layer_of(operation)) for place in places}
    with replaced({(part, "call"): showing for part in parts}):
        yield


def projected(place: Place, operation: Any, rows: Any) -> Any:
    """What a kernel that doesn't show its products makes of rows, with the values of this scope.

    Args:
        place: Where the kernel reads.
        operation: The layer that is called there.
        rows: `(…, features)`.

    Returns:
        The products and the bias, `(…, outputs)`.
    """
    assert place.kernel is not None
    variables, dtype = _keras.layer_variables(operation), rows.dtype
    outputs = place.outputs.shape[-1]
    kernel = keras.ops.reshape(variables[place.kernel], (-1, outputs))
    made = keras.ops.matmul(rows, keras.ops.cast(kernel, dtype))
    if place.bias is not None:
        bias = keras.ops.reshape(variables[place.bias], (-1, outputs))
        made += keras.ops.cast(bias[0], dtype)
    return made


def kernel_matrix(place: Place, operation: Any) -> npt.NDArray[np.float64]:
    """A consumer's kernel as a matrix, `(features, outputs)`; the identity where there is none."""
    if place.kernel is None:
        return np.eye(len(place.features))
    kernel = _keras.layer_variables(operation)[place.kernel].numpy()
    return place.patches.kernel_matrix(np.asarray(kernel, np.float64), len(place.features))


def weighed_matrix(place: Place, operation: Any, whole: bool) -> npt.NDArray[np.float64]:
    """What makes of a consumer's features that whose errors the sensitivity weighs.

    It is the kernel, or the identity where errors are weighed at the features
    (`Place.weighs_features`).

    Args:
        place: Where the consumer is observed.
        operation: The layer that is called there.
        whole: Whether the sensitivity is a whole matrix. Where it is a diagonal, errors of
            products that are shown are weighed at these: features are not alone there.

    Returns:
        `(features, weighed)`.
    """
    if place.weighs_features and (whole or not place.shows_outputs):
        return np.eye(len(place.features))
    return kernel_matrix(place, operation)


def at_features(place: Place, operation: Any, gradient: Any) -> Any:
    """The gradient at a consumer's features, of that at the products of its kernel.

    Args:
        place: Where the consumer is observed.
        operation: The layer that is called there.
        gradient: `(…, outputs)`.

    Returns:
        `(…, features)`: `W g` of each row.
    """
    assert place.kernel is not None
    kernel = keras.ops.cast(_keras.layer_variables(operation)[place.kernel], gradient.dtype)
    if place.patches.transposed is not None:
        kernel = keras.ops.swapaxes(kernel, -1, -2)
    kernel = kernel[..., place.patches.of_group(kernel.shape[-1])]
    kernel = keras.ops.reshape(kernel, (len(place.features), -1))
    return keras.ops.matmul(gradient, keras.ops.transpose(kernel))
