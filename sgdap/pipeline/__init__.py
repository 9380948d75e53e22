"""Makes a plan from a model's channels and data, with one set of options.

It only calls the steps in their order; the steps themselves are in other rooms.
"""

from sgdap.pipeline.making import make_plan
from sgdap.pipeline.units import can_be_met_without_units
from sgdap.pipeline.widths import Curves, plan_from_curves

__all__ = ["Curves", "can_be_met_without_units", "make_plan", "plan_from_curves"]
