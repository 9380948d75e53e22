"""Checks of what rules say, with errors in words; it knows no rule.

Everywhere `title` is the name of the rule in messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sgdap._arguments import is_number, shown
from sgdap.channels.facts import Key
from sgdap.channels.labels import Symbol, is_labels


def check_channels(title: str, method: str, *given: Any) -> None:
    """Raises a TypeError if a rule gives a method of its call something else than channels."""
    if not all(map(is_labels, given)):
        raise TypeError(
            f"{title} must give call.{method} channels, such as those of "
            f"`call.along(call.input, -1)`. Received: {', '.join(map(repr, given))}"
        )


def check_axes(title: str, variable: Any, axes: Sequence[Any]) -> None:
    """Raises if channels, `(size,)` or None for each axis, do not fit the axes of a variable."""
    check_channels(title, "weight", *(axis for axis in axes if axis is not None))
    shape = tuple(variable.shape)
    sizes = zip(axes, shape, strict=False)
    if len(axes) != len(shape) or any(c is not None and len(c) != size for c, size in sizes):
        raise ValueError(
            f"{title} must give channels or None for each axis of '{variable.name}' of shape "
            f"{shape}. Received: {tuple(None if c is None else len(c) for c in axes)} channels"
        )


def check_number(title: str, name: str, value: Any) -> None:
    """Raises a TypeError if a rule gives something else than a number."""
    if not is_number(value):
        raise TypeError(f"{title} must give {name} as a number. Received: {shown(value)}")


def checked_key(title: str, key: Any) -> Key:
    """Returns the key of a config's entry; raises a TypeError if it is none."""
    if isinstance(key, str):
        return key
    if not isinstance(key, Sequence) or not all(isinstance(part, (str, int)) for part in key):
        raise TypeError(f"{title} must name an entry of the layer's config. Received: {shown(key)}")
    return tuple(key)


def checked_outputs(
    title: str, result: Any, shapes: Sequence[Sequence[int | None]]
) -> list[Symbol]:
    """Returns what a rule returned, as a `Symbol` for each output of its layer.

    Raises:
        TypeError: `result` is something else than channels.
        ValueError: It has channels for outputs of other shapes.
    """
    symbols = [result] if isinstance(result, Symbol) else result
    if not isinstance(symbols, Sequence) or not all(isinstance(s, Symbol) for s in symbols):
        raise TypeError(
            f"{title} must return the channels of its output: a Symbol, or a list of one for each "
            f"output. Received: {shown(result)}"
        )
    if len(symbols) != len(shapes):
        raise ValueError(
            f"{title} must return a Symbol for each of its {len(shapes)} outputs. "
            f"Received: {len(symbols)}"
        )
    for symbol, shape in zip(symbols, shapes, strict=True):
        if not _fits(symbol, shape):
            raise ValueError(
                f"{title} must return channels for an output of shape {tuple(shape)}. Received: a "
                f"Symbol of shape {symbol.shape} with the axes "
                f"{tuple(None if c is None else len(c) for c in symbol.axes)}. "
                "`call.output().with_axis(axis, channels)` makes one that fits, "
                "`call.output()` one of which nothing can be removed."
            )
    return list(symbols)


def _fits(symbol: Symbol, shape: Sequence[int | None]) -> bool:
    """Whether a symbol has the sizes of a shape, and as many labels along each axis."""
    if not len(symbol.shape) == len(symbol.axes) == len(shape):
        return False
    sizes = zip(symbol.shape, shape, symbol.axes, strict=True)
    return all(is_labels(own) for own in symbol.axes if own is not None) and all(
        None in (own, size) or (own == size and (channels is None or len(channels) == size))
        for own, size, channels in sizes
    )
