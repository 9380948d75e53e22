"""What sgdap knows about a model's channels and units, as tables and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap._table import Row, table_text, terminal_width
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.depth.units import RemovableUnit, removable_units
from sgdap.planning.cost import parameters_by_layer
from sgdap.planning.plan import Plan, check_is_whole, kept_mask


@dataclass(frozen=True, eq=False)
class Inspection:
    """A model's channel groups and units, to look at: `print` shows tables, `plot` a picture.

    Attributes:
        graph: The model's channels.
    """

    graph: ChannelGraph

    @cached_property
    def units(self) -> tuple[RemovableUnit, ...]:
        """The parts that can leave as a whole, with `depth=True`."""
        return removable_units(self.graph)

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

        By a plan, those that leave as a whole are drawn pale, with a dashed edge.

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

        if plan is None:
            return draw(self.graph)
        if not plan.bypassed:
            return draw(self.graph, kept_mask(self.graph, plan))
        check_is_whole(self.graph, plan)
        gone = {path for unit in plan.bypassed for path in unit.layers}
        return draw(self.graph, _kept_beside_units(self.graph, plan), gone)

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
        channels = table_text(
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
        return "\n\n".join(filter(None, [channels, self._units_text(width)]))

    def _units_text(self, width: int) -> str:
        if not self.units:
            return ""
        params = parameters_by_layer(self.graph.program)
        rows: list[Row] = []
        for unit in self.units:
            weights = sum(params[path] for path in unit.layers)
            rows.append(([[unit.name]], [unit.kind, f"{len(unit.layers)}", f"{weights:,}"], ""))
        return table_text(
            "Units that can leave as a whole (depth=True)",
            ["unit"],
            ["kind", "layers", "parameters"],
            "",
            rows,
            [],
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


def _kept_beside_units(graph: ChannelGraph, plan: Plan) -> npt.NDArray[np.bool_]:
    """A mask of the whole model's channels, True for those that stay in layers that stay."""
    kept = np.ones(graph.count, bool)
    for group in plan.groups:
        made = [graph.made[path] for path in group.layers if path in graph.made]
        for channels in (own for own in made if len(own) == group.size):
            kept[channels] = False
            kept[channels[list(group.kept)]] = True
    return kept


def _some(names: tuple[str, ...], most: int = 6) -> list[str]:
    more = [f"… ({len(names)} in all)"] if len(names) > most else []
    return [*names[:most], *more]
