"""Checks that a `call` of the user's own follows its layers when these become slim."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.facts import Axis
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.labels import Channels, TensorChannels
from sgdap.channels.probing import halves
from sgdap.channels.rewriting import rewritten_operations
from sgdap.model.functional import saves_by_its_graph
from sgdap.model.program import Call, OperationCall, Program, Ref, Unrolled, symbolic_fill
from sgdap.model.tracing import replayed

Mask = npt.NDArray[np.bool_]


def what_code_does_not_follow(graph: ChannelGraph, removable: Mask) -> list[tuple[Channels, str]]:
    """Runs every `call` of the user's own again as if some of the channels were gone.

    Where it computes its sizes from the shapes of its tensors, it calls the same operations with
    the sizes that surgery would give them. Where it writes a size as a number, it does not, and
    the channels there must stay.

    Args:
        graph: The model's channels.
        removable: Whether each channel may leave, `(channels,)`.

    Returns:
        Channels that must stay, and why.
    """
    program, tensors = graph.program, graph.tensors
    if not program.codes:
        return []
    by_configs = saves_by_its_graph(program.model)
    codes = [(code, _channels_in(code, graph)) for code in program.codes]
    tried: set[tuple[int, bytes]] = set()
    for kept in _removals(removable, tensors):
        slim = [
            tuple(
                size if own is None else int(kept[own].sum())
                for size, own in zip(shape, tensors[number], strict=True)
            )
            for number, shape in enumerate(program.shapes)
        ]
        operations = rewritten_operations(graph, kept)
        for code, inside in codes:
            stays = kept[inside]
            if stays.all() or (code.start, stays.tobytes()) in tried:
                continue
            tried.add((code.start, stays.tobytes()))
            found = _first_difference(program, code, slim, operations)
            made_anew = code.path and by_configs and found is None
            if made_anew and not _is_rebuilt(program, code, slim, graph.axes, kept):
                name = type(code.layer).__name__
                why = f"the config of '{code.path}' (of class {name}) makes no layer for fewer"
                found = -1, f"{why}; register a rule with sgdap.register_rule"
            if found is None:
                continue
            place, reason = found
            refs = program.calls[place].inputs if place >= 0 else code.taken
            inside_code = (call.inputs for call in program.calls[code.start : code.stop])
            for some in (refs, itertools.chain.from_iterable(inside_code)):
                concerned = [own for own in _along(some, graph) if removable[own].any()]
                if concerned:
                    return [(channels, reason) for channels in concerned]
            return []
    return []


def _channels_in(code: Unrolled, graph: ChannelGraph) -> Channels:
    """The channels of all tensors that a `call` takes and makes."""
    calls = graph.program.calls[code.start : code.stop]
    refs = {*code.taken, *(ref for call in calls for ref in (*call.inputs, *call.outputs))}
    return np.unique(np.concatenate([np.zeros(0, np.int64), *_along(refs, graph)]))


def _along(refs: Iterable[Ref], graph: ChannelGraph) -> list[Channels]:
    """The channels along each axis of some tensors."""
    return [own for ref in refs for own in graph.tensors[ref.index] if own is not None]


def _removals(removable: Mask, tensors: Mapping[int, TensorChannels]) -> Iterator[Mask]:
    """Choices of channels that stay: at least one along each axis.

    Channels that lie along the same axes are one part. Numbers of channels that meet by chance in
    one choice, as those of the halves of a tensor, differ in another:

    * The first half of each part leaves, and the last half. As many stay in other places.
    * One channel leaves from one part along each axis, from each in turn. Code that computes what
      stays in a part from the length of an axis is wrong in one of two such choices, because the
      length is the same.
    * One channel leaves from some of the parts. Of any two, one is whole and the other is not, so
      code that takes the length of one axis for that of another is wrong.
    """
    axes = [own for tensor in tensors.values() for own in tensor if own is not None]
    parts = _parts(axes, removable)
    large_halves = [(part, (len(part) + 1) // 2) for part in parts]
    leaving = [[part[:half] for part, half in large_halves]]
    leaving += [[part[-half:] for part, half in large_halves]]
    turns = _turns(axes, parts, len(removable))
    chosen = [turns == turn for turn in range(turns.max(initial=-1) + 1)]
    for some in (*chosen, *halves([len(parts)])):
        leaving.append([part[:1] for part, leaves in zip(parts, some, strict=True) if leaves])
    for channels in leaving:
        kept = np.ones(len(removable), bool)
        kept[np.concatenate([np.zeros(0, np.int64), *channels])] = False
        for own in axes:
            if not kept[own].any():
                kept[own[0]] = True
        yield kept


def _parts(axes: Sequence[Channels], removable: Mask) -> list[Channels]:
    """Removable channels, those together that lie along the same axes, each as often."""
    part_of, count = np.zeros(len(removable), np.int64), 1
    for own in axes:
        found, times = np.unique(own, return_counts=True)
        _, part = np.unique([part_of[found], times], axis=1, return_inverse=True)
        part_of[found] = count + part.ravel()
        count += len(found)
    channels = np.flatnonzero(removable)
    return [channels[part_of[channels] == number] for number in np.unique(part_of[channels])]


def _turns(
    axes: Sequence[Channels], parts: Sequence[Channels], count: int
) -> npt.NDArray[np.int64]:
    """A turn for each part, `(parts,)`: not that of another one along the same axis."""
    part_of = np.full(count, -1)
    for number, part in enumerate(parts):
        part_of[part] = number
    along = [set(part_of[own].tolist()) - {-1} for own in axes]
    turns = np.full(len(parts), -1)
    for number in range(len(parts)):
        beside = set[int]().union(*(numbers for numbers in along if number in numbers))
        taken = {int(turns[other]) for other in beside}
        turns[number] = next(turn for turn in range(len(parts)) if turn not in taken)
    return turns


def _first_difference(
    program: Program, code: Unrolled, slim: Sequence[Any], operations: Mapping[str, OperationCall]
) -> tuple[int, str] | None:
    """The number of the first call that a second run makes otherwise, and a reason for people."""
    calls, shapes = replayed(program, code, slim)
    name = code.path or program.model.name
    made = itertools.zip_longest(program.calls[code.start : code.stop], calls)
    for number, (call, again) in enumerate(itertools.islice(made, code.stop - code.start)):
        if again is None or not _follows(call, again, operations, shapes, slim):
            return code.start + number, (
                f"the `call` of '{name}' does not follow their number at {call.line}; compute "
                "sizes from the shapes of tensors, or prune sgdap.functional(model)"
            )
    return None


def _follows(
    call: Call,
    again: Call,
    operations: Mapping[str, OperationCall],
    shapes: Sequence[Any],
    slim: Sequence[Any],
) -> bool:
    """Whether a second run makes a call that surgery expects, of tensors of slim shapes."""
    if type(again.operation) is not type(call.operation) or again.inputs != call.inputs:
        return False
    if not call.in_graph and not isinstance(call.operation, keras.Layer):
        expected = operations.get(call.path, OperationCall.of(call))
        if not OperationCall.of(again).same_as(expected):
            return False
    return all(shapes[ref.index] == slim[ref.index] for ref in call.outputs)


def _is_rebuilt(
    program: Program, code: Unrolled, slim: Sequence[Any], axes: Sequence[Axis], kept: Mask
) -> bool:
    """Whether a layer's config makes one for slim inputs, with weights of the right shapes."""
    args, kwargs = symbolic_fill(code, slim, program.dtypes)
    try:
        new = type(code.layer).from_config(code.layer.get_config())
        new(*args, **kwargs)
    except Exception:  # a config that holds the old widths, or none at all
        return False
    before, after = (_keras.layer_variables(layer) for layer in (code.layer, new))
    layers = program.layers()
    shapes = {id(v): list(v.shape) for v in before}
    for axis in axes:
        variable = _keras.layer_variables(layers[axis.path])[axis.variable]
        if id(variable) in shapes:
            shapes[id(variable)][axis.axis] = int(kept[axis.channels].sum())
    return [shapes[id(v)] for v in before] == [list(v.shape) for v in after]
