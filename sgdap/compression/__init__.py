"""Several methods one after another: stages, recipes, a report."""

from sgdap.compression.compress import Compressed, compress
from sgdap.compression.recipes import load_recipe, save_recipe
from sgdap.compression.report import CompressionReport
from sgdap.compression.stages import (
    Depth,
    Distill,
    Export,
    Grow,
    Pack,
    Prune,
    Quantize,
    Sparsify,
    Stage,
)

__all__ = [
    "Compressed",
    "CompressionReport",
    "Depth",
    "Distill",
    "Export",
    "Grow",
    "Pack",
    "Prune",
    "Quantize",
    "Sparsify",
    "Stage",
    "compress",
    "load_recipe",
    "save_recipe",
]
