"""Which channels of a model are tied together: calls, rules per layer class, channel groups."""

from sgdap.graph.channels import Symbol
from sgdap.graph.groups import ChannelGraph, ChannelGroup, channel_graph
from sgdap.graph.registry import register_rule
from sgdap.graph.rulecall import RuleCall

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "RuleCall",
    "Symbol",
    "channel_graph",
    "register_rule",
]
