"""What each layer's channels are worth: the loss expected when a part of them is removed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sgdap._table import Row, table_text, terminal_width

SHARES = (0.1, 0.25, 0.5, 0.75)
"""The shares of a group's channels that the table tells the loss without."""


@dataclass(frozen=True)
class GroupSensitivity:
    """How much the loss is expected to rise when channels of one group leave.

    Attributes:
        name: The group's name.
        layers: The layers that make its channels.
        size: The number of its channels.
        curve: The expected rise of the loss with 0, 1, … of them removed; empty if none may leave.
        note: Why channels are protected; empty if none are.
    """

    name: str
    layers: tuple[str, ...]
    size: int
    curve: tuple[float, ...]
    note: str = ""

    def rise(self, share: float) -> float | None:
        """The expected rise of the loss when a share of the channels is removed.

        Args:
            share: The share, 0 to 1. The nearest whole number of channels leaves, at least one.

        Returns:
            The rise; None where so many may not leave.
        """
        removed = max(math.floor(share * self.size + 0.5), 1)
        return self.curve[removed] if removed < len(self.curve) else None


@dataclass(frozen=True)
class Sensitivity:
    """How much the loss is expected to rise when channels leave: `print` it, or `plot` it.

    Each group is looked at by itself, the others whole. The order of its channels, and whether
    weights are refitted, are those of the plan.

    Attributes:
        groups: The groups, in the order of the model.
    """

    groups: tuple[GroupSensitivity, ...]

    def plot(self) -> Any:
        """Draws the expected rise of the loss against the channels kept, a line for each group.

        Needs matplotlib: `pip install sgdap[plots]`.

        Returns:
            The matplotlib figure.
        """
        from sgdap.planning.figures import plot_curves

        return plot_curves({g.name: (g.curve, g.size) for g in self.groups if g.curve})

    def __str__(self) -> str:
        rows: list[Row] = []
        for group in self.groups:
            rises = [group.rise(share) for share in SHARES]
            numbers = ["" if rise is None else shown_loss(rise) for rise in rises]
            rows.append(([group.layers or (group.name,)], [f"{group.size}", *numbers], group.note))
        return table_text(
            "Expected rise of the loss without a part of the channels",
            ["layers"],
            ["channels", *(f"-{share:.0%}" for share in SHARES)],
            "kept because",
            rows,
            [],
            terminal_width(100),
        )


def shown_loss(rise: float) -> str:
    """An expected rise of the loss as tables show it; what is less than 1e-12 is 0."""
    return f"{rise:.2g}" if abs(rise) >= 1e-12 else "0"
