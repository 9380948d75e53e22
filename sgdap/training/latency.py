"""Finds how slim a model must be to meet a latency; changes no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.execution.latency import Stopwatch
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.allocation import UnmetBudgetError, allocate, narrowest
from sgdap.planning.budget import Budget
from sgdap.planning.cost import MEASURES, cost_model
from sgdap.planning.widths import WidthRules
from sgdap.surgery.apply import copied
from sgdap.surgery.prune import prune_in_place

Mask = npt.NDArray[np.bool_]
_FLOPS = MEASURES.index("flops")

_STEP = math.log(1.025)


def slim_model(graph: ChannelGraph, kept: Mask) -> Any:
    """A slim copy of a model. The model is not changed.

    Args:
        graph: The model's channels.
        kept: A mask of the model's channels, True for those that stay, `(graph.count,)`.
    """
    copy = copied(graph, compiled=False)
    prune_in_place(copy, kept)
    return copy.program.model


@dataclass(frozen=True)
class Latency:
    """What timing slim copies found.

    Attributes:
        flops: The most FLOPs of a sample at which a copy was fast enough.
        seconds: The seconds that this copy takes for a batch.
        least: The seconds of the narrowest copy; None if it was not timed.
        whole: The seconds of the model itself.
    """

    flops: float
    seconds: float
    least: float | None
    whole: float

    def words(self, budget: Budget, limit: float) -> str:
        """Describes it in a sentence.

        Args:
            budget: The budget that was asked for.
            limit: The seconds that are allowed.
        """
        least = "" if self.least is None else f", {_ms(self.least)} at the narrowest"
        where = budget.runtime if isinstance(budget.runtime, str) else "the given runtime"
        return (
            f"Latency: {_ms(self.seconds)} of {_ms(limit)} allowed, for a batch of "
            f"{budget.batch_size} in {where} ({_ms(self.whole)} before{least})."
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


class TooSlowError(UnmetBudgetError):
    """Even the narrowest model takes longer than a budget allows."""


def flops_within_latency(
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, ErrorCurve],
    rules: WidthRules,
    allocation: str,
    budget: Budget,
    seconds: float,
    watch: Stopwatch,
    *,
    own: float | None = None,
    shrink: bool = False,
) -> Latency:
    """The most FLOPs that a slim model may have to meet a latency limit.

    FLOPs alone do not tell the time. But if channels leave in the order of the same curves, a
    model with fewer FLOPs takes no longer. So slim copies are timed in a bisection, of FLOPs that
    are 2.5 % apart: times that differ a little from call to call lead to the same widths. The
    FLOPs in the middle are the same in each call; where they came from the times, ten calls led to
    three different models, as time does not grow evenly with FLOPs.

    Args:
        graph: The model's channels. The model is not changed.
        groups: The groups that may shrink.
        curves: The error curve of each group, by name.
        rules: The widths that the groups may have.
        allocation: `"global"` or `"layerwise"`.
        budget: The budget, for messages.
        seconds: The most seconds that a batch may take.
        watch: Times copies against the model, or against the one that it is a shallower copy of.
        own: Seconds that the model takes; None: those of the watch.
        shrink: Whether to take the whole model as too slow though it is fast enough.

    Raises:
        TooSlowError: Even the narrowest copy takes longer.
        NoisyClockError: The times differ too much from run to run.
    """
    model = cost_model(graph)

    def cost(kept: Mask) -> npt.NDArray[np.float64]:
        return model.cost(model.lengths(kept))

    full = cost(np.ones(graph.count, bool))
    own = watch.seconds if own is None else own
    if not shrink and own <= seconds:
        return Latency(float(full[_FLOPS]), own, None, watch.seconds)
    timed: dict[bytes, float] = {}

    def seconds_with(kept: Mask) -> float:
        """Times a slim copy; near FLOPs often lead to the same one, which is timed once."""
        widths = kept.tobytes()
        if widths not in timed:
            timed[widths] = watch.seconds_of(slim_model(graph, kept), seconds)
        return timed[widths]

    kept = narrowest(groups, model, rules)
    found = least = seconds_with(kept)
    check_fast_enough(least, own, budget, seconds)
    met = cost(kept)[_FLOPS]
    targets = np.geomspace(met, full[_FLOPS], 1 + math.ceil(math.log(full[_FLOPS] / met) / _STEP))
    low, high = 0, len(targets) - 1
    while high - low > 1:
        middle = (low + high) // 2
        kept = allocate(
            groups,
            curves,
            model,
            Budget(flops=max(float(targets[middle]), 1.5)),
            full=full,
            allocation=allocation,
            rules=rules,
        )
        time = seconds_with(kept)
        if time <= seconds:
            low, met, found = middle, cost(kept)[_FLOPS], time
        else:
            high = middle
    return Latency(float(met), found, least, watch.seconds)


def check_fast_enough(least: float, own: float, budget: Budget, seconds: float) -> None:
    """Checks that the narrowest copy of a model is fast enough.

    Args:
        least: Seconds that it takes.
        own: Seconds that the model takes.
        budget: The budget, for messages.
        seconds: The most seconds that a batch may take.

    Raises:
        TooSlowError: It takes longer.
    """
    if least > seconds:
        raise TooSlowError(
            f"{budget} cannot be met: the narrowest model still takes {_ms(least)} for a batch of "
            f"{budget.batch_size} on this machine (the whole one {_ms(own)}), and "
            f"{_ms(seconds)} are allowed. The rest is the cost of calling it and of layers that "
            "can't shrink. Raise the budget or batch_size, lower min_channels or round_to, or let "
            "more layers shrink."
        )


def estimated_flops(
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, ErrorCurve],
    rules: WidthRules,
    allocation: str,
    budget: Budget,
    seconds: float,
    watch: Stopwatch,
    near: float,
) -> float:
    """About the most FLOPs that a slim model may have to meet a latency limit, from two times.

    Between the model and a slim copy of it, the time is taken to be linear in FLOPs. Where that
    copy is too slow, it is between this one and the narrowest.

    Args:
        graph: The model's channels. The model is not changed.
        groups: The groups that may shrink.
        curves: The error curve of each group, by name.
        rules: The widths that the groups may have.
        allocation: `"global"` or `"layerwise"`.
        budget: The budget, for messages.
        seconds: The most seconds that a batch may take.
        watch: Times models.
        near: The FLOPs of the slim copy, near those that will be found.

    Raises:
        TooSlowError: Even the narrowest copy takes longer.
        NoisyClockError: The times differ too much from run to run.
    """
    model = cost_model(graph)
    full = model.whole
    most, slowest = float(full[_FLOPS]), watch.seconds_of(graph.program.model, seconds)
    if slowest <= seconds:
        return most
    least = kept = narrowest(groups, model, rules)
    if model.cost(model.lengths(least))[_FLOPS] < near < most:
        near_it = Budget(flops=max(near, 1.5))
        kept = allocate(
            groups, curves, model, near_it, full=full, allocation=allocation, rules=rules
        )

    def timed(mask: Mask) -> tuple[float, float]:
        flops = float(model.cost(model.lengths(mask))[_FLOPS])
        return flops, watch.seconds_of(slim_model(graph, mask), seconds)

    fewest, fastest = timed(kept)
    if fastest > seconds and not np.array_equal(kept, least):
        most, slowest = fewest, fastest
        fewest, fastest = timed(least)
    check_fast_enough(fastest, slowest, budget, seconds)
    return fewest + (seconds - fastest) / max(slowest - fastest, 1e-12) * (most - fewest)
