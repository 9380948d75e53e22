"""The config and arguments of `keras.ops` operations when some indices of their inputs are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.labels import TensorChannels

Mask = npt.NDArray[np.bool_]
Masks = Sequence["Mask | None"]
"""For each axis of a tensor which indices stay, or None: all of them."""


@dataclass(frozen=True, eq=False)
class Written:
    """The config of an operation and the arguments of a call of it.

    Attributes:
        config: The config.
        args: Positional arguments, a `Ref` or tensor in the place of each tensor.
        kwargs: Keyword arguments, likewise.
    """

    config: Mapping[str, Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def same_as(self, other: Written) -> bool:
        """Whether config and arguments are the same, whatever name the config has."""
        mine, others = (
            keras.tree.flatten(({**w.config, "name": None}, w.args, dict(w.kwargs)))
            for w in (self, other)
        )
        return len(mine) == len(others) and all(map(_equal, mine, others))


def _equal(first: Any, second: Any) -> bool:
    if hasattr(first, "shape") or hasattr(second, "shape"):
        return np.array_equal(first, second)
    return bool(first == second)


Rewriter = Callable[[Written, Sequence[Masks], Sequence[Masks]], Written]


def rewritten(
    operation: Any,
    written: Written,
    kept: Mask,
    inputs: Sequence[TensorChannels],
    outputs: Sequence[TensorChannels],
) -> Written:
    """Returns the config and arguments of an operation after a removal.

    Args:
        operation: The operation before the removal.
        written: Its config and arguments before.
        kept: Which channels stay.
        inputs: The channels of its input tensors.
        outputs: The channels of its output tensors.

    Returns:
        The same with sizes, bounds and indices that count only what stays.
    """
    rewrite = _REWRITERS.get(type(operation))
    if rewrite is None:
        return written
    stays = [[None if c is None else kept[c] for c in tensor] for tensor in (*inputs, *outputs)]
    return rewrite(written, stays[: len(inputs)], stays[len(inputs) :])


def is_written_with_sizes(operation: Any) -> bool:
    """Whether the config or the arguments of an operation hold sizes, bounds or indices."""
    return type(operation) in _REWRITERS


def _with(written: Written, **entries: Any) -> Written:
    return replace(written, config={**written.config, **entries})


def _target_shape(key: str) -> Rewriter:
    def rewrite(written: Written, inputs: Sequence[Masks], outputs: Sequence[Masks]) -> Written:
        sizes = list(written.config[key])
        offset = len(outputs[0]) - len(sizes)
        for axis, size in enumerate(sizes):
            mask = outputs[0][axis + offset]
            if mask is not None and size != -1:
                sizes[axis] = int(mask.sum())
        return _with(written, **{key: tuple(sizes)})

    return rewrite


def _slice(written: Written, inputs: Sequence[Masks], outputs: Sequence[Masks]) -> Written:
    new = _target_shape("shape")(written, inputs, outputs)
    starts = list(written.args[1])
    for axis, mask in enumerate(inputs[0]):
        if mask is not None:
            starts[axis] = int(mask[: starts[axis]].sum())
    return replace(new, args=(written.args[0], tuple(starts), *written.args[2:]))


def _split(written: Written, inputs: Sequence[Masks], outputs: Sequence[Masks]) -> Written:
    mask = inputs[0][written.config["axis"]]
    if mask is None:
        return written
    parts = written.config["indices_or_sections"]
    if isinstance(parts, int):
        pieces = np.split(mask, parts)
        if len({int(piece.sum()) for piece in pieces}) == 1:
            return written
        parts = range(len(pieces[0]), len(mask), len(pieces[0]))
    return _with(written, indices_or_sections=tuple(int(mask[:bound].sum()) for bound in parts))


def _get_item(written: Written, inputs: Sequence[Masks], outputs: Sequence[Masks]) -> Written:
    key = written.args[1]
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
    return replace(written, args=(written.args[0], tuple(entries)))


def _take(written: Written, inputs: Sequence[Masks], outputs: Sequence[Masks]) -> Written:
    axis, indices = written.config["axis"], written.args[1]
    mask = None if axis is None else inputs[0][axis]
    if mask is None or hasattr(indices, "index") and not isinstance(indices, (list, tuple)):
        return written
    chosen = np.asarray(indices) % len(mask)
    if chosen.ndim != 1:
        return written
    new = (np.cumsum(mask) - 1)[chosen[mask[chosen]]]
    moved = new.astype(indices.dtype) if isinstance(indices, np.ndarray) else new.tolist()
    return replace(written, args=(written.args[0], moved, *written.args[2:]))


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
