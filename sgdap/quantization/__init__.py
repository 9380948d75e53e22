"""Few bits for each weight: schemes, lattices, and rounding that keeps what a layer computes."""

from sgdap.quantization.base import Quantized, Scheme
from sgdap.quantization.one_shot import quantize
from sgdap.quantization.pairs import QAM, Pairs
from sgdap.quantization.schemes import (
    PCM,
    Affine,
    ALaw,
    Binary,
    Codebook,
    MuLaw,
    Ternary,
    get_scheme,
)

__all__ = [
    "PCM",
    "QAM",
    "ALaw",
    "Affine",
    "Binary",
    "Codebook",
    "MuLaw",
    "Pairs",
    "Quantized",
    "Scheme",
    "Ternary",
    "get_scheme",
    "quantize",
]
