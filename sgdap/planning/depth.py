"""Chooses the units that leave for a budget, beside the channels; never changes a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sgdap._arguments import choices_for
from sgdap.channels.facts import Axis, Work
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.channels.labels import Channels
from sgdap.depth.costs import UnitCost
from sgdap.depth.shallower import incompatible
from sgdap.depth.units import RemovableUnit, has_kernel, live_calls, removable_units
from sgdap.guidance.elimination import ErrorCurve
from sgdap.planning.allocation import allocate
from sgdap.planning.budget import Budget
from sgdap.planning.cost import CostModel, cost_model
from sgdap.planning.widths import WidthRules, paths_called

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TRIES = 4
"""So many units in a row may be tried without a gain before the choice ends."""


Depth = bool | float | Sequence[str]
"""Whether units may leave, the share of them that leaves, or names of the layers that may."""


SAME = 1e-6
"""Expected losses that differ by a smaller share are the same: then fewer layers are better."""


def allowed_units(graph: ChannelGraph, depth: Depth) -> tuple[RemovableUnit, ...]:
    """The units of which all layers with a kernel may leave.

    Args:
        graph: The model's channels.
        depth: Names or patterns of layers, as in `layers` of `sgdap.plan`; else all may.

    Raises:
        ValueError: A name matches no layer of a unit.
    """
    units = removable_units(graph)
    if isinstance(depth, (bool, int, float)):
        return units
    layers = graph.program.layers()
    paths = list(dict.fromkeys(p for u in units for p in u.layers if has_kernel(layers[p])))
    allowed: set[str] = set()
    for pattern in depth:
        fitting = paths_called(pattern, paths)
        if not fitting:
            raise ValueError(
                f"No layer that may leave as a whole is called '{pattern}', as depth says. "
                f"{choices_for(pattern, paths)}"
            )
        allowed.update(fitting)
    return tuple(
        unit
        for unit in units
        if allowed.issuperset(path for path in unit.layers if has_kernel(layers[path]))
    )


def choose_units(
    graph: ChannelGraph,
    costs: Sequence[UnitCost],
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, ErrorCurve],
    budget: Budget,
    *,
    full: Array,
    allocation: str,
    rules: WidthRules,
) -> tuple[UnitCost, ...]:
    """Chooses units as long as the expected loss at the budget falls.

    One after another the unit is tried that costs least for what it saves at the widths of the
    moment. Then widths are chosen anew for the model without it. It leaves if what all units and
    all channels that leave cost together is no more than before.

    Args:
        graph: The model's channels.
        costs: What each unit costs.
        groups: The groups that may shrink.
        curves: The error curve of each group, by name.
        budget: What the model may cost.
        full: The cost of the whole model, to which fractions in the budget refer, `(measures,)`.
        allocation: As for `allocate`.
        rules: The widths that the groups may have.

    Returns:
        The units that leave, none of them inside another one.
    """
    targets = budget.targets(full)
    limited = np.isfinite(targets)

    def spent(units: Sequence[UnitCost]) -> tuple[float, Mask] | None:
        """The expected loss at the budget without some units, and the channels that stay."""
        model, alive = thinned(graph, [own.unit for own in units])
        open_groups = [group for group in groups if not alive.isdisjoint(group.producers)]
        try:
            kept = allocate(
                open_groups, curves, model, budget, full=full, allocation=allocation, rules=rules
            )
        except ValueError:  # the budget can't be met
            return None
        errors = [
            float(curves[group.name].errors[int((~kept[group.channels]).sum())])
            for group in open_groups
        ]
        return sum(errors) + sum(own.error for own in units), kept

    chosen: tuple[UnitCost, ...] = ()
    best = spent(chosen)
    rejected: set[str] = set()
    failed = 0
    while failed < TRIES:
        kept = np.ones(graph.count, bool) if best is None else best[1]
        candidates = _by_rate(graph, costs, chosen, rejected, kept, full, limited)
        if not candidates:
            break
        tried = candidates[0]
        found = spent(tried)
        if found is not None and (best is None or found[0] <= best[0] * (1 + SAME)):
            chosen, best, failed = tried, found, 0
            rejected.clear()
        else:
            rejected.add(tried[-1].unit.name)
            failed += best is not None
    return chosen


def _by_rate(
    graph: ChannelGraph,
    costs: Sequence[UnitCost],
    chosen: tuple[UnitCost, ...],
    rejected: Collection[str],
    kept: Mask,
    full: Array,
    limited: npt.NDArray[np.bool_],
) -> list[tuple[UnitCost, ...]]:
    """The units with one more each, the cheapest for what it saves first."""
    model, _ = thinned(graph, [own.unit for own in chosen])
    now = model.cost(model.lengths(kept))
    gone = {path for own in chosen for path in own.unit.layers}
    rates = []
    for own in costs:
        if own.unit.name in rejected or gone.issuperset(own.unit.layers):
            continue
        rest = _outside(chosen, own)
        units = [other.unit for other in (*rest, own)]
        if incompatible(graph, units):
            continue
        after, _ = thinned(graph, units)
        saved = float(((now - after.cost(after.lengths(kept))) / full)[limited].sum())
        rise = own.error + sum(x.error for x in rest) - sum(x.error for x in chosen)
        if saved > 0:
            rates.append((max(rise, 0.0) / saved, (*rest, own)))
    return [units for _, units in sorted(rates, key=lambda rate: rate[0])]


def cheapest_units(
    graph: ChannelGraph, costs: Sequence[UnitCost], share: float
) -> tuple[UnitCost, ...]:
    """Chooses a share of the units. Those inside one that leaves are gone with it.

    One after another that one is taken which costs least for each unit that is gone with it.

    Args:
        graph: The model's channels.
        costs: What each unit costs.
        share: The share of them that is gone at the end at least, if so many can leave together.

    Returns:
        The units that leave, none of them inside another one.
    """
    chosen: tuple[UnitCost, ...] = ()
    wanted = math.ceil(share * len(costs) - 1e-9)

    def gone(units: Sequence[UnitCost]) -> int:
        layers = {path for own in units for path in own.unit.layers}
        return sum(layers.issuperset(own.unit.layers) for own in costs)

    while gone(chosen) < wanted:
        rates: list[tuple[float, int, tuple[UnitCost, ...]]] = []
        for own in costs:
            rest = _outside(chosen, own)
            units = (*rest, own)
            more = gone(units) - gone(chosen)
            if more > 0 and not incompatible(graph, [other.unit for other in units]):
                rise = own.error + sum(x.error for x in rest) - sum(x.error for x in chosen)
                rates.append((max(rise, 0.0) / more, len(rates), units))
        if not rates:
            break
        chosen = min(rates)[2]
    return chosen


def _outside(chosen: Sequence[UnitCost], own: UnitCost) -> tuple[UnitCost, ...]:
    """The chosen units that are not inside another one."""
    inside = set(own.unit.layers)
    return tuple(other for other in chosen if not inside.issuperset(other.unit.layers))


def thinned(
    graph: ChannelGraph, units: Sequence[RemovableUnit]
) -> tuple[CostModel, frozenset[str]]:
    """The cost of a model without some units, in the channels of the whole one.

    Args:
        graph: The model's channels.
        units: The units that leave.

    Returns:
        The cost model, and the paths of the layers and operations that stay.
    """
    if not units:
        return cost_model(graph), frozenset(graph.program.layers())
    calls = graph.program.calls
    reads = {unit.target: unit.source for unit in units}
    alive = frozenset(calls[number].path for number in live_calls(graph.program, reads))
    gone = frozenset(graph.program.layers()) - alive
    ends = {unit.target: unit for unit in units}
    exchanged: dict[str, tuple[Channels, Channels]] = {}
    for unit in units:
        last = unit
        while last.source in ends:
            last = ends[last.source]
        before, after = _channels(graph, unit.target), _source_channels(graph, last)
        if before is not None and after is not None:
            exchanged |= {calls[number].path: (before, after) for number in unit.readers}

    def moved(path: str, channels: Channels) -> Channels:
        before, after = exchanged.get(path, (None, None))
        if before is None or after is None or not np.array_equal(channels, before):
            return channels
        return after

    axes = tuple(
        replace(axis, channels=moved(axis.path, axis.channels)) if _reads(axis) else axis
        for axis in graph.axes
    )
    work = tuple(
        Work(own.path, own.factor, tuple(moved(own.path, axis) for axis in own.axes))
        for own in graph.work
    )
    return cost_model(replace(graph, axes=axes, work=work), gone), alive


def _reads(axis: Axis) -> bool:
    return axis.role == "consumer"


def _channels(graph: ChannelGraph, index: int) -> Channels | None:
    return graph.tensors[index][-1]


def _source_channels(graph: ChannelGraph, unit: RemovableUnit) -> Channels | None:
    """The channels of a unit's source; where it has none, those that its first kernel reads."""
    known = _channels(graph, unit.source)
    if known is not None:
        return known
    for place in graph.places:
        call = graph.program.calls[place.call]
        if call.path in unit.layers and call.inputs[place.tensor].index == unit.source:
            return place.features[: graph.program.shapes[unit.source][-1]]
    return None
