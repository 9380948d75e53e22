"""Variables like others but for their value, or with a shape and no value at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.backend.common import global_state

from sgdap._keras import with_attributes


def with_value(variable: Any, value: Any) -> Any:
    """Returns a variable that is like another one, but for its value.

    TensorFlow is told whether it is trainable as it was of the other one, when that was made:
    Keras may thaw a frozen variable later, and gradient tapes would not watch it.
    """
    new = with_attributes(variable, {**vars(variable), "_trainable": variable.value.trainable})
    new._initialize(value)
    new._trainable = variable.trainable
    return new


@contextmanager
def without_values() -> Iterator[None]:
    """Within, new variables get no memory: not now, and not when another scope ends."""
    name = "uninitialized_variables"
    before = list(global_state.get_global_attribute(name) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute(name, before)
