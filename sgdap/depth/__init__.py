"""Depth: the parts of a model that can leave as a whole, and the model without them."""

from sgdap.depth.shallower import Bypass, Shallower, shallower
from sgdap.depth.units import RemovableUnit, removable_units

__all__ = ["Bypass", "RemovableUnit", "Shallower", "removable_units", "shallower"]
