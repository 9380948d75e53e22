"""How many bits the weights of each kernel get, by the expected loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sgdap._arguments import shown
from sgdap.channels.groups import ChannelGraph
from sgdap.planning.budget import Budget
from sgdap.quantization.kernels import QuantizedKernel
from sgdap.quantization.placing import placed
from sgdap.quantization.schemes import Affine
from sgdap.weights.curvature import Curvature

BITS = tuple(range(8, 1, -1))
"""Bits of a weight that there are to choose from."""


def bytes_for_kernels(
    model: Any, kernels: Sequence[QuantizedKernel], budget: Budget, overrides: Any
) -> float:
    """The bytes that a budget leaves for the kernels.

    Args:
        model: The model.
        kernels: The kernels that are quantized; all other variables stay as they are.
        budget: A budget of bytes.
        overrides: What the user set for single layers.

    Raises:
        ValueError: It is one of something else, an override names a scheme, or two bits for each
            weight are too many.
    """
    limits = budget.limits()
    if set(limits) != {"bytes"} or budget.latency is not None:
        raise ValueError(
            "Fewer bits save bytes, and neither parameters nor FLOPs. "
            f"Received: {budget}. Pass sgdap.Budget(bytes=…)."
        )
    if any(value is not None for value in (overrides or {}).values()):
        raise ValueError(
            "A budget chooses the bits of all kernels, so overrides may only leave some as they "
            f"are, with None. Received: overrides={shown(overrides)}"
        )
    sizes = [math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in model.weights]
    counts = [math.prod(v.shape) for v in model.weights]
    target = float(budget.targets(np.array([sum(counts), 0.0, sum(sizes)]))[2])
    own = sum(math.prod(k.shape) * np.dtype(k.variable.dtype).itemsize for k in kernels)
    left = target - (sum(sizes) - own)
    least = sum(replace(k, scheme=Affine(bits=BITS[-1])).bits for k in kernels) / 8
    if left < least:
        whole = sum(sizes) - own + least
        raise ValueError(
            f"{budget} can't be met: with {BITS[-1]} bits for each weight the model takes "
            f"{math.ceil(whole):,} bytes, {whole / sum(sizes):.3g} of what it has. Raise the "
            "budget, or make the model slim or sparse first."
        )
    return float(left)


def with_bits(
    graph: ChannelGraph,
    kernels: Sequence[QuantizedKernel],
    known: Mapping[str, Sequence[Curvature]],
    limit: float,
) -> tuple[QuantizedKernel, ...]:
    """Gives each kernel as many bits as make the expected loss least.

    The curve of a kernel is the expected loss against its bytes, each point with compensation. From
    the most bits on, the kernel goes down next whose loss rises least for each byte, along the
    lower convex hull of its curve.

    Args:
        graph: The channels of the model that has the kernels.
        kernels: The kernels.
        known: Their curvatures by path.
        limit: Bytes for all of them together.

    Returns:
        The kernels with `Affine` schemes.
    """
    steps: list[tuple[float, int, int]] = []
    choices = [[replace(k, scheme=Affine(bits=bits)) for bits in BITS] for k in kernels]
    for number, (kernel, own) in enumerate(zip(kernels, choices, strict=True)):
        losses = [_loss(graph, k, known[kernel.path]) for k in own]
        steps += [(slope, number, end) for slope, end in _hull([k.bits for k in own], losses)]
    chosen = [0] * len(kernels)
    for _, number, end in sorted(steps):
        if sum(own[i].bits for own, i in zip(choices, chosen, strict=True)) <= 8 * limit:
            break
        chosen[number] = end
    return tuple(own[i] for own, i in zip(choices, chosen, strict=True))


def _loss(graph: ChannelGraph, kernel: QuantizedKernel, known: Sequence[Curvature]) -> float:
    """The expected rise of the loss with a kernel on its lattice."""
    made, _ = placed(graph, kernel, known)
    apart = kernel.layout.matrices(made.value - np.asarray(kernel.variable.numpy(), np.float64))
    total = 0.0
    for own, change in zip(known, apart, strict=True):
        if own.second is None or own.powers is None:
            total += float((own.each * change**2).sum()) / 2
        else:
            total += float(np.einsum("io,io,o->", change, own.second @ change, own.powers)) / 2
    return total


def _hull(bits: Sequence[int], losses: Sequence[float]) -> list[tuple[float, int]]:
    """The steps along the lower convex hull: the rise of the loss for each bit, and where to."""
    found, at = [], 0
    while at < len(bits) - 1:
        slopes = [
            (max(losses[i] - losses[at], 0.0) / (bits[at] - bits[i]), -i)
            for i in range(at + 1, len(bits))
        ]
        slope, end = min(slopes)
        at = -end
        found.append((slope, at))
    return found
