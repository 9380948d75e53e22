"""Makes trained Keras networks physically smaller while they train.

Most people need one class, `SGDAPCallback`, and `Budget`. The single steps are here too:
`channel_graph` → `plan` → `apply`, and `profile` to see what it brought.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgdap import datasets as datasets
    from sgdap import layers as layers
    from sgdap.callback import SGDAPCallback as SGDAPCallback
    from sgdap.channels import ChannelGraph as ChannelGraph
    from sgdap.channels import ChannelGroup as ChannelGroup
    from sgdap.channels import channel_graph as channel_graph
    from sgdap.channels import register_rule as register_rule
    from sgdap.guidance import ActivationGuidance as ActivationGuidance
    from sgdap.guidance import BatchNormScaleGuidance as BatchNormScaleGuidance
    from sgdap.guidance import CorrelationGuidance as CorrelationGuidance
    from sgdap.guidance import FPGMGuidance as FPGMGuidance
    from sgdap.guidance import GrowthGuidance as GrowthGuidance
    from sgdap.guidance import Guidance as Guidance
    from sgdap.guidance import LassoGuidance as LassoGuidance
    from sgdap.guidance import MagnitudeGuidance as MagnitudeGuidance
    from sgdap.guidance import RandomGuidance as RandomGuidance
    from sgdap.guidance import SecondOrderGuidance as SecondOrderGuidance
    from sgdap.guidance import TaylorGuidance as TaylorGuidance
    from sgdap.guidance import register_guidance as register_guidance
    from sgdap.layers import fold as fold
    from sgdap.model.functional import functional as functional
    from sgdap.one_shot import plan as plan
    from sgdap.planning import Budget as Budget
    from sgdap.planning import Plan as Plan
    from sgdap.report import Inspection as Inspection
    from sgdap.report import Profile as Profile
    from sgdap.report import inspect as inspect
    from sgdap.report import profile as profile  # type: ignore[no-redef]  # its module's name too
    from sgdap.statistics import ActivationStatistics as ActivationStatistics
    from sgdap.statistics import CalibrationStatistics as CalibrationStatistics
    from sgdap.statistics import activation_statistics as activation_statistics
    from sgdap.statistics import collect_statistics as collect_statistics
    from sgdap.surgery import apply as apply  # type: ignore[no-redef]  # its module's name too
    from sgdap.training.guard import Round as Round
    from sgdap.training.log import Widths as Widths
    from sgdap.training.schedule import Adaptive as Adaptive
    from sgdap.training.schedule import Cubic as Cubic
    from sgdap.training.schedule import Geometric as Geometric
    from sgdap.training.schedule import Linear as Linear
    from sgdap.training.schedule import OneShot as OneShot
    from sgdap.training.schedule import Schedule as Schedule

__version__ = "0.1.0"

# Imported when they are first used: TensorFlow takes seconds, `sgdap --help` need not wait.
_HOMES = {
    "callback": ["SGDAPCallback"],
    "channels": ["ChannelGraph", "ChannelGroup", "channel_graph", "register_rule"],
    "guidance": [
        "ActivationGuidance",
        "BatchNormScaleGuidance",
        "CorrelationGuidance",
        "FPGMGuidance",
        "GrowthGuidance",
        "Guidance",
        "LassoGuidance",
        "MagnitudeGuidance",
        "RandomGuidance",
        "SecondOrderGuidance",
        "TaylorGuidance",
        "register_guidance",
    ],
    "layers": ["fold"],
    "one_shot": ["plan"],
    "planning": ["Budget", "Plan"],
    "training.schedule": ["Adaptive", "Cubic", "Geometric", "Linear", "OneShot", "Schedule"],
    "report": ["Inspection", "Profile", "inspect", "profile"],
    "statistics": [
        "ActivationStatistics",
        "CalibrationStatistics",
        "activation_statistics",
        "collect_statistics",
    ],
    "model.functional": ["functional"],
    "surgery": ["apply"],
    "training.guard": ["Round"],
    "training.log": ["Widths"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

_MODULES = ("datasets", "layers")

__all__ = [*sorted(_HOME_OF), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"sgdap.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sgdap' has no attribute '{name}'")
    found = getattr(import_module(f"sgdap.{_HOME_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
