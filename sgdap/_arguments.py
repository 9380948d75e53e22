"""Checks of arguments that several steps take."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any


def is_number(value: Any) -> bool:
    """Whether something is a finite number, of Python or NumPy, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_integer(name: str, value: Any, least: int) -> int:
    """Returns an argument as an `int`.

    Args:
        name: The name of the argument.
        value: The value that was received.
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


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises if an argument is none of its choices.

    Args:
        name: The name of the argument.
        value: The value that was received.
        choices: What has a meaning.

    Raises:
        ValueError: It is none of them.
    """
    words = isinstance(value, str)  # True and None are told by identity: 1 is no True here
    if not any(value is choice or (words and value == choice) for choice in choices):
        *first, last = (repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {', '.join(first)} or {last}. Received: {name}={value!r}")


def check_share(name: str, value: Any) -> None:
    """Raises if an argument is no share.

    Args:
        name: The name of the argument.
        value: The value that was received.

    Raises:
        ValueError: It is no number between 0 and 1.
    """
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number between 0 and 1. Received: {name}={value!r}")
