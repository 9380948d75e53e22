"""The units that leave by a plan, as plain data."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph
from sgdap.depth.shallower import Bypass
from sgdap.depth.units import removable_units

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BypassedUnit:
    """A part of a model that leaves as a whole.

    Attributes:
        name: The path of the first of its layers that has a kernel, and of the last one where there
            are several.
        kind: `"branch"`, `"block"` or `"linear"`, as `sgdap.RemovableUnit` tells.
        layers: The paths of the layers and operations that leave.
        error: The expected rise of the loss.
        matrix: The linear map that kernels take in its place, `(channels read, channels made)`;
            None: what it reads is read as it is.
        offset: What the map adds, `(channels made,)`, or None.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    error: float
    matrix: Array | None = None
    offset: Array | None = None

    @classmethod
    def of(cls, bypass: Bypass, error: float) -> BypassedUnit:
        """The plain data of a bypass."""
        matrix, offset = (
            None if own is None else own.astype(np.float32)
            for own in (bypass.matrix, bypass.offset)
        )
        unit = bypass.unit
        return cls(unit.name, unit.kind, unit.layers, float(error), matrix, offset)

    def content(self) -> dict[str, Any]:
        """What a plan's JSON holds of it."""
        arrays = {
            name: {"shape": list(own.shape), "float32": base64.b64encode(own.tobytes()).decode()}
            for name, own in (("matrix", self.matrix), ("offset", self.offset))
            if own is not None
        }
        told = {"name": self.name, "kind": self.kind, "layers": list(self.layers)}
        return {**told, "error": self.error, **arrays}

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> BypassedUnit:
        """Reads what `content` made.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        arrays = [
            np.frombuffer(base64.b64decode(own["float32"]), "<f4").reshape(own["shape"])
            if (own := content.get(name)) is not None
            else None
            for name in ("matrix", "offset")
        ]
        layers = tuple(map(str, content["layers"]))
        told = str(content["name"]), str(content["kind"]), layers, float(content["error"])
        return cls(*told, *arrays)


def bypasses(graph: ChannelGraph, bypassed: Sequence[BypassedUnit]) -> list[Bypass]:
    """What leaves a model by a plan.

    Args:
        graph: The model's channels.
        bypassed: What the plan says.

    Raises:
        ValueError: The model has no such unit, or a map does not fit it.
    """
    units = {unit.name: unit for unit in removable_units(graph)}
    found = []
    for own in bypassed:
        unit = units.get(own.name)
        if unit is None or unit.layers != own.layers:
            raise ValueError(
                f"Model '{graph.program.model.name}' has no unit '{own.name}' that could leave as "
                "the plan says. Make a plan for this model with sgdap.plan."
            )
        shapes = graph.program.shapes
        sizes = (shapes[unit.source][-1], shapes[unit.target][-1])
        fits = own.matrix is None or (own.matrix.shape == sizes and np.isfinite(own.matrix).all())
        if bool(unit.readers) != (own.matrix is not None) or not fits:
            raise ValueError(
                f"The plan's linear map for '{own.name}' must be finite and of shape {sizes}. "
                "Make a new plan with sgdap.plan."
            )
        matrix, offset = (
            None if array is None else array.astype(np.float64)
            for array in (own.matrix, own.offset)
        )
        found.append(Bypass(unit, matrix, offset))
    return found
