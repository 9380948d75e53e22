"""The dynamic range activation, and functions that put it into a model and take it out again.

It never prunes. Importing it lets Keras load saved models that hold the layer.
"""

from sgdap.layers.conversion import to_dra
from sgdap.layers.dynamic_range import DynamicRangeActivation
from sgdap.layers.folding import fold
from sgdap.layers.rule import dynamic_range_activation as _rule  # noqa: F401  (registers it)

__all__ = ["DynamicRangeActivation", "fold", "to_dra"]
