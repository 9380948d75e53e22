"""What has no rule of its own is tried: operations, and layers without weights as a whole."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap.channels.labels import MEETS_FIXED, Symbol, plain
from sgdap.channels.probing import Array, Run, agree, fits, line_of, random_inputs, sources
from sgdap.channels.registry import register_default, without_rule
from sgdap.channels.remembering import Remembered, key_of, key_of_arguments
from sgdap.channels.resizing import resized
from sgdap.channels.rule_call import RuleCall
from sgdap.model.generators import global_state_kept
from sgdap.model.program import Ref, arrays_of, config_of

MIXES = "mixes them"
_FIXED = "takes some of them by their numbers: a constant or a size in the code counts them all"

Numbers = npt.NDArray[np.int64]
"""The channels of one call, numbered from 0 for a trial."""


@dataclass(frozen=True, eq=False)
class Movement:
    """Where an operation puts its input's labels.

    Attributes:
        pairs: Numbers that leave together, `(pairs, 2)`.
        kept: Numbers that stay, and why.
        met: Numbers that stay because the output has indices of another input there too.
        lines: For each output and axis the labels along it (-1: none), or None.
    """

    pairs: Numbers
    kept: tuple[tuple[Numbers, str], ...]
    met: Numbers
    lines: tuple[tuple[Numbers | None, ...], ...]


_movements: Remembered[Movement | None] = Remembered(4096)


@register_default
def tried(operation: Any, call: RuleCall) -> list[Symbol]:
    """Runs an operation or layer on random numbers to see where its input's channels go.

    A channel passes where each entry of the output depends on one channel at most. Otherwise the
    channels stay. A layer is tried as a whole, whatever code it holds.
    """
    made = [plain(shape) for shape in call.output_shapes]
    axes = {
        (number, axis): own
        for number, symbol in enumerate(call.inputs)
        for axis, own in enumerate(symbol.axes)
        if own is not None
    }
    if not axes:
        return made
    channels = np.unique(np.concatenate(list(axes.values())))
    labels = {place: np.searchsorted(channels, own) for place, own in axes.items()}
    is_layer = isinstance(operation, keras.Layer)
    find = _movement_of_layer if is_layer else _movement
    movement = find(operation, call, labels)
    if movement is None and is_layer:
        return call.keep_all(without_rule(operation, call.untraced))
    if movement is None:
        for symbol in call.inputs:
            call.keep(symbol, _untried(operation))
        return made
    call.tie(*channels[movement.pairs.T])
    instead = f"; {call.untraced}" if call.untraced else ""
    for stay, reason in movement.kept:
        if reason == MIXES and call.mixes_for_a_loss:
            continue
        call.keep(channels[stay], f"'{operation.name}' {reason}{instead}")
    call.keep(channels[movement.met], MEETS_FIXED)
    for number, lines in enumerate(movement.lines):
        for axis, line in enumerate(lines):
            if line is None:
                continue
            along = channels[line]
            if (line < 0).any():
                along[line < 0] = call.ledger.fixed(
                    int((line < 0).sum()), "constants lie beside them"
                )
            made[number] = made[number].with_axis(axis, along)
    if not is_layer:
        call.rewrite(made)
    return made


def _untried(operation: Any) -> str:
    return (
        f"'{operation.name}' can't be tried on random numbers; it keeps all that it reads, unless "
        f"you register a rule for {type(operation).__name__} with sgdap.register_rule"
    )


def _movement(
    operation: Any, call: RuleCall, labels: Mapping[tuple[int, int], Numbers]
) -> Movement | None:
    """Tries an operation out, or remembers what came of it."""
    config = config_of(operation)
    if config is None:
        return None
    key = (
        key_of(type(operation)),
        key_of({**config, "name": None}),
        key_of_arguments(call.args, call.kwargs),
        key_of([symbol.shape for symbol in call.inputs]),
        call.input_dtypes,
        key_of(list(labels.items())),
    )

    def run(inputs: Sequence[Array]) -> list[Array]:
        made = type(operation).from_config(dict(config))
        return _run(made, call, {}, inputs)

    def find() -> Movement | None:
        try:
            return _try_out(run, call, labels)
        except Exception:  # an operation that takes no random numbers: of a user, or of indices
            return None

    return _movements.get(key, find)


def _movement_of_layer(
    layer: Any, call: RuleCall, labels: Mapping[tuple[int, int], Numbers]
) -> Movement | None:
    """Tries a layer out; None where a trial can't show all that it does."""
    if _minds_masks(layer):
        return None
    kwargs = {"training": False} if "training" in layer.call_signature_parameters else {}
    with global_state_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would be about random numbers
        try:
            copy = resized(layer, call.path, {})
            run = partial(_run, copy, call, kwargs)
            return _try_out(run, call, labels)
        except Exception:  # whatever code of the user's does with random numbers
            return None


def _minds_masks(layer: Any) -> bool:
    """Whether a layer reads masks or makes some, which a trial does not show."""
    if isinstance(layer, keras.layers.Lambda):
        return layer.mask is not None or _takes_mask(layer.function)
    makes = type(layer).compute_mask is not keras.Layer.compute_mask
    return makes or _takes_mask(layer.call)


def _takes_mask(function: Any) -> bool:
    return "mask" in inspect.signature(function).parameters


def _try_out(run: Run, call: RuleCall, labels: Mapping[tuple[int, int], Numbers]) -> Movement:
    """Where labels of a call's inputs go.

    Raises:
        ValueError: It makes something else each time, or tensors of other shapes than Keras knows.
    """
    shapes = [symbol.shape for symbol in call.inputs]
    values = random_inputs(shapes, call.input_dtypes, 0)
    others = random_inputs(shapes, call.input_dtypes, 1)
    whole = run(values)
    if not agree(run(values), whole):
        raise ValueError("It draws random numbers.")
    if not fits([part.shape for part in whole], call.output_shapes):
        raise ValueError("Keras knows other shapes.")
    lines: list[list[Numbers | None]] = [[None] * part.ndim for part in whole]
    pairs = [np.zeros((0, 2), np.int64)]
    kept = []
    for (number, axis), own in labels.items():
        found = sources(run, values, others, number, axis, own) if np.ptp(own) else None
        if found is None:
            kept.append((np.unique(own), MIXES))
            continue
        for part, source in enumerate(found):
            placed = line_of(source)
            if placed is None:
                kept.append((np.unique(source[source >= 0]), _FIXED))
                continue
            place, line, tied = placed
            pairs.append(tied)
            known = lines[part][place]
            if known is not None:
                both = (known >= 0) & (line >= 0)
                pairs.append(np.stack([known[both], line[both]], -1))
                line = np.where(known >= 0, known, line)
            lines[part][place] = line
    met = [np.zeros(0, np.int64)]
    for number, axis in _fixed_axes(shapes, labels, lines):
        own = np.arange(len(values[number].swapaxes(0, axis)))
        for part, source in enumerate(sources(run, values, others, number, axis, own) or ()):
            placed = line_of(source)
            known = None if placed is None else lines[part][placed[0]]
            if placed is not None and known is not None:
                met.append(known[(known >= 0) & (placed[1] >= 0)])
    return Movement(
        np.concatenate(pairs), tuple(kept), np.concatenate(met), tuple(map(tuple, lines))
    )


def _fixed_axes(
    shapes: Sequence[Sequence[int | None]],
    labels: Mapping[tuple[int, int], Numbers],
    lines: Sequence[Sequence[Numbers | None]],
) -> list[tuple[int, int]]:
    """Inputs and axes of theirs without labels that may meet labels of another input.

    What meets index by index is equally long.
    """
    if len(shapes) == 1:
        return []
    widths = {len(line) for part in lines for line in part if line is not None and len(line) > 1}
    return [
        (number, axis)
        for number, shape in enumerate(shapes)
        for axis, size in enumerate(shape)
        if size in widths and (number, axis) not in labels
    ]


def _run(
    operation: Any, call: RuleCall, more: Mapping[str, Any], inputs: Sequence[Array]
) -> list[Array]:
    """What an operation or layer makes of arrays, with the other arguments of a call, and more."""
    rest = list(inputs)

    def value(leaf: Any) -> Any:
        return keras.ops.convert_to_tensor(rest.pop(0)) if isinstance(leaf, Ref) else leaf

    args, kwargs = keras.tree.map_structure(value, (call.args, dict(call.kwargs)))
    return arrays_of(operation(*args, **{**more, **kwargs}))
