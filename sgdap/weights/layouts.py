"""How a kernel is seen as matrices `(reduction, outputs)`, one for each group; changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import layers


@dataclass(frozen=True)
class Layout:
    """The axes of a kernel: what it sums over, what it makes, and what is apart.

    Attributes:
        shape: The shape in which the axes are apart; that of the kernel, but for groups.
        groups: The axes along which nothing is summed over that the outputs have too.
        reduction: The axes that the layer sums over, its inputs.
        outputs: The axes of its outputs.
    """

    shape: tuple[int, ...]
    groups: tuple[int, ...]
    reduction: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Groups, rows of the reduction axis and outputs of a group."""
        parts = (self.groups, self.reduction, self.outputs)
        groups, rows, outputs = (math.prod(self.shape[i] for i in part) for part in parts)
        return groups, rows, outputs

    def matrices(self, kernel: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A kernel as matrices, `(groups, reduction, outputs)`."""
        return kernel.reshape(self.shape).transpose(self._order).reshape(self.sizes)

    def kernel(self, matrices: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The kernel of a shape that has these matrices."""
        apart = matrices.reshape([self.shape[i] for i in self._order])
        return np.ascontiguousarray(apart.transpose(np.argsort(self._order)).reshape(shape))

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.groups, *self.reduction, *self.outputs)


def layout_of(layer: Any, variable: Any) -> Layout:
    """How one of a layer's own variables is seen.

    Where a layer's class says nothing else, the last axis of a kernel is its outputs, as Keras'
    initializers take it; a variable of one axis, such as a bias, has outputs only.

    Args:
        layer: The layer that has the variable, not one around it.
        variable: The variable.
    """
    shape = tuple(int(n) for n in variable.shape)
    rank = len(shape)
    if rank < 2 or variable.name.endswith("bias"):
        return Layout(shape, (), (), tuple(range(rank)))
    for kind, read in _LAYOUTS.items():
        if isinstance(layer, kind) and (known := read(layer, variable.name, shape)) is not None:
            return known
    return Layout(shape, (), tuple(range(rank - 1)), (rank - 1,))


def _grouped(layer: Any, name: str, shape: tuple[int, ...]) -> Layout | None:
    """Filters lie side by side, those of a group read the same channels."""
    groups, n = layer.groups, len(shape)
    if groups == 1:
        return None
    apart = (*shape[:-1], groups, shape[-1] // groups)
    return Layout(apart, (n - 1,), tuple(range(n - 1)), (n,))


def _depthwise(layer: Any, name: str, shape: tuple[int, ...]) -> Layout | None:
    """Each channel has filters of its own, which sum over positions only."""
    if not name.startswith("depthwise") and not isinstance(
        layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
    ):
        return None
    n = len(shape)
    return Layout(shape, (n - 2,), tuple(range(n - 2)), (n - 1,))


def _transposed(layer: Any, name: str, shape: tuple[int, ...]) -> Layout | None:
    n = len(shape)
    return Layout(shape, (), (*range(n - 2), n - 1), (n - 2,))


def _einsum(layer: Any, name: str, shape: tuple[int, ...]) -> Layout | None:
    read, rest = layer.equation.replace(" ", "").split(",")
    kernel, made = rest.split("->")
    axes = list(enumerate(kernel))
    return Layout(
        shape,
        tuple(i for i, letter in axes if letter in read and letter in made),
        tuple(i for i, letter in axes if letter in read and letter not in made),
        tuple(i for i, letter in axes if letter not in read),
    )


_LAYOUTS: dict[Any, Callable[[Any, str, tuple[int, ...]], Layout | None]] = {
    (layers.Conv1D, layers.Conv2D, layers.Conv3D): _grouped,
    (
        layers.DepthwiseConv1D,
        layers.DepthwiseConv2D,
        layers.SeparableConv1D,
        layers.SeparableConv2D,
    ): _depthwise,
    (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose): _transposed,
    layers.EinsumDense: _einsum,
}
