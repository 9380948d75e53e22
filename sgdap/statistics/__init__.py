"""One pass over calibration data: moments of every consumer's input, activation statistics."""

from sgdap.statistics.activation import ActivationStatistics, activation_statistics
from sgdap.statistics.collect import CalibrationStatistics, ConsumerStatistics, collect_statistics
from sgdap.statistics.moments import Moments, Powers
from sgdap.statistics.workers import merge_across_workers

__all__ = [
    "ActivationStatistics",
    "CalibrationStatistics",
    "ConsumerStatistics",
    "Moments",
    "Powers",
    "activation_statistics",
    "collect_statistics",
    "merge_across_workers",
]
