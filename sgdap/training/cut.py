"""What a round that took channels out did to the variables that are left; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import sliced, variable_of, variable_slices
from sgdap.planning.bypassed import bypasses
from sgdap.planning.plan import Plan, kept_mask
from sgdap.weights.curvature import Calibration

Key = tuple[str, int]
"""The path of a layer and the number of a variable in it."""


@dataclass(frozen=True, eq=False)
class Cut:
    """How variables were sliced when channels left.

    Attributes:
        layers: The paths of the layers that are left.
        mapped: The paths of those whose kernels took the linear map of what left before them.
        slices: For variables that shrank, the indices that stay along each axis.
        unfitted: The variables that were refitted, as they would be without.
        data: The calibration inputs of the round.
        reading: How they are read.
    """

    layers: frozenset[str]
    mapped: frozenset[str]
    slices: Mapping[Key, list[npt.NDArray[np.int64] | None]]
    unfitted: Mapping[Key, npt.NDArray[Any]]
    data: Any
    reading: Calibration

    def keeps(self, key: Key) -> bool:
        """Whether a variable is there still, and is made of the one that it was."""
        return key[0] in self.layers - self.mapped

    def of(self, array: npt.NDArray[Any], key: Key) -> npt.NDArray[Any]:
        """What is left of an array that has an entry for each one of a variable."""
        return sliced(array, self.slices.get(key, []))

    @classmethod
    def by_plan(
        cls,
        graph: ChannelGraph,
        plan: Plan,
        data: Any,
        reading: Calibration,
        mapped: Iterable[str] = (),
    ) -> Cut:
        """The cut that a plan will make.

        Args:
            graph: The channels of the model as it is before, without what leaves as a whole.
            plan: The plan.
            data: Calibration inputs.
            reading: How they are read.
            mapped: The paths of the layers whose kernels took a linear map.
        """
        kept = kept_mask(graph, plan)
        slices = variable_slices(graph, kept)
        names = (name.rpartition(":") for name in plan.weights)
        refitted = [(path, int(number)) for path, _, number in names]
        unfitted = {
            key: sliced(variable_of(graph.program, key).numpy(), slices.get(key, []))
            for key in refitted
        }
        for scale in graph.scales:
            if (key := (scale.path, scale.variable)) in unfitted:
                factor = kept[scale.channels].mean() ** scale.power
                unfitted[key] = unfitted[key] * np.asarray(factor, unfitted[key].dtype)
        left = frozenset(graph.program.layers())
        return cls(left, frozenset(mapped), slices, unfitted, data, reading)


def layers_with_maps(graph: ChannelGraph, plan: Plan) -> frozenset[str]:
    """The paths of the layers whose kernels take a linear map of what leaves as a whole.

    Args:
        graph: The channels of the model as it is before.
        plan: The plan.
    """
    units = [own.unit for own in bypasses(graph, plan.bypassed)]
    return frozenset(graph.program.calls[number].path for own in units for number in own.readers)
