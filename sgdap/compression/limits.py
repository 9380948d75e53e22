"""Compares a model with what it may cost, time in its runtime included; changes nothing."""

from __future__ import annotations

from typing import Any

from sgdap.channels.grouping import channel_graph
from sgdap.compression.report import Measures, Timed
from sgdap.execution.latency import NoisyClockError, Stopwatch
from sgdap.planning.budget import Budget


def missed(budget: Budget | None, before: Measures, after: Measures) -> str:
    """Which limit of a budget is not met, in words; empty: all are. Time is not looked at.

    Args:
        budget: The budget; None: there is none.
        before: What the whole model costs.
        after: What is left.
    """
    limits = {} if budget is None else budget.limits()
    for name, limit in limits.items():
        whole, own = getattr(before, name), getattr(after, name)
        most = limit * whole if limit <= 1 else limit
        if own > most * (1 + 1e-6):
            return f"The budget is not met: {name} are {own:,}, and {most:,.0f} were allowed."
    return ""


def timed(budget: Budget | None, model: Any, small: Any) -> tuple[Timed | None, str]:
    """The time of a model in the runtime of a budget.

    Args:
        budget: The budget; None: there is none.
        model: The whole model, which takes turns with the other.
        small: What is left.

    Returns:
        The time, None where the budget limits none or the clock is too noisy; and the latter in
        words, else nothing.
    """
    if budget is None or budget.latency is None:
        return None, ""
    graph = channel_graph(model)
    try:
        watch = Stopwatch(model, budget.batch_size, budget.runtime, graph.counted_shapes)
        most = budget.latency_target(watch.seconds)
        seconds = watch.seconds_of(small, most)
    except NoisyClockError as error:
        return None, str(error)
    runtime = budget.runtime
    name = runtime if isinstance(runtime, str) else getattr(runtime, "__name__", "a function")
    return Timed(name, budget.batch_size, watch.seconds, seconds, most), ""
