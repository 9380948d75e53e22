"""A student learns from what a teacher answers; nothing here removes channels."""

from sgdap.distillation.callback import DistillationCallback

__all__ = ["DistillationCallback"]
