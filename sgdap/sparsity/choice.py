"""The choice of single weights that leave, by the scores of all kernels together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.sparsity.kernels import SparseKernel
from sgdap.sparsity.patterns import Numbers, zeros_of_share

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def choose(
    scores: Mapping[str, npt.NDArray[Any]],
    kernels: Sequence[SparseKernel],
    sparsity: float | None = None,
    *,
    zeros: int | None = None,
    threshold: float | None = None,
    allocation: str = "global",
) -> dict[str, Mask]:
    """Chooses the weights that stay: those whose leaving costs most.

    One of `sparsity`, `zeros` and `threshold` says how many leave, at least: where a pattern cuts
    weights into blocks, or a share is no whole number of weights, it is the next larger number. A
    kernel of a share of its own is chosen from apart; `sparsity` is that of the others.

    Args:
        scores: For each kernel the expected rise of the loss if a weight alone leaves, in the
            kernel's shape.
        kernels: These kernels, with their patterns.
        sparsity: The share of zeros.
        zeros: The number of zeros in all kernels together.
        threshold: Weights of a score below this leave; of a block, of the mean score.
        allocation: `"global"`: the least scores of all kernels; `"uniform"`: the same share of each
            kernel.

    Returns:
        A mask of each kernel, True for weights that stay.
    """
    masks: dict[str, Mask] = {}
    for kernel in kernels:
        if kernel.share is not None:
            size = scores[kernel.path].size
            masks |= _least(scores, [kernel], zeros_of_share(kernel.share, size))
    common = [kernel for kernel in kernels if kernel.share is None]
    if not common:
        return masks
    if threshold is not None:
        return masks | {k.path: _above(scores[k.path], k, threshold) for k in common}
    total = sum(scores[kernel.path].size for kernel in common)
    if zeros is not None:
        zeros = max(zeros - sum(int((~mask).sum()) for mask in masks.values()), 0)
    parts = [common] if allocation == "global" else [[kernel] for kernel in common]
    for part in parts:
        size = sum(scores[kernel.path].size for kernel in part)
        own = zeros_of_share(sparsity or 0.0, size) if zeros is None else -(-zeros * size // total)
        masks |= _least(scores, part, own)
    return masks


def warn_of_empty(kernels: Sequence[SparseKernel], masks: Mapping[str, Mask]) -> None:
    """Warns of kernels of which no weight stays.

    Args:
        kernels: The kernels; biases, which read nothing, are not named.
        masks: Which weights stay, by path.
    """
    empty = [k.path for k in kernels if k.layout.reduction and not masks[k.path].any()]
    if empty:
        warnings.warn(
            f"All weights of {', '.join(map(repr, empty))} are zero, so the output no longer "
            "depends on what is read there. Ask for fewer zeros, for allocation='uniform', or for "
            f"a share of its own: overrides={{'{empty[0]}': 0.9}}.",
            stacklevel=4,
        )


def _least(
    scores: Mapping[str, npt.NDArray[Any]], kernels: Sequence[SparseKernel], zeros: int
) -> dict[str, Mask]:
    """The masks with so many zeros at least, of the least scores, all kernels together."""
    units = [_units(scores[kernel.path], kernel) for kernel in kernels]
    sizes = [np.bincount(numbers.ravel()) for numbers, _, _ in units]
    size = np.concatenate(sizes)
    score, turn = (np.concatenate([own[i] for own in units]) for i in (1, 2))
    order = np.lexsort((score / size, turn))
    leave = np.zeros(len(order), bool)
    sizes_in_turn = size[order]
    leave[order[np.cumsum(sizes_in_turn) - sizes_in_turn < zeros]] = True
    masks, start = {}, 0
    for kernel, (numbers, _, _), own in zip(kernels, units, sizes, strict=True):
        gone = leave[start : start + len(own)][numbers]
        masks[kernel.path] = kernel.layout.kernel(~gone, kernel.shape)
        start += len(own)
    return masks


def _above(scores: npt.NDArray[Any], kernel: SparseKernel, threshold: float) -> Mask:
    numbers, sums, _ = _units(scores, kernel)
    stays = sums / np.bincount(numbers.ravel()) >= threshold
    mask: Mask = kernel.layout.kernel(stays[numbers], kernel.shape)
    return mask


def _units(
    scores: npt.NDArray[Any], kernel: SparseKernel
) -> tuple[Numbers, Array, npt.NDArray[np.int8]]:
    return kernel.pattern.units(kernel.layout.matrices(np.asarray(scores, np.float64)))
