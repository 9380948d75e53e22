"""The public names and the modules that they are imported from when they are first used."""

from . import channels as channels
from . import datasets as datasets
from . import guidance as guidance
from . import layers as layers
from . import quantization as quantization
from . import statistics as statistics
from . import testing as testing
from .bridge import from_tf_keras as from_tf_keras
from .bridge import to_tf_keras as to_tf_keras
from .callback import SGDAPCallback as SGDAPCallback
from .channels import ChannelGraph as ChannelGraph
from .channels import ChannelGroup as ChannelGroup
from .channels import channel_graph as channel_graph
from .channels import register_rule as register_rule
from .compression import Compressed as Compressed
from .compression import CompressionReport as CompressionReport
from .compression import Depth as Depth
from .compression import Distill as Distill
from .compression import Export as Export
from .compression import Grow as Grow
from .compression import Pack as Pack
from .compression import Prune as Prune
from .compression import Quantize as Quantize
from .compression import Sparsify as Sparsify
from .compression import compress as compress
from .compression import load_recipe as load_recipe
from .depth import RemovableUnit as RemovableUnit
from .distillation import DistillationCallback as DistillationCallback
from .distillation import distill as distill
from .exporting import ExportReport as ExportReport
from .exporting import export as export
from .exporting import pack as pack
from .exporting import unpack as unpack
from .guidance import ActivationGuidance as ActivationGuidance
from .guidance import BatchNormScaleGuidance as BatchNormScaleGuidance
from .guidance import CorrelationGuidance as CorrelationGuidance
from .guidance import FPGMGuidance as FPGMGuidance
from .guidance import GrowthGuidance as GrowthGuidance
from .guidance import Guidance as Guidance
from .guidance import LassoGuidance as LassoGuidance
from .guidance import MagnitudeGuidance as MagnitudeGuidance
from .guidance import RandomGuidance as RandomGuidance
from .guidance import SecondOrderGuidance as SecondOrderGuidance
from .guidance import TaylorGuidance as TaylorGuidance
from .guidance import register_guidance as register_guidance
from .layers import fold as fold
from .model.functional import functional as functional
from .one_shot import apply as apply
from .one_shot import plan as plan
from .planning import Budget as Budget
from .planning import Plan as Plan
from .planning import Sensitivity as Sensitivity
from .planning import plan_removal as plan_removal
from .quantization import quantize as quantize
from .quantization_callback import QuantizationCallback as QuantizationCallback
from .report import Inspection as Inspection
from .report import Profile as Profile
from .report import inspect as inspect
from .report import profile as profile
from .sparsity import sparsify as sparsify
from .sparsity_callback import SparsityCallback as SparsityCallback
from .statistics import ActivationStatistics as ActivationStatistics
from .statistics import CalibrationStatistics as CalibrationStatistics
from .statistics import activation_statistics as activation_statistics
from .statistics import collect_statistics as collect_statistics
from .surgery import remove as remove
from .training.guard import Round as Round
from .training.guard import SparsityRound as SparsityRound
from .training.schedule import Adaptive as Adaptive
from .training.schedule import Cubic as Cubic
from .training.schedule import Geometric as Geometric
from .training.schedule import Linear as Linear
from .training.schedule import OneShot as OneShot
from .training.schedule import Schedule as Schedule
from .training.summary import RunSummary as RunSummary
from .training.summary import SparsitySummary as SparsitySummary

__all__ = [
    "ActivationGuidance",
    "ActivationStatistics",
    "Adaptive",
    "BatchNormScaleGuidance",
    "Budget",
    "CalibrationStatistics",
    "ChannelGraph",
    "ChannelGroup",
    "Compressed",
    "CompressionReport",
    "CorrelationGuidance",
    "Cubic",
    "Depth",
    "Distill",
    "DistillationCallback",
    "Export",
    "ExportReport",
    "FPGMGuidance",
    "Geometric",
    "Grow",
    "GrowthGuidance",
    "Guidance",
    "Inspection",
    "LassoGuidance",
    "Linear",
    "MagnitudeGuidance",
    "OneShot",
    "Pack",
    "Plan",
    "Profile",
    "Prune",
    "QuantizationCallback",
    "Quantize",
    "RandomGuidance",
    "RemovableUnit",
    "Round",
    "RunSummary",
    "SGDAPCallback",
    "Schedule",
    "SecondOrderGuidance",
    "Sensitivity",
    "Sparsify",
    "SparsityCallback",
    "SparsityRound",
    "SparsitySummary",
    "TaylorGuidance",
    "activation_statistics",
    "apply",
    "channel_graph",
    "channels",
    "collect_statistics",
    "compress",
    "datasets",
    "distill",
    "export",
    "fold",
    "from_tf_keras",
    "functional",
    "guidance",
    "inspect",
    "layers",
    "load_recipe",
    "pack",
    "plan",
    "plan_removal",
    "profile",
    "quantization",
    "quantize",
    "register_guidance",
    "register_rule",
    "remove",
    "sparsify",
    "statistics",
    "testing",
    "to_tf_keras",
    "unpack",
]
