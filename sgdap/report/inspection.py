"""What sgdap knows about a model's channels, as a table and a picture; it changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sgdap._table import Row, table_text, terminal_width
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.planning.plan import Plan, kept_mask


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

    def plot(self, plan: Plan | None = None) -> Any:
        """Draws the model's layers. Layers whose channels are tied have the same colour.

        Needs matplotlib: `pip install sgdap[plots]`.

        Args:
            plan: A plan for the model. Each layer that makes channels tells how many, and how many
                of them stay.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: The plan was made for another model.
        """
        from sgdap.report.picture import draw

        return draw(self.graph, None if plan is None else kept_mask(self.graph, plan))

    def __str__(self) -> str:
        width = terminal_width(120)
        wide = width >= 120  # else without what is told by the group's name, and the followers
        rows: list[Row] = []
        for group in self.graph.groups:
            names = [_some(group.producers or (group.name,)), _some(group.consumers)]
            if wide:
                found = (group.producers, group.followers, group.consumers)
                names = [[group.name], *map(_some, found)]
            numbers = [f"{group.size}", f"{int(group.removable.sum())}"]
            rows.append((names, numbers, "; ".join(group.reasons)))
        return table_text(
            f"Channel groups of {self.graph.program.model.name}",
            ["group", "made by", "followed by", "read by"] if wide else ["made by", "read by"],
            ["channels", "removable"],
            "kept because",
            rows,
            [
                f"{self.removable:,} of {self.channels:,} channels removable",
                *(f"{path}: {reason}" for path, reason in self.graph.kept),
            ],
            width,
        )

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


def _some(names: tuple[str, ...], most: int = 6) -> list[str]:
    more = [f"… ({len(names)} in all)"] if len(names) > most else []
    return [*names[:most], *more]
