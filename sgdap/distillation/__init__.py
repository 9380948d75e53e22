"""A student learns from what a teacher answers; nothing here removes channels."""

from sgdap.distillation.callback import DistillationCallback
from sgdap.distillation.finish import distill

__all__ = ["DistillationCallback", "distill"]
