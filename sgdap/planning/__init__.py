"""Turns error curves and a budget into a plan: costs, widths, FLOPs; changes no model."""

from sgdap.planning.budget import Budget
from sgdap.planning.plan import GroupPlan, Plan
from sgdap.planning.removal import plan_removal
from sgdap.planning.sensitivity import Sensitivity

__all__ = ["Budget", "GroupPlan", "Plan", "Sensitivity", "plan_removal"]
