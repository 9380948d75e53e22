"""The config and arguments of `keras.ops` operations when some indices of their inputs are gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.labels import TensorChannels
from sgdap.model.program import OperationCall

Mask = npt.NDArray[np.bool_]
Masks = Sequence["Mask | None"]
"""For each axis of a tensor which indices stay, or None: all of them."""


Rewriter = Callable[[OperationCall, Sequence[Masks], Sequence[Masks]], OperationCall]


def rewritten(
    operation: Any,
    call: OperationCall,
    kept: Mask,
    inputs: Sequence[TensorChannels],
    outputs: Sequence[TensorChannels],
) -> OperationCall:
    """Returns the config and arguments of an operation after a removal.

    Args:
        operation: The operation before the removal.
        call: Its config and arguments before.
        kept: Which channels stay.
        inputs: The channels of its input tensors.
        outputs: The channels of its output tensors.

    Returns:
        The same with sizes, bounds and indices that count only what stays.
    """
    rewrite = _REWRITERS.get(type(operation))
    if rewrite is None:
        return call
    stays = [
        [None if c is None or kept[c].all() else kept[c] for c in tensor]
        for tensor in (*inputs, *outputs)
    ]
    return rewrite(call, stays[: len(inputs)], stays[len(inputs) :])


def rewritten_operations(graph: ChannelGraph, kept: Mask) -> dict[str, OperationCall]:
    """Returns how operations that are no layers are called after a removal, by path.

    Args:
        graph: The model's channels.
        kept: Which channels stay.

    Returns:
        Those that are called otherwise than before.
    """
    operations = {}
    for call in (graph.program.calls[number] for number in graph.rewrites):
        before = OperationCall.of(call)
        inputs, outputs = (
            [graph.tensors[ref.index] for ref in refs] for refs in (call.inputs, call.outputs)
        )
        after = rewritten(call.operation, before, kept, inputs, outputs)
        if not after.same_as(before):
            operations[call.path] = after
    return operations


def is_written_with_sizes(operation: Any) -> bool:
    """Whether the config or the arguments of an operation hold sizes, bounds or indices."""
    return type(operation) in _REWRITERS


def _with(call: OperationCall, **entries: Any) -> OperationCall:
    return replace(call, config={**call.config, **entries})


def _target_shape(key: str) -> Rewriter:
    def rewrite(
        call: OperationCall, inputs: Sequence[Masks], outputs: Sequence[Masks]
    ) -> OperationCall:
        sizes = list(call.config[key])
        offset = len(outputs[0]) - len(sizes)
        for axis, size in enumerate(sizes):
            mask = outputs[0][axis + offset]
            if mask is not None and size != -1:
                sizes[axis] = int(mask.sum())
        return _with(call, **{key: tuple(sizes)})

    return rewrite


def _slice(call: OperationCall, inputs: Sequence[Masks], outputs: Sequence[Masks]) -> OperationCall:
    new = _target_shape("shape")(call, inputs, outputs)
    starts = list(call.args[1])
    for axis, mask in enumerate(inputs[0]):
        if mask is not None:
            starts[axis] = int(mask[: starts[axis]].sum())
    return replace(new, args=(call.args[0], tuple(starts), *call.args[2:]))


def _split(call: OperationCall, inputs: Sequence[Masks], outputs: Sequence[Masks]) -> OperationCall:
    mask = inputs[0][call.config["axis"]]
    if mask is None:
        return call
    parts = call.config["indices_or_sections"]
    if isinstance(parts, int):
        pieces = np.split(mask, parts)
        if len({int(piece.sum()) for piece in pieces}) == 1:
            return call
        parts = range(len(pieces[0]), len(mask), len(pieces[0]))
    return _with(call, indices_or_sections=tuple(int(mask[:bound].sum()) for bound in parts))


def _get_item(
    call: OperationCall, inputs: Sequence[Masks], outputs: Sequence[Masks]
) -> OperationCall:
    key = call.args[1]
    entries = list(key) if isinstance(key, (tuple, list)) else [key]
    rank = len(inputs[0])
    used = sum(entry is not None and entry is not Ellipsis for entry in entries)
    axis = 0
    for position, entry in enumerate(entries):
        if entry is None:
            continue
        if entry is Ellipsis:
            axis += rank - used
            continue
        mask = inputs[0][axis]
        axis += 1
        if mask is None:
            continue
        if isinstance(entry, slice) and entry.step in (None, 1):
            start, stop, _ = entry.indices(len(mask))
            low = None if entry.start is None else int(mask[:start].sum())
            high = None if entry.stop is None else int(mask[:stop].sum())
            entries[position] = slice(low, high, entry.step)
        elif isinstance(entry, int):
            entries[position] = int(mask[: entry % len(mask)].sum())
    return replace(call, args=(call.args[0], tuple(entries)))


def _take(call: OperationCall, inputs: Sequence[Masks], outputs: Sequence[Masks]) -> OperationCall:
    axis, indices = call.config["axis"], call.args[1]
    mask = None if axis is None else inputs[0][axis]
    if mask is None or hasattr(indices, "index") and not isinstance(indices, (list, tuple)):
        return call
    chosen = np.asarray(indices) % len(mask)
    if chosen.ndim != 1:
        return call
    new = (np.cumsum(mask) - 1)[chosen[mask[chosen]]]
    moved = new.astype(indices.dtype) if isinstance(indices, np.ndarray) else new.tolist()
    return replace(call, args=(call.args[0], moved, *call.args[2:]))


def _rewriters() -> dict[type, Rewriter]:
    x = keras.KerasTensor((None, 4))
    ops = keras.ops
    return {
        _keras.operation_class(ops.reshape, x, (-1, 2)): _target_shape("newshape"),
        _keras.operation_class(ops.broadcast_to, x, (2, 4)): _target_shape("shape"),
        _keras.operation_class(ops.slice, x, (0, 0), (1, 1)): _slice,
        _keras.operation_class(ops.split, x, 2, 1): _split,
        _keras.operation_class(ops.take, x, [0], 1): _take,
        type(_keras.history(x[0])[0]): _get_item,  # type: ignore[index]
    }


_REWRITERS = _rewriters()
