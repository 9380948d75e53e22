"""The precision in which TensorFlow multiplies float32 numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

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
