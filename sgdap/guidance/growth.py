"""The criterion that goes by how much each channel's activation grew in training."""

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
    Within a group, channels leave in the order of their rates, the smallest first. How many leave
    of each group is settled by the expected loss, as for every criterion.

    Args:
        refinement: How freely the order may differ from that of the rates. At each step this share
            of the channels that are left, those that grew least, are candidates, and the one leaves
            that costs the next layers least. 0: the order is that of the rates. It has no effect
            with `reconstruction=False`.

    Raises:
        ValueError: `refinement` is no number between 0 and 1.
    """

    name: ClassVar[str] = "growth"
    looks_at_data: ClassVar[bool] = False

    def __init__(self, refinement: float = 0.0) -> None:
        check_share("refinement", refinement)
        self.refinement = refinement

    def check(self, graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> None:
        """Checks that each group has growth rates.

        Raises:
            ValueError: A group has none.
        """
        without = [group.name for group in groups if not growth_rates(graph, group)]
        if without:
            raise _no_growth_rate(without, graph.program.model.name)

    def scores(self, data: GroupData) -> Array:
        """The growth rate |α| of each channel, summed over its activations, `(size,)`.

        Raises:
            ValueError: The group has no such activation.
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
    """The growth rates |α| along a group's channels.

    They are read from each layer that has a variable `growth_rate` along these channels. A channel
    that has several entries there (behind a Flatten, say) counts with their sum.

    Args:
        graph: The model's channels.
        group: The group.

    Returns:
        The rates of each such layer, `(size,)`; empty where there is none.
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
