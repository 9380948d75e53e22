"""Updates variables in a train step under any strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def on_each_device(
    update: Callable[[Any, Any], None], variables: Sequence[Any], values: Sequence[Any]
) -> None:
    """Updates variables in a train step, each copy of them on its device.

    Args:
        update: Updates a variable by a value.
        variables: The variables.
        values: A variable or tensor for each, the same in all replicas.
    """
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        for variable, value in zip(variables, values, strict=True):
            update(variable, value)
        return

    def on_all(strategy: Any, values: Any) -> None:
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable, update, args=(value,), group=False)

    replica.merge_call(on_all, args=(list(values),))


def assign(variable: Any, value: Any) -> None:
    """Gives a variable a value."""
    variable.assign(value)


def assign_add(variable: Any, value: Any) -> None:
    """Adds a value to a variable."""
    variable.assign_add(value)
