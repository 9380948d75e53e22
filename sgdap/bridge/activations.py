"""Activations of one package as those of the other, by the numbers that they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from sgdap.bridge.sides import NotConvertibleError, Sides

Tail = Callable[[Any, str, Any], Callable[[Any], Any]]
"""Makes of a package, a name and a dtype a function of a symbolic tensor."""

_GRID = np.linspace(-9, 9, 96, dtype="float32").reshape(6, 16)


def activation_name(value: Any) -> str | None:
    """The name of an activation in a config; None for none.

    Raises:
        NotConvertibleError: It is a function of the user's own, or a layer.
    """
    if isinstance(value, Mapping) and value.get("class_name") == "function":
        value = value["config"]
    if isinstance(value, Mapping) or not (value is None or isinstance(value, str)):
        named = value.get("class_name") if isinstance(value, Mapping) else type(value).__name__
        raise NotConvertibleError(f"its activation {named} is of a class of its own")
    return value


def other_name(name: str | None, sides: Sides) -> str | None:
    """The name of the same activation in the other package, or None where it has none.

    Both are computed on numbers: `hard_sigmoid` is not the same function in Keras 2 and 3.

    Args:
        name: The name in the source.
        sides: Where it comes from and goes.
    """
    if name is None:
        return "linear"
    wanted = _values(sides.source, name)
    if wanted is None:
        raise NotConvertibleError(f"its activation {name!r} is a function of its own")
    for candidate in (name, {"silu": "swish", "swish": "silu"}.get(name)):
        found = None if candidate is None else _values(sides.target, candidate)
        if found is not None and np.allclose(found, wanted, atol=1e-6):
            return candidate
    return None


def _values(package: Any, name: str) -> Any:
    try:
        return np.array(package.activations.get(name)(tf.constant(_GRID)))
    except Exception:  # the package has no such name
        return None


def _hard_sigmoid(package: Any, name: str, dtype: Any) -> Callable[[Any], Any]:
    add = package.layers.Rescaling(1.0, 3.0, name=f"{name}_shift", dtype=dtype)
    clip = package.layers.ReLU(6.0, name=f"{name}_clip", dtype=dtype)
    scale = package.layers.Rescaling(1 / 6, name=f"{name}_scale", dtype=dtype)
    return lambda x: scale(clip(add(x)))


def _hard_silu(package: Any, name: str, dtype: Any) -> Callable[[Any], Any]:
    gate = _hard_sigmoid(package, name, dtype)
    multiply = package.layers.Multiply(name=f"{name}_multiply", dtype=dtype)
    return lambda x: multiply([x, gate(x)])


def _steep_hard_sigmoid(package: Any, name: str, dtype: Any) -> Callable[[Any], Any]:
    scale = package.layers.Rescaling(0.2, 0.5, name=f"{name}_scale", dtype=dtype)
    clip = package.layers.ReLU(1.0, name=f"{name}_clip", dtype=dtype)
    return lambda x: clip(scale(x))


_TO_TF_KERAS: dict[str, Tail] = {
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_silu,
    "hard_swish": _hard_silu,
}
_FROM_TF_KERAS: dict[str, Tail] = {"hard_sigmoid": _steep_hard_sigmoid}


def tail(activation: str | None, layer: str, dtype: Any, sides: Sides) -> Callable[[Any], Any]:
    """An activation that the other package lacks, made of its layers.

    Args:
        activation: The name in the source.
        layer: The name of the layer that it follows.
        dtype: That layer's dtype policy.
        sides: Where it comes from and goes.

    Returns:
        A function of a symbolic tensor of the target.

    Raises:
        NotConvertibleError: It can't be made of layers.
    """
    table = _TO_TF_KERAS if sides.target.__name__ == "tf_keras" else _FROM_TF_KERAS
    if activation not in table:
        raise NotConvertibleError(f"{sides.target_name} has no activation {activation!r}")
    return table[activation](sides.target, layer, dtype)
