"""FLOPs of a model's layers, stated by rules or counted in a trace; never changes a model."""

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
from sgdap.model.leaves import leaf_class


def work_by_layer(graph: ChannelGraph) -> dict[str, float]:
    """FLOPs of each layer for one sample, one multiply-add = 2."""
    flops = _told_work(graph)
    for path, found in untold_work(graph).items():
        flops[path] += found.flops
    return flops


def _told_work(graph: ChannelGraph) -> dict[str, float]:
    """FLOPs of each layer that its channel rule states."""
    flops: dict[str, float] = {path: 0.0 for path in graph.counted.layers()}
    for work in graph.work:
        flops[work.path] += work.factor * math.prod(len(c) for c in work.axes)
    return flops


_untold: WeakKeyDictionary[ChannelGraph, Mapping[str, TracedWork]] = WeakKeyDictionary()


def untold_work(graph: ChannelGraph) -> Mapping[str, TracedWork]:
    """FLOPs that no rule states, counted in the graph that TensorFlow traces.

    They belong to layers that are left as they are, and to operations and user-defined layers
    whose rules state no FLOPs. FLOPs that rules state for layers inside such a layer are
    subtracted.

    Args:
        graph: The model's channels. The result is cached as long as this object lives.

    Returns:
        The work of each layer or operation, by path. Removing channels does not change it.
    """
    if graph not in _untold:
        _untold[graph] = _traced_by_path(graph)
    return _untold[graph]


def _traced_by_path(graph: ChannelGraph) -> dict[str, TracedWork]:
    told, kept = _told_work(graph), dict(graph.kept)
    paths = {
        number: call.path
        for number, call in enumerate(graph.counted.calls)
        if call.path in kept or not (told[call.path] or _has_built_in_rule(call.operation))
    }
    found = {path: TracedWork(-told[path]) for path in paths.values()}
    for number, work in traced_work(graph.counted, paths).items():
        known = found[paths[number]]
        uncounted = tuple(dict.fromkeys((*known.uncounted, *work.uncounted)))
        found[paths[number]] = TracedWork(known.flops + work.flops, uncounted)
    return {path: replace(work, flops=max(work.flops, 0.0)) for path, work in found.items()}


def _has_built_in_rule(operation: Any) -> bool:
    """Whether it is a layer with a rule of sgdap's own, which states all FLOPs of the layer."""
    maker = getattr(find_rule(operation), "__module__", "")
    return leaf_class(operation) is not None and maker.startswith("sgdap.")


def work_notes(graph: ChannelGraph) -> tuple[str, ...]:
    """Notes on FLOPs: on what sizes they depend, which are not counted, which are taken to stay."""
    layers, kept = graph.counted.layers(), dict(graph.kept)
    fixed = tuple(
        f"FLOPs of '{path}' ({work.flops:,.0f}) are taken to stay: its rule does not say them by "
        "call.work."
        for path, work in untold_work(graph).items()
        if work.flops and isinstance(layers[path], keras.Layer) and path not in kept
        if leaf_class(layers[path]) is not None
    )
    return (*_sizes_note(graph), *uncounted_notes(graph), *fixed)


def _sizes_note(graph: ChannelGraph) -> tuple[str, ...]:
    """The sizes of the data that FLOPs are counted on, where the model leaves sizes open."""
    if graph.counted is graph.program or graph.open_inputs:
        return ()
    shapes = ", ".join(str(shape) for shape in graph.counted_shapes)
    return (f"FLOPs are those of inputs of shape {shapes}, as the first batch has them.",)


def uncounted_notes(graph: ChannelGraph) -> tuple[str, ...]:
    """One sentence for each layer or operation whose FLOPs can't be counted in full."""
    return tuple(
        f"FLOPs of '{path}' are not counted{' in full' if work.flops else ''}: "
        f"{'; '.join(work.uncounted)}."
        for path, work in untold_work(graph).items()
        if work.uncounted
    )


def warn_of_uncounted(graph: ChannelGraph) -> None:
    """Warns if some FLOPs are not counted, as a budget for FLOPs then misses them."""
    notes = uncounted_notes(graph)
    if notes:
        warnings.warn(
            f"The FLOPs of model '{graph.program.model.name}' are more than what is counted, so "
            f"a budget for them leaves more than it says. {' '.join(notes)} Register rules that "
            "say their work with sgdap.register_rule, or limit the latency.",
            stacklevel=2,
        )
