"""Says in words where a rule says something that can't be; it knows no rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sgdap.channels.labels import Symbol


def check_channels(title: str, method: str, *given: Any) -> None:
    """Says that what a rule gives a method of its call are channels.

    Args:
        title: What messages call the rule.
        method: The method's name.
        *given: What was received.

    Raises:
        TypeError: One of them is something else.
    """
    if not all(isinstance(channels, np.ndarray) for channels in given):
        raise TypeError(
            f"{title} must give call.{method} channels, such as those of "
            f"`call.along(call.input, -1)`. Received: {', '.join(map(repr, given))}"
        )


def check_axes(title: str, variable: Any, axes: Sequence[Any]) -> None:
    """Says that channels fit the axes of a variable.

    Args:
        title: What messages call the rule.
        variable: The variable.
        axes: For each of its axes the channels, `(size,)`, or None.

    Raises:
        TypeError: Something else than channels is given for an axis.
        ValueError: The variable has other axes.
    """
    check_channels(title, "weight", *(axis for axis in axes if axis is not None))
    shape = tuple(variable.shape)
    sizes = zip(axes, shape, strict=False)
    if len(axes) != len(shape) or any(c is not None and len(c) != size for c, size in sizes):
        raise ValueError(
            f"{title} must give channels or None for each axis of '{variable.name}' of shape "
            f"{shape}. Received: {tuple(None if c is None else len(c) for c in axes)} channels"
        )


def checked_outputs(
    title: str, result: Any, shapes: Sequence[Sequence[int | None]]
) -> list[Symbol]:
    """What a rule returned, as a list.

    Args:
        title: What messages call the rule.
        result: What it returned.
        shapes: The shapes of its layer's outputs.

    Returns:
        A `Symbol` for each output.

    Raises:
        TypeError: It returned something else than channels.
        ValueError: It returned channels of other outputs.
    """
    symbols = [result] if isinstance(result, Symbol) else result
    if not isinstance(symbols, Sequence) or not all(isinstance(s, Symbol) for s in symbols):
        raise TypeError(
            f"{title} must return the channels of its output: a Symbol, or a list of one for each "
            f"output. Received: {result!r}"
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
    """Whether a symbol has the sizes of a shape, and as many channels along each axis."""
    if not len(symbol.shape) == len(symbol.axes) == len(shape):
        return False
    sizes = zip(symbol.shape, shape, symbol.axes, strict=True)
    return all(
        None in (own, size) or (own == size and (channels is None or len(channels) == size))
        for own, size, channels in sizes
    )
