"""What the layers of a model compute: FLOPs that rules tell, and those that only a graph shows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import keras

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.registry import find_rule
from sgdap.execution.traced_work import TracedWork, traced_work


def work_by_layer(graph: ChannelGraph) -> dict[str, float]:
    """FLOPs of each layer for one sample, one multiply-add = 2."""
    flops = _told_work(graph)
    for path, found in untold_work(graph).items():
        flops[path] += found.flops
    return flops


def _told_work(graph: ChannelGraph) -> dict[str, float]:
    """FLOPs that the rules tell of each layer."""
    flops: dict[str, float] = {path: 0.0 for path in graph.program.layers()}
    for work in graph.work:
        flops[work.path] += work.factor * math.prod(len(c) for c in work.axes)
    return flops


_untold: WeakKeyDictionary[ChannelGraph, Mapping[str, TracedWork]] = WeakKeyDictionary()


def untold_work(graph: ChannelGraph) -> Mapping[str, TracedWork]:
    """What layers and operations compute that no rule tells, counted from what TensorFlow traces.

    These are the layers that are left as they are (what rules tell of layers inside them counts
    apart), and the operations and layers of the user's of which no rule says what they compute.

    Args:
        graph: The model's channels. What was counted for it once is remembered as long as it is.

    Returns:
        The work by path. No channel that leaves changes it.
    """
    if graph not in _untold:
        _untold[graph] = _traced_by_path(graph)
    return _untold[graph]


def _traced_by_path(graph: ChannelGraph) -> dict[str, TracedWork]:
    told, kept = _told_work(graph), dict(graph.kept)
    paths = {
        number: call.path
        for number, call in enumerate(graph.program.calls)
        if call.path in kept or not (told[call.path] or _has_built_in_rule(call.operation))
    }
    found = {path: TracedWork(-told[path]) for path in paths.values()}
    for number, work in traced_work(graph.program, paths).items():
        known = found[paths[number]]
        uncounted = tuple(dict.fromkeys((*known.uncounted, *work.uncounted)))
        found[paths[number]] = TracedWork(known.flops + work.flops, uncounted)
    return {path: replace(work, flops=max(work.flops, 0.0)) for path, work in found.items()}


def _has_built_in_rule(operation: Any) -> bool:
    """Whether it is a layer whose rule comes with sgdap, so that no work said means none."""
    maker = getattr(find_rule(operation), "__module__", "")
    return isinstance(operation, keras.Layer) and maker.startswith("sgdap.")


def work_notes(graph: ChannelGraph) -> tuple[str, ...]:
    """What there is to know of FLOPs that no rule tells: those not counted, and those fixed."""
    layers, kept = graph.program.layers(), dict(graph.kept)
    fixed = tuple(
        f"FLOPs of '{path}' ({work.flops:,.0f}) are taken to stay: its rule does not say them by "
        "call.work."
        for path, work in untold_work(graph).items()
        if work.flops and isinstance(layers[path], keras.Layer) and path not in kept
    )
    return (*uncounted_notes(graph), *fixed)


def uncounted_notes(graph: ChannelGraph) -> tuple[str, ...]:
    """A sentence for each layer or operation whose FLOPs can't be counted, or not all of them."""
    return tuple(
        f"FLOPs of '{path}' are not counted{' in full' if work.flops else ''}: "
        f"{'; '.join(work.uncounted)}."
        for path, work in untold_work(graph).items()
        if work.uncounted
    )


def warn_of_uncounted(graph: ChannelGraph) -> None:
    """Warns that a budget of FLOPs is not that of the whole model where some are not counted."""
    notes = uncounted_notes(graph)
    if notes:
        warnings.warn(
            f"The FLOPs of model '{graph.program.model.name}' are more than what is counted, so "
            f"a budget for them leaves more than it says. {' '.join(notes)} Register rules that "
            "say their work with sgdap.register_rule, or limit the latency.",
            stacklevel=2,
        )
