"""From error curves and a budget to a plan: costs, allocation of widths, schedule."""

from sgdap.planning.budget import Budget
from sgdap.planning.plan import GroupPlan, Plan
from sgdap.planning.planner import plan_from_statistics

__all__ = ["Budget", "GroupPlan", "Plan", "plan_from_statistics"]
