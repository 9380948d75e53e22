"""The criterion that reads how much the network let each channel grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from sgdap import _keras
from sgdap._arguments import check_share
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.guidance.base import Array, GroupData, Guidance, register_guidance


class GrowthGuidance(Guidance):
    """The growth rate |α| of the dynamic range activations along a channel.

    Every group that may shrink needs such an activation: `sgdap.layers.to_dra(model)`, then train.
    The rates order the channels of one group; how many leave of which group is settled by what
    their loss costs, as for every criterion.

    Args:
        refinement: The share of the remaining channels, those that grew least, of which the one
            leaves that costs the next layers least, where weights are reconstructed. 0 keeps
            strictly to the growth rates.

    Raises:
        ValueError: `refinement` is no number between 0 and 1.
    """

    name: ClassVar[str] = "growth"

    def __init__(self, refinement: float = 0.0) -> None:
        check_share("refinement", refinement)
        self.refinement = refinement

    def check(self, graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> None:
        """Raises if a group has no growth rates.

        Raises:
            ValueError: One has none.
        """
        without = [group.name for group in groups if not growth_rates(graph, group)]
        if without:
            raise _no_growth_rate(without, graph.program.model.name)

    def scores(self, data: GroupData) -> Array:
        """The sum of |α| over the activations, `(size,)`.

        Raises:
            ValueError: The group has none.
        """
        if not data.growth:
            raise _no_growth_rate([data.name], "")
        scores: Array = np.sum(data.growth, axis=0)
        return scores


def _no_growth_rate(groups: Sequence[str], model: str) -> ValueError:
    names = ", ".join(f"'{name}'" for name in groups)
    where = f" of model '{model}'" if model else ""
    return ValueError(
        f"guidance='growth' needs a DynamicRangeActivation along the channels of every group. "
        f"There is none along {names}{where}. Make a model with sgdap.layers.to_dra(model) and "
        "train it, or leave these groups out with layers=[...]."
    )


def growth_rates(graph: ChannelGraph, group: ChannelGroup) -> tuple[Array, ...]:
    """The magnitude of each growth rate along a group's channels, `(size,)`.

    A growth rate is a layer's variable `growth_rate` that its rule says to lie along channels. The
    places of one channel (after a Flatten, say) are summed.
    """
    local = np.full(graph.count, -1, np.int64)
    local[group.channels] = np.arange(group.size)
    layers = graph.program.layers()
    found = []
    for axis in graph.axes:
        channels = local[axis.channels]
        layer = layers[axis.path]
        variable = _keras.layer_variables(layer)[axis.variable]
        parts = _keras.flatten_layers(layer)  # a wrapper has its variables from one of them
        grows = any(getattr(part, "growth_rate", None) is variable for part in parts)
        if not grows or (channels < 0).all():
            continue
        sums = np.zeros(group.size)
        rates = np.abs(variable.numpy())
        np.add.at(sums, channels[channels >= 0], rates[channels >= 0])
        found.append(sums)
    return tuple(found)


register_guidance(GrowthGuidance.name, GrowthGuidance)
