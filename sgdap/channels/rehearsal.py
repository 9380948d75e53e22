"""Tries each distinct call with half of its channels, whatever its rule said; plans nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import keras
import numpy as np

from sgdap import _keras
from sgdap.channels.facts import Axis, Resize, Scale
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.labels import Channels
from sgdap.channels.likeness import Fault, Likeness, Mask, Part
from sgdap.channels.remembering import Remembered

_STAGES = ((4, 8), (4, None), (None, None))
"""How many channels of each block take part, and how long other axes are; None: all of them."""

_WHOLE_STAGES = ((None, 8), (None, None))
"""The same for classes of the user's own, which may do otherwise for more channels."""

_OPEN = 32
"""The length of an axis that the model leaves open."""

_STEPS = 3
"""How many steps a loop over them takes: a first one, a last one and one between."""

_LOOPS = (keras.layers.RNN, keras.layers.Bidirectional, keras.layers.TimeDistributed)
"""Layers that do at each step, along the first axis after that of the samples, what they do."""

_LARGEST = 2**25
"""How many numbers the inputs and variables of a likeness may hold."""

_known: Remembered[Fault | None] = Remembered(4096)
_Fact = TypeVar("_Fact", Axis, Resize, Scale)


def what_fails_rehearsal(graph: ChannelGraph, removable: Mask) -> list[tuple[Channels, str]]:
    """Rehearses every call that channels may leave.

    Args:
        graph: The model's channels.
        removable: Which of them may leave.

    Returns:
        Channels that must stay, and why.
    """
    axes, resizes, scales = _by_path(graph.axes), _by_path(graph.resizes), _by_path(graph.scales)
    rewrites = {graph.program.calls[number].path for number in graph.rewrites}
    stays: list[tuple[Channels, str]] = []
    only_for_losses = graph.program.only_for_losses()
    for number, call in enumerate(graph.program.calls):
        if number in only_for_losses and not isinstance(call.operation, keras.Layer):
            continue  # a loss of fewer channels is another one
        part = Part(
            call=call,
            shapes=tuple(graph.program.shapes[ref.index] for ref in call.inputs),
            dtypes=tuple(graph.program.dtypes[ref.index] for ref in call.inputs),
            inputs=tuple(graph.tensors[ref.index] for ref in call.inputs),
            outputs=tuple(graph.tensors[ref.index] for ref in call.outputs),
            axes=tuple(axes.get(call.path, ())),
            resizes=tuple(resizes.get(call.path, ())),
            scales=tuple(scales.get(call.path, ())),
            follows=call.path in rewrites,
            removable=removable,
        )
        if part.blocks and not _waits_to_be_built(call.operation):
            stays += _faults(part)
    return stays


def _waits_to_be_built(operation: Any) -> bool:
    """Whether a layer holds one with weights that Keras makes in its first call on data only."""
    parts = _keras.flatten_layers(operation) if isinstance(operation, keras.Layer) else ()
    return any(not part.built and type(part).build is not keras.Layer.build for part in parts)


def _by_path(facts: Iterable[_Fact]) -> dict[str, list[_Fact]]:
    found: dict[str, list[_Fact]] = {}
    for fact in facts:
        found.setdefault(fact.path, []).append(fact)
    return found


def _faults(part: Part) -> list[tuple[Channels, str]]:
    """Channels without some of which a call can't be computed as its rule says, and why.

    They are those of the blocks that fail by themselves, or all where only several at once do.
    """
    why = _fault(part, part.blocks)
    if why is None:
        return []
    alone = [(block, _fault(part, [block])) for block in part.blocks]
    found = [(block, fault) for block, fault in alone if fault is not None]
    return found or [(np.concatenate(part.blocks), why)]


def _fault(part: Part, leaving: Sequence[Channels]) -> str | None:
    """What is wrong with a call where some blocks leave by halves; None where nothing is.

    A small likeness is tried first. Its layer need not take such sizes, so one that fails is
    tried with those of the model too. A class of the user's own is tried with all its channels.
    One of Keras that can't be run here at all, whole or slim (a convolution with channels first on
    a CPU), is taken at its rule's word.
    """
    why: str | None = None
    can_run = own = not part.is_of_keras
    whole = own and _likeness(part, leaving, *_WHOLE_STAGES[0]).numbers <= _LARGEST
    for channels, length in _WHOLE_STAGES if whole else _STAGES:
        likeness = _likeness(part, leaving, channels, length)
        if why is not None and likeness.numbers > _LARGEST:
            break
        try:
            key = likeness.key()
        except ValueError as error:
            why = str(error)
            continue
        if _known.get(key, likeness.fault) is None:
            return None
        fault = _known.get((key, part.call.path), likeness.fault)  # it names the path
        assert fault is not None
        why, can_run = fault.why, can_run or fault.can_run
    return why if can_run else None


def _likeness(
    part: Part, leaving: Sequence[Channels], channels: int | None, length: int | None
) -> Likeness:
    """A likeness of a call.

    Args:
        part: The call.
        leaving: The blocks that leave.
        channels: How many channels of each block it has; None: all of them.
        length: The length of the longest of its axes that have no channels; None: as they are.
    """
    present = np.zeros(len(part.removable), bool)
    for line in part.lines:
        present[line] = True
    for block in part.blocks:
        few = min(len(block), channels or len(block))
        present[block] = False
        present[block[np.linspace(0, len(block) - 1, few).round().astype(int)]] = True

    # A size that the model leaves open may stand on any axis of another input, even the first.
    samples = (length or _OPEN) if any(None in shape[1:] for shape in part.shapes) else 2
    loops = part.is_of_keras and isinstance(part.call.operation, _LOOPS)

    def size(axis: int, whole: int | None, own: Channels | None) -> int:
        if own is not None:
            return int(present[own].sum())
        if axis == 0:
            return samples if whole is None else whole
        if axis == 1 and loops and length is not None:
            return min(whole or _STEPS, _STEPS)
        return min(whole or length or _OPEN, length or whole or _OPEN)

    shapes = tuple(
        tuple(size(axis, *both) for axis, both in enumerate(zip(shape, channels, strict=True)))
        for shape, channels in zip(part.shapes, part.inputs, strict=True)
    )
    return Likeness(part, present, tuple(block[present[block]] for block in leaving), shapes)
