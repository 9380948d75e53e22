"""Turns error curves and a budget into a plan: costs, widths, FLOPs; changes no model."""

from sgdap.planning.budget import Budget
from sgdap.planning.plan import GroupPlan, Plan
from sgdap.planning.removal import plan_removal

__all__ = ["Budget", "GroupPlan", "Plan", "plan_removal"]
