"""Where the layer is that a rule speaks of: the one that is called, or one inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Subject:
    """The layer that a rule speaks of.

    Attributes:
        layer: The layer.
        names: Names of the layers on the way to it, its own the last; empty for the called one.
        entries: The entries that lead to its config in that of the called layer.
        steps: How often each layer around it calls what is inside, for one sample.
        measured: Whether its input is that of the called layer, which statistics can read.
    """

    layer: Any
    names: tuple[str, ...] = ()
    entries: tuple[str | int, ...] = ()
    steps: tuple[float, ...] = ()
    measured: bool = True

    def inside(
        self, layer: Any, name: str, way: Sequence[str | int], steps: Sequence[float] = ()
    ) -> Subject:
        """A layer that this one holds.

        Args:
            layer: The layer.
            name: Its name in this one.
            way: The entries that lead from this one's config to the layer's.
            steps: How often this one calls it for one sample, where that is once a step.
        """
        return replace(
            self,
            layer=layer,
            names=(*self.names, name),
            entries=(*self.entries, *way),
            steps=(*self.steps, *steps),
        )
