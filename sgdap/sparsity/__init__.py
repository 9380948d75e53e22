"""Zeros in kernels: which single weights leave, and what the others become."""
