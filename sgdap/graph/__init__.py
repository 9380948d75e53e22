"""Which channels of a model are tied together: calls, rules per layer class, channel groups."""

from sgdap.graph.channels import Symbol
from sgdap.graph.groups import ChannelGraph, ChannelGroup, channel_graph
from sgdap.graph.registry import RuleCall, register_rule

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "RuleCall",
    "Symbol",
    "channel_graph",
    "register_rule",
]
