"""A model's kernels as matrices: which there are, what changes of them cost, a step over all."""
