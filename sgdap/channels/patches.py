"""How a linear layer reads its input: as rows of patches that its kernel multiplies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
    """

    kernel_size: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: str = "valid"
    channels_first: bool = False
    depthwise: Any = None
    transposed: Any = None
    steps: int = 0

    def kernel_matrix(self, kernel: npt.NDArray[Any], features: int) -> npt.NDArray[Any]:
        """A kernel as a matrix, `(features, outputs)`."""
        if self.transposed is not None:
            kernel = kernel.swapaxes(-1, -2)
        return kernel.reshape(features, -1)

    def kernel_of(self, matrix: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The kernel whose matrix this is.

        Args:
            matrix: `(features, outputs)`.
            shape: The shape of the kernel.
        """
        if self.transposed is None:
            return matrix.reshape(shape)
        return matrix.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)

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
