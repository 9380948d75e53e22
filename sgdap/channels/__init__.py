"""Which channels of a model are tied together: calls, rules per layer class, channel groups."""

from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.channels.labels import Symbol
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "RuleCall",
    "Symbol",
    "channel_graph",
    "register_rule",
]
