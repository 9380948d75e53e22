"""Which part of each variable stays when channels leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.groups import ChannelGraph
from sgdap.model.program import Program

Mask = npt.NDArray[np.bool_]


def variable_slices(
    graph: ChannelGraph, kept: Mask
) -> dict[tuple[str, int], list[npt.NDArray[np.int64] | None]]:
    """Returns, for each variable that shrinks, the indices that stay along each axis."""
    slices: dict[tuple[str, int], list[npt.NDArray[np.int64] | None]] = {}
    for axis in graph.axes:
        stays = kept[axis.channels]
        if stays.all():
            continue
        key = (axis.path, axis.variable)
        rank = len(variable_of(graph.program, key).shape)
        slices.setdefault(key, [None] * rank)[axis.axis] = np.flatnonzero(stays)
    return slices


def sliced(array: npt.NDArray[Any], index: list[npt.NDArray[np.int64] | None]) -> npt.NDArray[Any]:
    """Returns the entries of an array at some indices along each axis (None: all of them)."""
    for axis, stays in enumerate(index):
        if stays is not None:
            array = np.take(array, stays, axis)
    return array


def variable_of(program: Program, key: tuple[str, int]) -> Any:
    """The variable of a layer, by the layer's path and the variable's number."""
    return _keras.layer_variables(program.layers()[key[0]])[key[1]]
