"""How many zeros are asked for: a share, a budget or a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdap._arguments import is_number, shown
from sgdap.planning.budget import Budget
from sgdap.sparsity.kernels import SparseKernel
from sgdap.sparsity.patterns import Pattern, zeros_of_share


@dataclass(frozen=True)
class Target:
    """What is asked for; one of the two is not None.

    Attributes:
        zeros: The number of zeros in all kernels together.
        threshold: The least score of a weight that stays.
    """

    zeros: int | None
    threshold: float | None = None


def sparsity_target(
    model: Any,
    kernels: Sequence[SparseKernel],
    pattern: Pattern,
    sparsity: float | Budget | None,
    threshold: float | None,
) -> Target:
    """Reads how many zeros are asked for.

    Args:
        model: The model.
        kernels: The kernels that may have zeros.
        pattern: The pattern of the zeros.
        sparsity: The share of zeros, or a budget.
        threshold: The least score of a weight that stays.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: It has no meaning, or can't be met.
    """
    if (sparsity is None) == (threshold is None):
        raise ValueError(
            "Pass either sparsity or threshold=…, with sparsity=None. Received: "
            f"sparsity={shown(sparsity)}, threshold={shown(threshold)}"
        )
    if threshold is not None:
        if not is_number(threshold):
            raise TypeError(f"threshold must be a number. Received: threshold={shown(threshold)}")
        if threshold < 0:
            raise ValueError(
                "threshold must not be negative: no score is below zero. "
                f"Received: threshold={shown(threshold)}"
            )
        if pattern.least:
            raise ValueError(
                f"pattern='{pattern}' says how many weights leave of each part, and a threshold "
                f"does not. Pass sparsity={pattern.least:g}."
            )
        return Target(None, float(threshold))
    common = sum(math.prod(k.shape) for k in kernels if k.share is None)
    own = sum(zeros_of_share(k.share or 0.0, math.prod(k.shape)) for k in kernels)
    if isinstance(sparsity, Budget):
        zeros = _zeros_for(model, kernels, sparsity, own + common)
    elif sparsity is None or not is_number(sparsity):
        raise TypeError(
            "sparsity must be a share of zeros or a sgdap.Budget. "
            f"Received: sparsity={shown(sparsity)}"
        )
    elif not 0 <= float(sparsity) < 1:
        raise ValueError(
            "sparsity must be a share of zeros, from 0 up to below 1. "
            f"Received: sparsity={shown(sparsity)}"
        )
    else:
        zeros = own + zeros_of_share(float(sparsity), common)
    patterned = [k for k in kernels if k.pattern.least]
    least = sum(round(k.pattern.least * math.prod(k.shape)) for k in patterned)
    low = [k for k in patterned if k.share is not None and k.share < k.pattern.least - 1e-9]
    if zeros < least or low:
        share = (
            f"overrides={{'{low[0].path}': {low[0].share:g}}}"
            if low
            else f"sparsity={shown(sparsity)}"
        )
        raise ValueError(
            f"pattern='{pattern}' has {pattern.least:.4g} of the weights zero at least. "
            f"Received: {share}. Ask for {pattern.least:g} or more."
        )
    return Target(zeros)


def _zeros_for(model: Any, kernels: Sequence[SparseKernel], budget: Budget, most: int) -> int:
    """The zeros that a budget needs, of which there may be so many at most.

    Bytes are those of weights stored as a bit for each weight of a kernel and the values that are
    not 0, of other variables as they are.
    """
    limits = budget.limits()
    if "flops" in limits or budget.latency is not None:
        raise ValueError(
            f"Zeros save no FLOPs and no time in a dense runtime. Received: {budget}. Pass "
            "Budget(params=…) or Budget(bytes=…), or make the model slim with sgdap.plan."
        )
    sizes = [np.dtype(v.dtype).itemsize for v in model.weights]
    counts = [math.prod(v.shape) for v in model.weights]
    whole = np.array([sum(counts), 0.0, sum(map(math.prod, zip(counts, sizes, strict=True)))])
    params, _, size = budget.targets(whole)
    bits = sum(math.ceil(math.prod(k.shape) / 8) for k in kernels)
    each = min(np.dtype(k.variable.dtype).itemsize for k in kernels)
    wanted = [(params, "params", whole[0], 1, whole[0])]
    wanted += [(size, "bytes", whole[2] + bits, each, whole[2])]
    zeros = 0
    for limit, name, dense, saved, all_of_it in wanted:
        needed = math.ceil((dense - limit) / saved) if math.isfinite(limit) else 0
        if needed > most:
            least = dense - saved * most
            raise ValueError(
                f"{budget} can't be met: with all {most:,} weights zero that may be, "
                f"{least:,.0f} {name} are left, {least / all_of_it:.3g} of the model's. Raise the "
                "budget, or let more layers have zeros."
            )
        zeros = max(zeros, needed)
    return zeros
