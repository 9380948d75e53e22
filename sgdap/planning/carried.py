"""What is known of a whole model, told of the model without some units; it computes nothing."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.widths import WidthRules
from sgdap.statistics.collect import CalibrationStatistics

Paths = Mapping[str, str]
"""The path that each layer has in the shallower model, by that in the whole one."""


def layer_of(path: str, layers: Container[str]) -> str:
    """The layer that makes some channels, by their path: `"attention:heads"`, `"wrapper/inner"`."""
    found = path.partition(":")[0]
    while found not in layers and "/" in found:
        found = found.rpartition("/")[0]
    return found


def groups_carried(
    groups: Sequence[ChannelGroup], graph: ChannelGraph, after: ChannelGraph, paths: Paths
) -> list[tuple[ChannelGroup, ChannelGroup, str, str]]:
    """The groups that may shrink in the shallower model as they may in the whole one.

    Args:
        groups: The groups of the whole model that may shrink.
        graph: Its channels.
        after: The channels of the shallower model.
        paths: The path of each layer there.

    Returns:
        Pairs of groups of both models, with the path that a layer has in each which makes all
        their channels.
    """
    owners = {}
    for group in groups:
        for path in group.producers:
            layer = layer_of(path, paths)
            if layer in paths and len(graph.made[path]) == group.size:
                owners[paths[layer] + path[len(layer) :]] = group, path
    found = []
    for own in after.groups:
        known = [path for path in own.producers if path in owners]
        if own.prunable and known and len(after.made[known[0]]) == own.size:
            group, path = owners[known[0]]
            found.append((group, own, path, known[0]))
    return found


def curves_carried(
    curves: Mapping[str, ErrorCurve],
    pairs: Sequence[tuple[ChannelGroup, ChannelGroup, str, str]],
    graph: ChannelGraph,
    after: ChannelGraph,
) -> dict[str, ErrorCurve]:
    """The error curves of the groups of the shallower model, by name.

    A curve counts what consumers need that left, too. So it says rather too much.
    """
    found = {}
    for group, own, path, path_after in pairs:
        here = np.searchsorted(group.channels, graph.made[path])
        there = np.searchsorted(own.channels, after.made[path_after])
        moved = np.empty(group.size, np.int64)
        moved[here] = there
        curve = curves[group.name]
        order = moved[curve.order]
        stays = own.removable[order]
        if not stays.all():  # what left tied nothing that it did not tie before
            continue
        found[own.name] = replace(curve, order=order)
    return found


def rules_carried(
    rules: WidthRules, pairs: Sequence[tuple[ChannelGroup, ChannelGroup, str, str]]
) -> WidthRules:
    """The rules for widths, by the names of the groups of the shallower model."""
    fixed = {own.name: rules.fixed[g.name] for g, own, *_ in pairs if g.name in rules.fixed}
    return replace(rules, fixed=fixed)


def statistics_carried(
    statistics: CalibrationStatistics, graph: ChannelGraph, after: ChannelGraph, paths: Paths
) -> CalibrationStatistics:
    """The statistics of those places that are in the shallower model too, with as many features."""
    places = {place.path: place for place in reversed(after.places)}
    found = {}
    for path, own in statistics.consumers.items():
        layer = graph.program.calls[own.place.call].path
        if layer not in paths:
            continue
        place = places.get(path.replace(layer, paths[layer], 1))
        if place is not None and len(place.features) == len(own.place.features):
            found[place.path] = replace(own, place=place)
    return replace(statistics, consumers=found)
