"""Where a model's channels are observed, at linear layers and elsewhere; runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sgdap.channels.facts import Axis, Place
from sgdap.channels.labels import Channels, TensorChannels
from sgdap.model.program import Program


def observed_places(
    program: Program,
    tensors: Mapping[int, TensorChannels],
    axes: Sequence[Axis],
    named: Sequence[Place],
    removable: npt.NDArray[np.bool_],
) -> tuple[Place, ...]:
    """Finds where each channel can be observed.

    Rules name linear layers and tensors inside layers. A tensor that a kernel reads of which no
    rule speaks is observed where it is read. Channels that only operations without weights read are
    observed where they are made first.

    Args:
        program: The model's calls.
        tensors: The channels of each tensor, by its number.
        axes: Every axis of a variable that has channels.
        named: The places that rules name.
        removable: Whether each channel may leave, `(channels,)`.

    Returns:
        The places: linear layers first, then tensors inside layers, then the others.
    """
    read: dict[str, set[int]] = {}
    for of_kernel in axes:
        if of_kernel.role == "consumer":
            read.setdefault(of_kernel.path, set()).update(of_kernel.channels.tolist())
    of_linears = {place.call for place in named if place.is_linear}
    known: set[tuple[int, int]] = set()
    found = sorted(named, key=lambda place: not place.is_linear)
    for number, call in enumerate(program.calls):
        if call.path not in read or number in of_linears:
            continue
        for tensor, ref in enumerate(call.inputs):
            for axis, channels in _with_channels(tensors[ref.index]):
                there = ref.index, axis
                if there not in known and read[call.path].issuperset(channels.tolist()):
                    known.add(there)
                    path = f"{call.path}:{tensor}:{axis}"
                    found.append(Place(path, number, axis, channels, channels, tensor=tensor))
    unseen = removable.copy()
    for place in found:
        unseen[place.features] = False
    for number, call in enumerate(program.calls):
        for tensor, ref in enumerate(call.outputs):
            for axis, channels in _with_channels(tensors[ref.index]):
                if unseen[channels].all():
                    unseen[channels] = False
                    path = f"{call.path}:made:{tensor}:{axis}"
                    found.append(
                        Place(path, number, axis, channels, channels, tensor=tensor, made=True)
                    )
    return tuple(found)


def _with_channels(tensor: TensorChannels) -> list[tuple[int, Channels]]:
    """The axes of a tensor that have channels, but for the batch axis, and these channels."""
    return [(axis, own) for axis, own in enumerate(tensor) if own is not None and axis > 0]
