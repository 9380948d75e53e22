"""Checks of arguments that several steps take."""

from __future__ import annotations

import operator
from typing import Any


def check_integer(name: str, value: Any, least: int) -> int:
    """Returns an argument as an `int`.

    Args:
        name: Of the argument.
        value: What was received.
        least: The smallest value that has a meaning.

    Raises:
        ValueError: It is no integer, or a smaller one.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(
            f"{name} must be an integer of at least {least}. Received: {name}={value!r}"
        )
    return number
