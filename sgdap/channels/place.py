"""Where the layer is that a rule speaks of: the one that is called, or one inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Place:
    """The place of a layer.

    Attributes:
        layer: The layer.
        names: Names of the layers on the way to it, its own the last; empty for the called one.
        entries: The entries that lead to its config in that of the called layer.
        attributes: The attributes that lead to it from the called layer.
        steps: How often each layer around it calls what is inside, for one sample.
        measured: Whether its input is that of the called layer, which statistics can read.
    """

    layer: Any
    names: tuple[str, ...] = ()
    entries: tuple[str | int, ...] = ()
    attributes: tuple[str, ...] = ()
    steps: tuple[float, ...] = ()
    measured: bool = True

    def inside(self, attribute: str, entry: str) -> Place:
        """The layer that this one holds in an attribute, its config in an entry of this one's."""
        layer = getattr(self.layer, attribute)
        return replace(
            self,
            layer=layer,
            names=(*self.names, layer.name),
            entries=(*self.entries, entry, "config"),
            attributes=(*self.attributes, attribute),
        )

    def repeated(self, steps: float) -> Place:
        """The same layer, called at each of some steps."""
        return replace(self, steps=(*self.steps, steps))

    def inside_model(self, layer: Any, path: str, way: Sequence[str | int]) -> Place:
        """A layer of the model that this one is; `way` leads from its config to the layer's."""
        return replace(
            self,
            layer=layer,
            names=(*self.names, path),
            entries=(*self.entries, *way),
            measured=False,
        )
