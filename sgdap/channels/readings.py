"""Where channels that no linear layer reads are seen: the tensors to measure the loss's need at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sgdap.channels.facts import Axis, Linear, Reading
from sgdap.channels.labels import Channels, Settled, Symbol
from sgdap.model.program import Program


def find_readings(
    program: Program,
    symbols: Mapping[int, Symbol],
    axes: Sequence[Axis],
    linears: Sequence[Linear],
    inside: Sequence[Reading],
    settled: Settled,
) -> tuple[Reading, ...]:
    """The tensors that a kernel reads of which no rule says that it is a linear layer's.

    Channels that only operations without weights read are seen where they are made first.

    Args:
        program: The model's calls.
        symbols: The channels of each tensor, by its number.
        axes: Every axis of a variable that has channels.
        linears: Every place where a linear layer reads channels.
        inside: What rules say of tensors inside layers.
        settled: The classes of the channels of `symbols`.

    Returns:
        The readings, those inside layers first.
    """
    read: dict[str, set[int]] = {}
    for of_kernel in axes:
        if of_kernel.role == "consumer":
            read.setdefault(of_kernel.path, set()).update(of_kernel.channels.tolist())
    of_linears = {linear.call for linear in linears}
    known: set[tuple[int, int]] = set()
    found = list(inside)
    for number, call in enumerate(program.calls):
        if call.path not in read or number in of_linears:
            continue
        for place, ref in enumerate(call.inputs):
            for axis, channels in _axes_of(symbols[ref.index], settled):
                there = ref.index, axis
                if there not in known and read[call.path].issuperset(channels.tolist()):
                    known.add(there)
                    path = f"{call.path}:{place}:{axis}"
                    found.append(Reading(path, number, place, axis, channels))
    unseen = settled.removable.copy()
    for features in [*(x.features for x in linears), *(x.features for x in found)]:
        unseen[features] = False
    for number, call in enumerate(program.calls):
        for place, ref in enumerate(call.outputs):
            for axis, channels in _axes_of(symbols[ref.index], settled):
                if unseen[channels].all():
                    unseen[channels] = False
                    path = f"{call.path}:made:{place}:{axis}"
                    found.append(Reading(path, number, place, axis, channels, made=True))
    return tuple(found)


def _axes_of(symbol: Symbol, settled: Settled) -> list[tuple[int, Channels]]:
    """The axes of a tensor that have channels, and the classes of these."""
    return [
        (axis, settled.classes[channels])
        for axis, channels in enumerate(symbol.axes)
        if channels is not None and axis > 0
    ]
