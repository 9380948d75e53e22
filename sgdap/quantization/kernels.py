"""Which kernels of a model lie on a lattice, and on which one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap._arguments import choices_for, shown
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.model.kernels import not_zero
from sgdap.quantization.lattice import Array, Codes, Lattice
from sgdap.quantization.rounding import compensated
from sgdap.quantization.schemes import Codebook, Scheme, get_scheme
from sgdap.weights.curvature import Curvature, bias_of
from sgdap.weights.kernels import COMMON, Kernel, check_plain, chosen_of, kernels_of


@dataclass(frozen=True, eq=False)
class QuantizedKernel(Kernel):
    """A kernel whose weights lie on a lattice.

    Attributes:
        scheme: The scheme of its lattice.
    """

    scheme: Scheme

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and outputs, those of all groups side by side."""
        groups, rows, outputs = self.layout.sizes
        return rows, groups * outputs

    @property
    def bits(self) -> int:
        """All bits that it takes."""
        return self.scheme.bits_of(self.matrix_shape)

    def matrix(self, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A value of the kernel, the groups side by side, `(rows, outputs)`."""
        return self.layout.matrices(value).transpose(1, 0, 2).reshape(self.matrix_shape)

    def whole(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The kernel of a matrix."""
        groups, rows, outputs = self.layout.sizes
        apart = matrix.reshape(rows, groups, outputs).transpose(1, 0, 2)
        return self.layout.kernel(apart, self.shape)


def quantized_kernels(
    model_layers: Mapping[str, Any],
    scheme: Any,
    layers: Sequence[str] | None,
    overrides: Mapping[str, Any] | None,
) -> tuple[QuantizedKernel, ...]:
    """Finds the kernels that a user wants in few bits.

    Args:
        model_layers: The model's layers by path.
        scheme: The scheme of all, or its name.
        layers: Names or patterns of layers, or of variables in them; None: all.
        overrides: A dict from such names to schemes; None leaves a kernel as it is.

    Returns:
        The kernels in the order of the layers; those that stay as they are left out.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A scheme is not known, a name matches nothing that has a kernel, nothing is
            chosen, a layer is quantized already or has LoRA enabled, or a kernel is not float32 or
            not finite.
    """
    common = get_scheme(scheme)
    if overrides is not None and not isinstance(overrides, Mapping):
        raise TypeError(
            "overrides must be a dict of layer names or patterns and schemes, for example "
            f"{{'stem*': 'int8', 'head': None}}. Received: {shown(overrides)}"
        )
    own = {
        name: None if value is None else get_scheme(value)
        for name, value in (overrides or {}).items()
    }
    found = kernels_of(model_layers)
    schemes = chosen_of(found, model_layers, layers, own)
    made = []
    for k in found:
        chosen = schemes.get(k.path)
        if chosen is not None:
            chosen = common if chosen is COMMON else chosen
            made.append(QuantizedKernel(k.path, k.layer, k.number, k.variable, k.layout, chosen))
    if not made:
        raise ValueError(
            "Nothing to quantize: there is no kernel, or each is left out. "
            f"{choices_for('', [k.path for k in found])}"
        )
    for kernel in made:
        without = f"overrides={{'{kernel.layer}': None}}"
        check_plain(kernel, model_layers[kernel.layer], without)
        if np.dtype(kernel.variable.dtype).itemsize < 4:
            raise ValueError(
                f"'{kernel.path}' is a {kernel.variable.dtype} variable, which can't hold levels "
                "exactly. Quantize the model with float32 variables (the dtype policies 'float32', "
                f"'mixed_float16' and 'mixed_bfloat16' have them), or leave it out with {without}."
            )
        if not np.isfinite(np.asarray(kernel.variable.numpy())).all():
            raise ValueError(
                f"'{kernel.path}' has weights that are not finite (NaN or infinity). Restore a "
                "checkpoint from before."
            )
    return tuple(made)


@dataclass(frozen=True, eq=False)
class Placed:
    """A kernel's weights on their lattice.

    Attributes:
        kernel: The kernel.
        codes: The numbers of levels, `(rows, outputs)`.
        lattice: The lattice.
    """

    kernel: QuantizedKernel
    codes: Codes
    lattice: Lattice

    @property
    def value(self) -> Array:
        """The kernel."""
        return self.kernel.whole(self.lattice.values(self.codes))

    def rescaled(self, value: Array) -> Placed:
        """The same codes with the scales that a kernel came to have in a step over all weights."""
        freedom = self.freedom
        if not freedom.moves:
            return self
        scale = freedom.numbers(value) / freedom.lengths
        scale = np.where(freedom.lengths > 1e-200, scale, self.lattice.scale)
        return replace(self, lattice=self.lattice.scaled(scale))

    @property
    def freedom(self) -> Scales:
        """How the kernel may move."""
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


def rounded(graph: ChannelGraph, kernel: QuantizedKernel) -> Placed:
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
            part = replace(lattice, units=lattice.units[:, columns])
            fixed = kernel.matrix(~not_zero(kernel.variable))[:, columns]
            codes[:, columns], part = compensated(
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
