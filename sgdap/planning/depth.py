"""Chooses the units that leave for a budget, beside the channels; never changes a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from sgdap.planning.allocation import FREE, allocate
from sgdap.planning.budget import Budget
from sgdap.planning.carried import layer_of
from sgdap.planning.cost import CostModel, cost_model
from sgdap.planning.widths import WidthRules, paths_called

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TRIES = 3
"""So many numbers of units may be tried in a row without a gain: 1, 2 and 4, say."""


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
    budget_without: Callable[[Sequence[UnitCost]], Budget],
    *,
    full: Array,
    allocation: str,
    rules: WidthRules,
) -> tuple[UnitCost, ...]:
    """Chooses the units with which the expected loss at the budget is least.

    Units are taken in the order of what they cost for what they save at the widths that the model
    would have with all of them. For some numbers of units, widths are chosen anew for the model
    without these; what units and channels cost together tells which number is best.

    Args:
        graph: The model's channels.
        costs: What each unit costs.
        groups: The groups that may shrink.
        curves: The error curve of each group, by name.
        budget_without: Returns what the model may cost without some units, or raises a `ValueError`
            where that can't be met. FLOPs for the same time are more with fewer layers.
        full: The cost of the whole model, to which fractions in the budget refer, `(measures,)`.
        allocation: As for `allocate`.
        rules: The widths that the groups may have.

    Returns:
        The units that leave, none of them inside another one.
    """
    limited = np.isfinite(budget_without(()).targets(full))
    paths = graph.program.layers().keys()
    layers_of = {own: [layer_of(path, paths) for path in own.producers] for own in groups}

    def spent(units: Sequence[UnitCost]) -> tuple[float, Mask] | None:
        """The expected loss at the budget without some units, and the channels that stay."""
        model, alive = thinned(graph, [own.unit for own in units])
        open_groups = [group for group in groups if any(map(alive.__contains__, layers_of[group]))]
        try:
            budget = budget_without(units)
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

    best = spent(())
    kept = np.ones(graph.count, bool) if best is None else best[1]
    sets = _by_rate(graph, costs, kept, full, limited)
    found: dict[int, float] = {0: np.inf if best is None else best[0]}
    nothing = FREE * max((float(curves[group.name].errors[-1]) for group in groups), default=0.0)

    def better(number: int, than: int) -> bool:
        """Whether so many units are better; of two that are as good, more are."""
        if number not in found:
            made = spent(sets[number - 1])
            found[number] = np.inf if made is None else made[0]
        same = SAME * min(found[number], found[than]) + nothing
        less = found[number] - found[than] if np.isfinite(found[number]) else np.inf
        return less <= same if number > than else less < -same

    most, number, failed = 0, 1, 0
    while number <= len(sets) and (failed < TRIES or not np.isfinite(found[most])):
        failed = 0 if better(number, most) else failed + 1
        most = number if not failed else most
        number = min(2 * number, len(sets)) if number < len(sets) else len(sets) + 1
    step = most // 2
    while step:
        for number in (most - step, most + step):
            if 0 < number <= len(sets) and better(number, most):
                most = number
                break
        step //= 2
    return sets[most - 1] if most else ()


def _by_rate(
    graph: ChannelGraph,
    costs: Sequence[UnitCost],
    kept: Mask,
    full: Array,
    limited: npt.NDArray[np.bool_],
) -> list[tuple[UnitCost, ...]]:
    """The units that leave if one does, if two do, …: the cheapest for what they save first."""
    model, _ = thinned(graph, ())
    now = model.cost(model.lengths(kept))
    rates: list[tuple[float, int, UnitCost]] = []
    for own in costs:
        after, _ = thinned(graph, [own.unit])
        saved = float(((now - after.cost(after.lengths(kept))) / full)[limited].sum())
        if saved > 0:
            rates.append((own.error / saved, len(rates), own))
    sets: list[tuple[UnitCost, ...]] = []
    chosen: tuple[UnitCost, ...] = ()
    for _, _, own in sorted(rates):
        gone = {path for other in chosen for path in other.unit.layers}
        units = (*_outside(chosen, own), own)
        if gone.issuperset(own.unit.layers) or incompatible(graph, [x.unit for x in units]):
            continue
        chosen = units
        sets.append(chosen)
    return sets


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


def most_units(graph: ChannelGraph, units: Sequence[RemovableUnit]) -> tuple[RemovableUnit, ...]:
    """Units that can leave together, the largest first, so that as little as possible stays."""
    chosen: tuple[RemovableUnit, ...] = ()
    for unit in sorted(units, key=lambda own: -len(own.layers)):
        gone = {path for own in chosen for path in own.layers}
        if not gone.issuperset(unit.layers) and not incompatible(graph, (*chosen, unit)):
            chosen = (*chosen, unit)
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
