"""What sgdap knows about a model's channels, as a table and a picture; it changes nothing."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph


@dataclass(frozen=True, eq=False)
class Inspection:
    """A model's channel groups, to look at: `print` shows a table, `plot` draws a picture.

    Attributes:
        graph: The model's channels.
    """

    graph: ChannelGraph

    @property
    def channels(self) -> int:
        """The number of channels in all groups."""
        return sum(group.size for group in self.graph.groups)

    @property
    def removable(self) -> int:
        """The number of channels that may be removed."""
        return sum(int(group.removable.sum()) for group in self.graph.groups)

    def plot(self) -> Any:
        """Draws the model's layers. Layers whose channels are tied have the same colour.

        Needs matplotlib: `pip install sgdap[plots]`.

        Returns:
            The matplotlib figure.
        """
        from sgdap.report.picture import draw

        return draw(self.graph)

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        name = self.graph.program.model.name
        table = Table(title=f"Channel groups of {name}", title_justify="left")
        for heading in ("group", "made by", "followed by", "read by"):
            table.add_column(heading, overflow="fold")
        for heading in ("channels", "removable"):
            table.add_column(heading, justify="right")
        table.add_column("kept because", overflow="fold")
        for group in self.graph.groups:
            table.add_row(
                group.name,
                _some(group.producers),
                _some(group.followers),
                _some(group.consumers),
                f"{group.size}",
                f"{int(group.removable.sum())}",
                "; ".join(group.reasons),
            )
        out = io.StringIO()
        console = Console(file=out, width=120, color_system=None, markup=False)
        console.print(table)
        console.print(f"{self.removable:,} of {self.channels:,} channels removable")
        for path, reason in self.graph.kept:
            console.print(f"{path}: {reason}", highlight=False)
        return out.getvalue().rstrip()

    def __repr__(self) -> str:
        return (
            f"<Inspection of {self.graph.program.model.name}: {len(self.graph.groups)} groups, "
            f"{self.removable} of {self.channels} channels removable>"
        )


def inspect(model: Any) -> Inspection:
    """Shows which channels of a model are tied together and which may be removed.

    Args:
        model: A built `keras.Sequential` or functional `keras.Model`.

    Returns:
        An `Inspection`: print it, or call its `plot()`.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: The model is not built, or its graph can't be read.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden"),
        ...                           keras.layers.Dense(2, name="logits")])
        >>> sgdap.inspect(model)
        <Inspection of sequential...: 2 groups, 3 of 5 channels removable>
    """
    return Inspection(channel_graph(model))


def _some(names: tuple[str, ...], most: int = 6) -> str:
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
