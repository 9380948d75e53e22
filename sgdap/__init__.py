"""Makes trained Keras networks physically smaller while they train.

Most people need one class, `SGDAPCallback`, and `Budget`. The single steps are here too:
`channel_graph` → `plan` → `apply`, and `profile` to see what it brought.
"""

from sgdap import datasets
from sgdap.callback import Round, SGDAPCallback, Widths
from sgdap.graph import ChannelGraph, ChannelGroup, channel_graph, register_rule
from sgdap.guidance import (
    ActivationGuidance,
    CorrelationGuidance,
    Guidance,
    LassoGuidance,
    MagnitudeGuidance,
    RandomGuidance,
    SecondOrderGuidance,
    register_guidance,
)
from sgdap.planning import Budget, Plan, plan
from sgdap.planning.schedule import Schedule
from sgdap.report import Inspection, Profile, inspect, profile
from sgdap.statistics import (
    ActivationStatistics,
    CalibrationStatistics,
    activation_statistics,
    collect_statistics,
)
from sgdap.surgery import apply

__version__ = "0.1.0"

__all__ = [
    "ActivationGuidance",
    "ActivationStatistics",
    "Budget",
    "CalibrationStatistics",
    "ChannelGraph",
    "ChannelGroup",
    "CorrelationGuidance",
    "Guidance",
    "Inspection",
    "LassoGuidance",
    "MagnitudeGuidance",
    "Plan",
    "Profile",
    "RandomGuidance",
    "Round",
    "SGDAPCallback",
    "Schedule",
    "SecondOrderGuidance",
    "Widths",
    "activation_statistics",
    "apply",
    "channel_graph",
    "collect_statistics",
    "datasets",
    "inspect",
    "plan",
    "profile",
    "register_guidance",
    "register_rule",
]
