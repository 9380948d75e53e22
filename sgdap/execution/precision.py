"""The precision in which models compute while something is measured by them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from sgdap import _keras

_LOCK = threading.Lock()
_before: list[bool] = []
"""What the first of the blocks that run now found, once for each of them."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Within, GPUs multiply float32 matrices in float32, not in TensorFloat-32 of 10 bits.

    The kernels ask for it when they run, so it holds for functions that were compiled before. It
    holds for the whole process until the last of several blocks ends.
    """
    config = tf.config.experimental
    with _LOCK:
        _before.append(_before[0] if _before else config.tensor_float_32_execution_enabled())
        config.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        with _LOCK:
            found = _before.pop()
            if not _before:
                config.enable_tensor_float_32_execution(found)


class _InFloat32(keras.DTypePolicy):
    """Computes in float32 with variables of another type."""

    def __init__(self, variable_dtype: str) -> None:
        super().__init__("float32")
        self._of_variables = variable_dtype

    @property
    def variable_dtype(self) -> str:
        """The type of the variables."""
        return self._of_variables


@contextmanager
def computing_in_float32(model: Any) -> Iterator[None]:
    """Within, layers of a model that compute in float16 or bfloat16 do so in float32.

    Losses and gradients of small probabilities have no value in 16 bits. Functions that are traced
    within keep what they were traced with.

    Args:
        model: The model; its variables stay as they are.
    """
    before = [
        (layer, layer.dtype_policy)
        for layer in _keras.flatten_layers(model)
        if not isinstance(layer.dtype_policy, keras.dtype_policies.DTypePolicyMap)
        and layer.compute_dtype in ("float16", "bfloat16")
    ]
    try:
        for layer, policy in before:
            layer.dtype_policy = _InFloat32(policy.variable_dtype)
        yield
    finally:
        for layer, policy in before:
            layer.dtype_policy = policy
