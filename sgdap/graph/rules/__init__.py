"""One rule per layer class, in files by family; importing this package registers them all."""

from sgdap.graph.rules import (
    activation,
    convolution,
    dense,
    merging,
    normalization,
    operations,
    sequence,
    shape,
)

__all__ = [
    "activation",
    "convolution",
    "dense",
    "merging",
    "normalization",
    "operations",
    "sequence",
    "shape",
]
