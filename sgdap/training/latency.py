"""Times models on a batch and finds how slim they must be for a latency; changes no model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.guidance.elimination import ErrorCurve
from sgdap.model.tracing import trace
from sgdap.planning.allocation import allocate, narrowest
from sgdap.planning.budget import Budget
from sgdap.planning.cost import MEASURES, cost_model
from sgdap.planning.widths import WidthRules
from sgdap.surgery.apply import copied
from sgdap.surgery.prune import prune_in_place

Mask = npt.NDArray[np.bool_]
_FLOPS = MEASURES.index("flops")


def measure_latency(model: Any, batch_size: int = 1, repeats: int = 50) -> float:
    """Median seconds of a model for a batch, in a compiled function, after a warm-up."""
    return compare_latency([model], batch_size, repeats)[0]


def compare_latency(models: Sequence[Any], batch_size: int = 1, repeats: int = 50) -> list[float]:
    """Median seconds of each of several models for a batch, measured in turns.

    Other work on the machine slows models that take turns alike. So the ratio of their times is
    reliable even where the times are not.

    Args:
        models: Built models.
        batch_size: The number of samples in the batch.
        repeats: How often each model is timed, after a warm-up.

    Returns:
        The seconds of each model.
    """
    runs = [_timed(model, batch_size) for model in models]
    times = np.array([[run() for run in runs] for _ in range(repeats + 5)])
    return [float(median) for median in np.median(times[5:], axis=0)]


def _timed(model: Any, batch_size: int) -> Callable[[], float]:
    """A function that runs a model once on a batch of zeros and returns the seconds it took."""
    import tensorflow as tf

    program = trace(model)
    inputs = [
        tf.zeros(
            (shape[0] or batch_size, *(size or 1 for size in shape[1:])),
            program.dtypes[ref.index],
        )
        for ref in program.inputs
        for shape in [program.shapes[ref.index]]
    ]
    compiled = tf.function(lambda *x: program.run_flat(list(x)))

    def run() -> float:
        began = time.perf_counter()
        for output in compiled(*inputs):
            output.numpy()
        return time.perf_counter() - began

    return run


def slim_latency(graph: ChannelGraph, kept: Mask, batch_size: int = 1) -> float:
    """Median seconds for a batch of a slim copy of a model.

    Args:
        graph: The model's channels. The model is not changed.
        kept: A mask of the model's channels, True for those that stay, `(graph.count,)`.
        batch_size: The number of samples in the batch.
    """
    copy = copied(graph, compiled=False)
    prune_in_place(copy, kept)
    return measure_latency(copy.program.model, batch_size)


class TooSlowError(ValueError):
    """Even the narrowest model takes longer than a budget allows."""


def flops_within_latency(
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, ErrorCurve],
    rules: WidthRules,
    allocation: str,
    budget: Budget,
    seconds: float,
    tries: int = 6,
    *,
    shrink: bool = False,
) -> float:
    """The most FLOPs that a slim model may have to meet a latency limit.

    FLOPs alone do not tell the time. But if channels leave in the order of the same curves, a
    model with fewer FLOPs takes no longer. So slim copies are timed in a bisection: each time with
    the geometric mean of the FLOPs of the largest copy that is fast enough and the smallest that
    is not.

    Args:
        graph: The model's channels. The model is not changed.
        groups: The groups that may shrink.
        curves: The error curve of each group, by name.
        rules: The widths that the groups may have.
        allocation: `"global"` or `"layerwise"`.
        budget: The budget, for the batch size and for messages.
        seconds: The most seconds that a batch may take.
        tries: The number of copies to time between the whole and the narrowest one.
        shrink: Whether to take the whole model as too slow without timing it.

    Returns:
        FLOPs for one sample.

    Raises:
        TooSlowError: Even the narrowest copy takes longer.
    """
    model = cost_model(graph)

    def cost(kept: Mask) -> npt.NDArray[np.float64]:
        return model.cost(model.lengths(kept))

    full = cost(np.ones(graph.count, bool))
    everything = np.ones(graph.count, bool)
    if not shrink and slim_latency(graph, everything, budget.batch_size) <= seconds:
        return float(full[_FLOPS])
    least = narrowest(groups, model, rules)
    met, measured = cost(least)[_FLOPS], slim_latency(graph, least, budget.batch_size)
    if measured > seconds:
        raise TooSlowError(
            f"{budget} cannot be met: the narrowest model still takes {measured * 1e3:.3g} ms for "
            f"a batch of {budget.batch_size} on this machine, and {seconds * 1e3:.3g} ms are "
            "allowed. Raise the budget, lower min_channels or round_to, or let more layers shrink."
        )
    failed = full[_FLOPS]
    for _ in range(tries):
        middle = math.sqrt(met * failed)
        kept = allocate(
            groups,
            curves,
            model,
            Budget(flops=max(middle, 1.5)),
            full=full,
            allocation=allocation,
            rules=rules,
        )
        if slim_latency(graph, kept, budget.batch_size) <= seconds:
            met = cost(kept)[_FLOPS]
        else:
            failed = middle
    return float(met)
