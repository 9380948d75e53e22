"""Checks that a `call` of the user's own follows its layers when these become slim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.facts import Axis
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.labels import Channels, TensorChannels
from sgdap.channels.rewriting import rewritten_operations
from sgdap.model.functional import saves_by_its_graph
from sgdap.model.program import OperationCall, Program, Unrolled, fill, refs_of
from sgdap.model.tracing import replayed

Mask = npt.NDArray[np.bool_]


def what_code_does_not_follow(graph: ChannelGraph, removable: Mask) -> list[tuple[Channels, str]]:
    """Runs every `call` of the user's own again as if half of the channels were gone.

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
    for side in (False, True):
        kept = _half(removable, tensors, side)
        slim = [
            shape
            if number not in tensors
            else tuple(
                size if c is None else int(kept[c].sum())
                for size, c in zip(shape, tensors[number], strict=True)
            )
            for number, shape in enumerate(program.shapes)
        ]
        operations = rewritten_operations(graph, kept)
        for code in program.codes:
            found = _first_difference(program, code, slim, operations)
            made_anew = code.path and by_configs and found is None
            if made_anew and not _is_rebuilt(program, code, slim, graph.axes, kept):
                name = type(code.layer).__name__
                why = f"the config of '{code.path}' (of class {name}) makes no layer for fewer"
                found = -1, f"{why}; register a rule with sgdap.register_rule"
            if found is None:
                continue
            place, reason = found
            arguments = (code.args, dict(code.kwargs))
            refs = program.calls[place].inputs if place >= 0 else refs_of(arguments)
            concerned = _removable(refs, tensors, removable)
            if not concerned:
                calls = program.calls[code.start : code.stop]
                refs = tuple(ref for call in calls for ref in call.inputs)
                concerned = _removable(refs, tensors, removable)
            return [(channels, reason) for channels in concerned]
    return []


def _removable(refs: Any, tensors: Mapping[int, TensorChannels], removable: Mask) -> list[Channels]:
    found = [own for ref in refs for own in tensors[ref.index] if own is not None]
    return [channels for channels in found if removable[channels].any()]


def _half(removable: Mask, tensors: Mapping[int, TensorChannels], side: bool) -> Mask:
    """A choice of channels that stay: about half, at least one along each axis.

    What stays on one side leaves on the other, so no axis stays whole on both.
    """
    half = np.random.default_rng(0).random(len(removable)) < 0.5
    kept: Mask = ~removable | (half == side)
    for channels in (own for tensor in tensors.values() for own in tensor if own is not None):
        if not kept[channels].any():
            kept[channels[0]] = True
    return kept


def _first_difference(
    program: Program, code: Unrolled, slim: Sequence[Any], operations: Mapping[str, OperationCall]
) -> tuple[int, str] | None:
    """The number of the first call that a second run makes otherwise, and a reason for people."""
    calls, shapes = replayed(program, code, slim)
    name = code.path or program.model.name
    for number in range(code.start, code.stop):
        call = program.calls[number]
        again = calls[number - code.start] if number - code.start < len(calls) else None
        same = again is not None and type(again.operation) is type(call.operation)
        computed = not call.in_graph and not isinstance(call.operation, keras.Layer)
        if again is not None and same and computed:
            now = OperationCall.of(again)
            before = OperationCall.of(call)
            same = now.same_as(operations.get(call.path, before)) and again.inputs == call.inputs
        if again is not None and same:
            same = all(shapes[ref.index] == slim[ref.index] for ref in call.outputs)
        if not same:
            return number, (
                f"the `call` of '{name}' does not follow their number at {call.line}; compute "
                "sizes from the shapes of tensors"
            )
    return None


def _is_rebuilt(
    program: Program, code: Unrolled, slim: Sequence[Any], axes: Sequence[Axis], kept: Mask
) -> bool:
    """Whether a layer's config makes one for slim inputs, with weights of the right shapes."""
    refs = refs_of((code.args, dict(code.kwargs)))
    tensors = {
        ref.index: keras.KerasTensor(slim[ref.index], dtype=program.dtypes[ref.index])
        for ref in refs
    }
    args, kwargs = fill(code, tensors)
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
