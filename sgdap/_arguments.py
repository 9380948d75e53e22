"""Checks of arguments that several steps take."""

from __future__ import annotations

import difflib
import math
import operator
import os
import reprlib
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any


class _Short(reprlib.Repr):
    """Shows values in one line; arrays and tensors by their shape, alone or in lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 4, 4, 4
        self.maxstring, self.maxother = 80, 100

    def repr1(self, x: Any, level: int) -> str:
        """Shows a value, `level` levels deep."""
        if not isinstance(x, type) and getattr(x, "shape", None):
            return f"<{type(x).__name__} of shape {tuple(x.shape)}>"
        return " ".join(super().repr1(x, level).split())


def shown(value: Any) -> str:
    """A value in one short line, for the words of an error."""
    return _Short().repr(value)


def choices_for(name: str, names: Iterable[str], most: int = 30) -> str:
    """What an error says of a name that is not known: the names there are, and what is near.

    Args:
        name: The name that was received.
        names: The names that are known; of paths the last part may be near too.
        most: The most names that are listed.
    """
    known = list(dict.fromkeys(names))
    if not known:
        return "There are none."
    more = f", … ({len(known)} in all)" if len(known) > most else ""
    by_end = {part: path for path in known for part in (path.rpartition("/")[2], path)}
    near = dict.fromkeys(by_end[part] for part in difflib.get_close_matches(name, by_end))
    meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"There are: {', '.join(known[:most])}{more}.{meant}"


def checked_path(name: str, value: Any) -> Path:
    """Returns an argument that names a file or folder as a `Path`.

    Args:
        name: The argument's name.
        value: What was received.

    Raises:
        TypeError: It is no path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(
            f"{name} must be a path, a str or a pathlib.Path. Received: {shown(value)} (of type "
            f"{type(value).__name__})"
        )
    return Path(value)


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
            f"{name} must be an integer of at least {least}. Received: {name}={shown(value)}"
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
        raise ValueError(
            f"{name} must be {', '.join(first)} or {last}. Received: {name}={shown(value)}"
        )


def check_share(name: str, value: Any) -> None:
    """Raises if an argument is no share.

    Args:
        name: The name of the argument.
        value: The value that was received.

    Raises:
        ValueError: It is no number between 0 and 1.
    """
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(
            f"{name} must be a number between 0 and 1. Received: {name}={shown(value)}"
        )
