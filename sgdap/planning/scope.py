"""The part of a model that may shrink; it decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.depth.units import removable_units
from sgdap.planning.options import PruningOptions
from sgdap.planning.widths import WidthRules, prunable_groups, width_rules


@dataclass(frozen=True, eq=False)
class Scope:
    """The part of a model that may shrink.

    Attributes:
        graph: The model's channels.
        groups: The groups that may shrink.
        rules: The widths that these groups may have.
    """

    graph: ChannelGraph
    groups: Sequence[ChannelGroup]
    rules: WidthRules

    def moved_to(self, graph: ChannelGraph) -> Scope:
        """The scope with the same groups, after the model's widths changed.

        Args:
            graph: The model's channels as they are now.
        """
        owners = {path: group.name for group in self.groups for path in group.producers}
        groups: list[ChannelGroup] = []
        fixed: dict[str, int] = {}
        for group in graph.groups:
            known = [owners[path] for path in group.producers if path in owners]
            if group.prunable and known:
                groups.append(group)
                if known[0] in self.rules.fixed:
                    fixed[group.name] = self.rules.fixed[known[0]]
        rules = replace(self.rules, fixed=fixed)
        return replace(self, graph=graph, groups=groups, rules=rules)


def pruning_scope(graph: ChannelGraph, options: PruningOptions) -> Scope:
    """Finds the groups of a model that may shrink, and the widths they may have.

    Args:
        graph: The model's channels.
        options: The layers and widths that are allowed, and the criterion.

    Raises:
        ValueError: A name matches no layer, no group can shrink, or the model lacks what the
            criterion needs.
    """
    shallower_too = isinstance(options.depth, float) and bool(removable_units(graph))
    groups = prunable_groups(graph, options.layers, depth=shallower_too)
    options.criterion.check(graph, groups)
    rules = width_rules(groups, options.min_channels, options.round_to, options.overrides)
    return Scope(graph, groups, rules)
