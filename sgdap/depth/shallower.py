"""Makes a copy of a model without some of its units; decides nothing and looks at no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.groups import ChannelGraph
from sgdap.depth.units import RemovableUnit, live_calls, reading_place, resolved
from sgdap.model.copying import compile_alike, copied_operation, copy_state
from sgdap.model.functional import connected, layer_names, warn_of_what_is_lost
from sgdap.model.program import Call, Program, Ref

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bypass:
    """A unit that leaves, and the linear map that stands in for it.

    Attributes:
        unit: The unit.
        matrix: What makes the target of the source, `(channels of the source, channels of the
            target)`; None: the source is read as it is.
        offset: What is added, `(channels of the target,)`; None: nothing.
    """

    unit: RemovableUnit
    matrix: Array | None = None
    offset: Array | None = None


@dataclass(frozen=True, eq=False)
class Shallower:
    """A model without some units.

    Attributes:
        model: An ordinary functional model of new layers, compiled if the whole one is.
        paths: The path that each layer and operation that stays has there, by its path in the
            whole model.
        rebuilt: The paths of the layers and operations that are made otherwise there, whatever
            their weights are.
    """

    model: Any
    paths: Mapping[str, str]
    rebuilt: frozenset[str] = frozenset()


def incompatible(graph: ChannelGraph, units: Sequence[RemovableUnit]) -> str:
    """Why units can't leave together; empty where they can.

    Where a unit inside another one leaves too, the larger one takes it along.

    Args:
        graph: The model's channels.
        units: The units.
    """
    reads, owners = _replacements(units)
    if len(reads) < len(units):
        return "two of them end in the same tensor"
    live = live_calls(graph.program, reads)
    calls = graph.program.calls
    for number in live:
        for ref in calls[number].inputs:
            chain = _chain(ref.index, reads, owners)
            mapped = [own for own in chain if own.readers]
            if mapped and (number not in mapped[0].readers or chain[0] is not mapped[0]):
                return f"'{calls[number].path}' can't take the linear map of '{mapped[0].name}'"
    return ""


def shallower(graph: ChannelGraph, bypasses: Sequence[Bypass]) -> Shallower:
    """Copies a model without some of its units.

    Args:
        graph: The model's channels.
        bypasses: The units that leave.

    Returns:
        The copy. What stays has the model's weights, but for kernels that take a linear map.

    Raises:
        ValueError: The units can't leave together, or a layer can't be made from its config.
    """
    units = [own.unit for own in bypasses]
    why = incompatible(graph, units)
    if why:
        listed = ", ".join(f"'{unit.name}'" for unit in units)
        raise ValueError(f"{listed} can't leave '{graph.program.model.name}' together: {why}.")
    warn_of_what_is_lost(graph.program)
    program = without_units(graph.program, units)
    maps = _maps_of_readers(graph, bypasses)
    names = layer_names(program)
    layers = program.layers()
    with _keras.scope_of(graph.program.model):
        copies = {p: copied_operation(x, p, {"name": names[p]}) for p, x in layers.items()}
        model = connected(program, {path: [layer] for path, layer in copies.items()})
    for path, layer in layers.items():
        if path in maps:
            _take_map(graph, layer, copies[path], *maps[path])
        elif isinstance(layer, keras.Layer):
            copy_state(layer, copies[path])
    if graph.program.model.compiled:
        compile_alike(model, graph.program.model)
    return Shallower(model, names)


def without_units(program: Program, units: Sequence[RemovableUnit]) -> Program:
    """The calls of a model that stay without some units, reading what they then read.

    Args:
        program: A model's calls.
        units: The units that leave.

    Returns:
        A program whose last unrolled part is the whole; it is there to be copied.
    """
    reads, _ = _replacements(units)

    def moved(structure: Any) -> Any:
        return keras.tree.map_structure(
            lambda leaf: Ref(resolved(leaf.index, reads)) if isinstance(leaf, Ref) else leaf,
            structure,
        )

    def of(call: Call) -> Call:
        args, kwargs = moved((call.args, dict(call.kwargs)))
        return replace(call, args=args, kwargs=kwargs)

    calls = tuple(of(program.calls[number]) for number in live_calls(program, reads))
    whole = replace(program.unrolled[-1], made=moved(program.unrolled[-1].made), stop=len(calls))
    return replace(
        program,
        outputs=moved(program.outputs),
        losses=moved(program.losses),
        calls=calls,
        unrolled=(whole,),
    )


def _replacements(
    units: Sequence[RemovableUnit],
) -> tuple[dict[int, int], dict[int, RemovableUnit]]:
    """What is read in the place of each target, and the unit of each target."""
    return {u.target: u.source for u in units}, {u.target: u for u in units}


def _chain(
    index: int, reads: Mapping[int, int], owners: Mapping[int, RemovableUnit]
) -> list[RemovableUnit]:
    """The units that are passed on the way from a tensor to the one that is read for it."""
    chain = []
    while index in reads:
        chain.append(owners[index])
        index = reads[index]
    return chain


def _maps_of_readers(
    graph: ChannelGraph, bypasses: Sequence[Bypass]
) -> dict[str, tuple[int, Array, Array | None]]:
    """For paths of layers the call, the matrix and the offset that its kernel takes."""
    reads, owners = _replacements([own.unit for own in bypasses])
    maps = {own.unit.target: own for own in bypasses}
    found = {}
    for number in live_calls(graph.program, reads):
        call = graph.program.calls[number]
        place = reading_place(graph, number)
        if place is None:
            continue
        index = call.inputs[place.tensor].index
        chain = _chain(index, reads, owners)
        passed = [maps[unit.target] for unit in chain]
        if all(own.matrix is None for own in passed):
            continue
        matrix, offset = np.eye(graph.program.shapes[index][-1] or 0), None
        for own in passed:
            if own.matrix is not None:
                if own.offset is not None:
                    offset = (0 if offset is None else offset) + own.offset @ matrix
                matrix = own.matrix @ matrix
        found[call.path] = number, matrix, offset
    return found


def _take_map(
    graph: ChannelGraph, layer: Any, copy: Any, number: int, matrix: Array, offset: Array | None
) -> None:
    """Gives a copy of a layer the weights that make of the source what the layer made of it."""
    place = reading_place(graph, number)
    assert place is not None and place.kernel is not None
    patches, axis = place.patches, len(place.patches.kernel_size)
    values = [variable.numpy() for variable in _keras.layer_variables(layer)]
    kernel = np.moveaxis(values[place.kernel].astype(np.float64), axis, 0)
    if offset is not None and place.bias is not None:
        taken = np.tensordot(offset, kernel, 1)
        change = taken.reshape(int(np.prod(taken.shape[:axis])), -1).sum(0)
        values[place.bias] = patches.with_offset(values[place.bias], change)
    values[place.kernel] = np.moveaxis(np.tensordot(matrix, kernel, 1), 0, axis)
    for variable, value in zip(_keras.layer_variables(copy), values, strict=True):
        variable.assign(value)
