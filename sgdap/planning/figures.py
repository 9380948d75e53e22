"""Figures of widths and error curves, drawn with matplotlib (`pip install sgdap[plots]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sgdap._table import short_name

GONE, STAYS, ACCENT = "#c9ced6", "#1f5fa8", "#c4571b"

_NAMED = 24
"""The most lines that a legend names."""

_DECADES = 6
"""Powers of ten below the largest error that a figure shows; less is drawn at its lower edge."""


def subplots(rows: int, columns: int, figsize: tuple[float, float], layout: Any = "tight") -> Any:
    """A figure and its axes, of which the upper and right lines are not drawn.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib. Install it with: pip install 'sgdap[plots]'"
        ) from error
    figure = Figure(figsize=figsize, dpi=120, layout=layout)
    axes = figure.subplots(rows, columns)
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_widths(
    axis: Any, names: Sequence[str], before: Sequence[int], after: Sequence[int]
) -> None:
    """Draws a bar for each group, the share of its channels that stays in another colour.

    Args:
        axis: The matplotlib axes to draw on.
        names: The name of each group.
        before: Its number of channels.
        after: The number of those that stay.
    """
    rows = np.arange(len(names))[::-1]
    axis.barh(rows, 100, color=GONE, label="removed")
    axis.barh(rows, 100 * np.divide(after, before), color=STAYS, label="kept")
    for row, old, new in zip(rows, before, after, strict=True):
        axis.text(103, row, f"{old}" if old == new else f"{old} → {new}", va="center")
    axis.set_yticks(rows, [short_name(name, 40) for name in names])
    for label in axis.get_yticklabels():
        label.set_parse_math(False)  # a $ in a name is not math
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xlim(0, 130)
    axis.set_xticks([0, 50, 100])
    axis.set_xlabel("channels kept, %")


def plot_widths(
    names: Sequence[str], before: Sequence[int], after: Sequence[int], title: str
) -> Any:
    """Draws the channels of groups, those that stay and those that leave.

    Args:
        names: The name of each group.
        before: Its number of channels.
        after: The number of those that stay.
        title: The title above the figure.

    Returns:
        The matplotlib figure.
    """
    figure, axis = subplots(1, 1, figsize=(6.4, 1.3 + 0.26 * len(names)))
    draw_widths(axis, names, before, after)
    axis.set_title(title, loc="left", fontsize=10)
    return figure


def plot_curves(curves: Mapping[str, tuple[Sequence[float], int]]) -> Any:
    """Draws, for each group, the expected rise of the loss against the channels that are left.

    Args:
        curves: By name of the group its errors with 0, 1, … channels removed, and its size.

    Returns:
        The matplotlib figure.
    """
    figure, axis = subplots(1, 1, figsize=(7.4, 4.0))
    lowest = max(max(errors) for errors, _ in curves.values()) / 10**_DECADES or 1.0
    colours = _colours(len(curves))
    for colour, (name, (errors, size)) in zip(colours, curves.items(), strict=True):
        left = 100 * (1 - np.arange(1, len(errors)) / size)
        rises = np.maximum(errors[1:], lowest)  # with all channels it is 0, which no log axis has
        dots = "." if len(left) <= 20 else ""
        axis.plot(left, rises, marker=dots, color=colour, label=short_name(name, 28), markersize=4)
    axis.set_yscale("log")
    axis.invert_xaxis()
    axis.set_xlabel("channels kept, %")
    axis.set_ylabel("expected rise of the loss")
    lines = axis.get_lines()
    named = lines[: _NAMED if len(lines) > _NAMED + 1 else None]
    more = len(lines) - len(named)
    legend = axis.legend(
        handles=named,
        title=f"the first {_NAMED} of {len(lines)}" if more else None,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        fontsize=7 if len(named) > 12 else 9,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _colours(count: int) -> Any:
    """A colour for each line: distinct ones for a few, by depth for many."""
    from matplotlib import colormaps

    if count <= 10:
        return colormaps["tab10"](range(count))
    return colormaps["viridis"](np.linspace(0, 0.95, count))
