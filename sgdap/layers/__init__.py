"""The activation that tells which channels the network grows: the layer, into a model, out again.

Importing this package makes saved models that hold the layer loadable.
"""

from sgdap.layers.conversion import to_dra
from sgdap.layers.dynamic_range import DynamicRangeActivation
from sgdap.layers.folding import fold
from sgdap.layers.rule import dynamic_range_activation as _rule  # noqa: F401  (registers it)

__all__ = ["DynamicRangeActivation", "fold", "to_dra"]
