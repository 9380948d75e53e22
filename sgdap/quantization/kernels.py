"""Which kernels of a model lie on a lattice, and on which one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap._arguments import choices_for, shown
from sgdap.quantization.base import Scheme
from sgdap.quantization.schemes import get_scheme
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
