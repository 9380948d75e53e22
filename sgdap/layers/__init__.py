"""Activations that are put into a model and taken out again: dynamic range and hard ones.

It never prunes. Importing it lets Keras load saved models that hold the layer.
"""

from sgdap.layers.conversion import to_dra
from sgdap.layers.dynamic_range import DynamicRangeActivation
from sgdap.layers.folding import fold
from sgdap.layers.hard import Hardening, to_hard
from sgdap.layers.rule import dynamic_range_activation as _rule  # noqa: F401  (registers it)

__all__ = ["DynamicRangeActivation", "Hardening", "fold", "to_dra", "to_hard"]
