"""Empties variables that nothing may read any more; never decides which."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import keras


def emptying(values: Iterable[Any]) -> Callable[[], Any]:
    """Prepares to give variables an empty value, with which no function can compute.

    A compiled function holds the variables that it was compiled with. One that reads or assigns
    an emptied one fails, where it would train or read weights that are in no model.

    Args:
        values: The backend's variables, as `keras.Variable.value` returns them; anything else is
            left alone.

    Returns:
        A function to call once, which empties them.
    """
    if keras.backend.backend() != "tensorflow":
        return lambda: None  # functions of other backends are given the weights each time
    import tensorflow as tf

    parts = [part for value in values for part in getattr(value, "values", (value,))]  # replicas'
    variables = [part for part in parts if isinstance(part, tf.Variable)]
    nothing = [tf.zeros([0], variable.dtype) for variable in variables]
    empty = [
        partial(tf.raw_ops.AssignVariableOp, resource=x.handle, value=value, validate_shape=False)
        for x, value in zip(variables, nothing, strict=True)
    ]
    return partial(deque, map(partial.__call__, empty), 0)
