"""A kernel on its lattice: where it is put, and how it may move there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.model.kernels import not_zero
from sgdap.quantization.constellation import Constellation
from sgdap.quantization.kernels import QuantizedKernel
from sgdap.quantization.lattice import Array, Codes, Lattice
from sgdap.quantization.pair_rounding import compensated_pairs
from sgdap.quantization.rounding import Mask, compensated
from sgdap.quantization.schemes import Codebook
from sgdap.weights.curvature import Curvature, bias_of


@dataclass(frozen=True, eq=False)
class Placed:
    """A kernel's weights on their lattice.

    Attributes:
        kernel: The kernel.
        codes: The numbers of levels, `(rows, outputs)`, or of the points of pairs.
        lattice: The lattice.
    """

    kernel: QuantizedKernel
    codes: Codes
    lattice: Lattice | Constellation

    @property
    def value(self) -> Array:
        """The kernel."""
        return self.kernel.whole(self.lattice.values(self.codes))

    def rescaled(self, value: Array) -> Placed:
        """The same codes with the scales that a kernel came to have in a step over all weights."""
        freedom = self.freedom
        if not freedom.moves or isinstance(self.lattice, Constellation):
            return self
        scale = freedom.numbers(value) / freedom.lengths
        scale = np.where(freedom.lengths > 1e-200, scale, self.lattice.scale)
        return replace(self, lattice=self.lattice.scaled(scale))

    @property
    def freedom(self) -> Scales:
        """How the kernel may move."""
        if isinstance(self.lattice, Constellation):
            none = np.zeros(self.kernel.shape)
            return Scales(none, none.astype(np.int64), 1, self.value, False)
        scheme = self.kernel.scheme
        moves = scheme.adapts and not isinstance(scheme, Codebook)
        units = self.kernel.whole(self.lattice.units)
        along = self.kernel.whole(self.lattice.directions(self.codes))
        return Scales(along, units, len(self.lattice.scale), self.value, moves)


class Scales:
    """A kernel on a lattice moves along its scales only.

    The numbers are the scales times the lengths of what they multiply, so that a step in them is as
    long as that of the weights.

    Args:
        along: What the scales multiply, in the kernel's shape.
        units: The unit of each weight, in the same shape.
        count: The number of units.
        value: The kernel as it is.
        moves: Whether the scales may move.
    """

    def __init__(self, along: Array, units: Codes, count: int, value: Array, moves: bool) -> None:
        self.moves = moves
        self._value, self._units, self._count = value, units, count
        sums = np.bincount(units.ravel(), (along**2).ravel(), count)
        self.lengths: Array = np.maximum(np.sqrt(sums), 1e-300)
        self._along = along / self.lengths[units]

    def numbers(self, value: Array) -> Array:
        """The scales that a value has, times lengths."""
        return self.gradient(value)

    def value(self, numbers: Array) -> Array:
        """The kernel with such scales."""
        return self._along * numbers[self._units] if self.moves else self._value

    def gradient(self, gradient: Array) -> Array:
        """That by the numbers."""
        if not self.moves:
            return np.zeros(0)
        found = np.zeros(self._count)
        np.add.at(found, self._units, self._along * gradient)
        return found


def nearest(graph: ChannelGraph, kernel: QuantizedKernel) -> Placed:
    """A kernel with each weight at its nearest level.

    Args:
        graph: The channels of the model that has the kernel.
        kernel: The kernel.
    """
    matrix = kernel.matrix(np.asarray(variable_of(graph.program, kernel.key).numpy(), np.float64))
    lattice = kernel.scheme.lattice(matrix)
    return Placed(kernel, lattice.nearest(matrix), lattice)


def placed(
    graph: ChannelGraph, kernel: QuantizedKernel, known: Sequence[Curvature]
) -> tuple[Placed, Array | None]:
    """A kernel on its lattice where the expected loss is least.

    Args:
        graph: The channels of the model that has the kernel.
        kernel: The kernel.
        known: The curvature of each group.

    Returns:
        The kernel, and what its bias must gain so that the mean output stays, `(outputs,)`; None
        where there is no such bias.
    """
    value = np.asarray(variable_of(graph.program, kernel.key).numpy(), np.float64)
    matrix = kernel.matrix(value)
    each = np.stack([own.each for own in known]).transpose(1, 0, 2).reshape(matrix.shape)
    lattice = kernel.scheme.lattice(matrix, each)
    codes = lattice.nearest(matrix)
    adapts = kernel.scheme.adapts and (kernel.scheme.per != "tensor" or len(known) == 1)
    outputs = matrix.shape[1] // len(known)
    offsets = []
    for group, own in enumerate(known):
        columns = slice(group * outputs, (group + 1) * outputs)
        if own.second is not None:
            fixed = kernel.matrix(~not_zero(kernel.variable))[:, columns]
            part = replace(lattice, units=lattice.units[:, columns])
            codes[:, columns], part = _compensated(
                own.second, matrix[:, columns], part, adapts, fixed
            )
            lattice = replace(part, units=lattice.units)
        if own.mean is not None:
            offsets.append((own.mean, columns))
    made = Placed(kernel, codes, lattice)
    if len(offsets) < len(known):
        return made, None
    apart = matrix - lattice.values(codes)
    return made, np.concatenate([mean @ apart[:, columns] for mean, columns in offsets])


def _compensated(
    second: Array, weights: Array, lattice: Lattice | Constellation, adapts: bool, fixed: Mask
) -> tuple[Codes, Lattice | Constellation]:
    if isinstance(lattice, Constellation):
        return compensated_pairs(second, weights, lattice, adapts)
    return compensated(second, weights, lattice, adapts, fixed)


def put(
    graph: ChannelGraph, made: Placed, offset: Array | None, known: Sequence[Curvature]
) -> None:
    """Writes a kernel on its lattice into the model, in place.

    Args:
        graph: The channels of the model.
        made: The kernel.
        offset: What its bias gains, or None.
        known: The curvature of each group, as for `placed`.
    """
    variable_of(graph.program, made.kernel.key).assign(made.value)
    if offset is None:
        return
    for own, part in zip(known, np.split(offset, len(known)), strict=True):
        if own.place is not None:
            bias = bias_of(graph, own.place)
            bias.assign(own.place.patches.with_offset(bias.numpy(), part))
