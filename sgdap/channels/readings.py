"""Where channels that no linear layer reads are seen: the tensors to measure the loss's need at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sgdap.channels.facts import Axis, Linear, Reading
from sgdap.channels.labels import Channels, TensorChannels
from sgdap.model.program import Program


def find_readings(
    program: Program,
    tensors: Mapping[int, TensorChannels],
    axes: Sequence[Axis],
    linears: Sequence[Linear],
    inside: Sequence[Reading],
    removable: npt.NDArray[np.bool_],
) -> tuple[Reading, ...]:
    """Finds the tensors whose channels a kernel reads, but not that of a linear layer.

    Channels that only operations without weights read are seen where they are made first.

    Args:
        program: The model's calls.
        tensors: The channels of each tensor, by its number.
        axes: Every axis of a variable that has channels.
        linears: Every place where a linear layer reads channels.
        inside: What rules say of tensors inside layers.
        removable: Whether each channel may leave, `(channels,)`.

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
            for axis, channels in _with_channels(tensors[ref.index]):
                there = ref.index, axis
                if there not in known and read[call.path].issuperset(channels.tolist()):
                    known.add(there)
                    path = f"{call.path}:{place}:{axis}"
                    found.append(Reading(path, number, place, axis, channels))
    unseen = removable.copy()
    for features in [*(x.features for x in linears), *(x.features for x in found)]:
        unseen[features] = False
    for number, call in enumerate(program.calls):
        for place, ref in enumerate(call.outputs):
            for axis, channels in _with_channels(tensors[ref.index]):
                if unseen[channels].all():
                    unseen[channels] = False
                    path = f"{call.path}:made:{place}:{axis}"
                    found.append(Reading(path, number, place, axis, channels, made=True))
    return tuple(found)


def _with_channels(tensor: TensorChannels) -> list[tuple[int, Channels]]:
    """The axes of a tensor that have channels, but for the batch axis, and these channels."""
    return [(axis, own) for axis, own in enumerate(tensor) if own is not None and axis > 0]
