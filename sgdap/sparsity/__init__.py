"""Zeros in kernels: which single weights leave, and what the others become."""

from sgdap.sparsity.one_shot import sparsify

__all__ = ["sparsify"]
