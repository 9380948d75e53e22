"""Builds layers whose weights are set right after; it sets none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from sgdap.model.generators import LOCK
from sgdap.model.interception import replaced

_DRAWN = (
    *(keras.initializers.VarianceScaling, keras.initializers.Orthogonal),
    *(keras.initializers.RandomNormal, keras.initializers.RandomUniform),
    keras.initializers.TruncatedNormal,
)
"""Initializers that draw; those of Glorot, He and LeCun scale the variance."""


@contextlib.contextmanager
def weights_not_drawn() -> Iterator[None]:
    """Within, weights that would begin with random numbers begin with zeros.

    To draw numbers takes longer than all else that a small layer does when it is built.
    """
    with LOCK, replaced({(keras.Layer, "add_weight"): _added}):
        yield


def _added(original: Any, layer: Any, /, *args: Any, **kwargs: Any) -> Any:
    if isinstance(keras.initializers.get(kwargs.get("initializer")), _DRAWN):
        kwargs["initializer"] = "zeros"
    return original(layer, *args, **kwargs)


def only_built(layer: Any) -> contextlib.AbstractContextManager[None]:
    """Within, a call of a layer builds it for its tensors, and makes nothing of them.

    Args:
        layer: A layer of Keras. Layers of the user's own may make their weights in their `call`.
    """

    def called(original: Any, operation: Any, /, *args: Any, **kwargs: Any) -> Any:
        return () if operation is layer else original(operation, *args, **kwargs)

    return replaced({(keras.Operation, "__call__"): called})
