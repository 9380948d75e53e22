"""From error curves and a budget to a plan: costs, allocation of widths, schedule."""

from sgdap.planning.budget import Budget
from sgdap.planning.plan import GroupPlan, Plan

__all__ = ["Budget", "GroupPlan", "Plan"]
