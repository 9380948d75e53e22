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

    def inside(self, attribute: str, entry: str) -> Subject:
        """The layer that this one holds in an attribute, its config in an entry of this one's."""
        layer = getattr(self.layer, attribute)
        return replace(
            self,
            layer=layer,
            names=(*self.names, layer.name),
            entries=(*self.entries, entry, "config"),
        )

    def repeated(self, steps: float) -> Subject:
        """The same layer, called at each of some steps."""
        return replace(self, steps=(*self.steps, steps))

    def inside_model(self, layer: Any, path: str, way: Sequence[str | int]) -> Subject:
        """A layer of the model that this one is; `way` leads from its config to the layer's."""
        return replace(
            self,
            layer=layer,
            names=(*self.names, path),
            entries=(*self.entries, *way),
            measured=False,
        )
