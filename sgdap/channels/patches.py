"""How a linear layer reads its input: as rows of patches that its kernel multiplies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Patches:
    """Which rows `(positions, features)` a kernel multiplies, of each sample of a tensor.

    A feature is (kernel position, input channel), in the order of a Keras convolution kernel
    flattened to two axes. With no spatial axes in `kernel_size` it reads each position's channels,
    as a Dense layer does.

    Attributes:
        kernel_size: Kernel extent along each spatial axis; empty for Dense.
        strides: Step along each spatial axis.
        dilation: Distance of kernel positions along each spatial axis.
        padding: `"valid"`, `"same"` or `"causal"`.
        channels_first: Whether the channel axis comes before the spatial ones.
        depthwise: A separable convolution, whose depthwise part is applied first; the rows are
            then what its pointwise kernel multiplies.
        transposed: A transposed convolution. Its rows are patches of the input with zeros between
            its positions, and the last two axes of its kernel are exchanged.
        steps: Number of axes after the batch axis along which the layer is applied anew.
        group: Which group of the channels a grouped convolution's rows are of.
        groups: The number of groups: each has its part of the input and of the outputs.
    """

    kernel_size: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: str = "valid"
    channels_first: bool = False
    depthwise: Any = None
    transposed: Any = None
    steps: int = 0
    group: int = 0
    groups: int = 1

    def of_group(self, size: int) -> slice:
        """The channels of the group, of so many along an axis."""
        each = size // self.groups
        return slice(self.group * each, (self.group + 1) * each)

    def kernel_matrix(self, kernel: npt.NDArray[Any], features: int) -> npt.NDArray[Any]:
        """A kernel as a matrix, `(features, outputs)`."""
        return self._part(kernel).reshape(features, -1)

    def with_matrix(
        self, kernel: npt.NDArray[Any], matrix: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """A kernel with another matrix, `(features, outputs)`, in the place of its own."""
        changed = kernel.astype(np.float64)
        part = self._part(changed)
        part[...] = matrix.reshape(part.shape)
        return changed

    def _part(self, kernel: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The group's part of a kernel, its last axes the input and the outputs; a view."""
        if self.transposed is not None:
            return kernel.swapaxes(-1, -2)
        return kernel if self.groups == 1 else kernel[..., self.of_group(kernel.shape[-1])]

    def with_offset(
        self, bias: npt.NDArray[Any], offset: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """A bias plus a change of it; of several rows, the first is added to the products.

        Args:
            bias: As its layer has it.
            offset: `(outputs,)`, flattened where the outputs have several axes.
        """
        moved = bias.astype(np.float64).reshape(-1, len(offset) * self.groups)
        moved[0, self.of_group(moved.shape[1])] += offset
        return moved.reshape(bias.shape)

    def geometry(self, spatial: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        """Returns how a tensor is padded and how many positions it has, for each spatial axis.

        Args:
            spatial: Extents of the spatial axes.
        """
        if self.transposed is not None:
            return self._transposed_geometry(spatial)
        padding, out = [], []
        for size, kernel, stride, dilation in zip(
            spatial, self.kernel_size, self.strides, self.dilation, strict=True
        ):
            extent = (kernel - 1) * dilation + 1
            if self.padding == "valid":
                low = high = 0
            elif self.padding == "causal":
                low, high = extent - 1, 0
            else:
                total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
                low, high = total // 2, total - total // 2
            padding.append((low, high))
            out.append((size + low + high - extent) // stride + 1)
        return padding, out

    def _transposed_geometry(self, spatial: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        """The same for a transposed convolution; the padding is that of the spread-out input.

        It is the gradient of the convolution that makes the input's shape of the output's (Dumoulin
        & Visin 2016, arXiv 1603.07285 section 4), which pads `before` in front.
        """
        channels = self.transposed.input_spec.axes[1 if self.channels_first else -1]
        shape = (1, channels, *spatial) if self.channels_first else (1, *spatial, channels)
        made = self.transposed.compute_output_shape(shape)
        out = [int(size) for size in (made[2:] if self.channels_first else made[1:-1])]
        padding = []
        for size, length, kernel, stride, dilation in zip(
            spatial, out, self.kernel_size, self.strides, self.dilation, strict=True
        ):
            reach = (kernel - 1) * dilation
            total = max((size - 1) * stride + reach + 1 - length, 0)
            before = 0 if self.padding == "valid" else total // 2
            low = reach - before
            padding.append((low, max(length + reach - size * stride - low, 0)))
        return padding, out
