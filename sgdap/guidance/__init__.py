"""Which channels does the next layer need: criteria and error curves."""

from sgdap.guidance.base import GroupData, Guidance, get_guidance, register_guidance
from sgdap.guidance.criteria import (
    ActivationGuidance,
    BatchNormScaleGuidance,
    CorrelationGuidance,
    FPGMGuidance,
    LassoGuidance,
    MagnitudeGuidance,
    RandomGuidance,
    SecondOrderGuidance,
    TaylorGuidance,
)
from sgdap.guidance.elimination import ErrorCurve, eliminate
from sgdap.guidance.growth import GrowthGuidance
from sgdap.guidance.lasso import LassoFit, Quadratic, lasso_cv
from sgdap.guidance.score import score_groups

__all__ = [
    "ActivationGuidance",
    "CorrelationGuidance",
    "ErrorCurve",
    "GroupData",
    "GrowthGuidance",
    "Guidance",
    "LassoFit",
    "LassoGuidance",
    "MagnitudeGuidance",
    "Quadratic",
    "RandomGuidance",
    "TaylorGuidance",
    "FPGMGuidance",
    "BatchNormScaleGuidance",
    "SecondOrderGuidance",
    "eliminate",
    "get_guidance",
    "lasso_cv",
    "register_guidance",
    "score_groups",
]
