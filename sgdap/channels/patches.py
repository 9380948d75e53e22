"""How a linear layer reads its input: as rows of patches that its kernel multiplies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


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
        steps: Number of axes after the batch axis along which the layer is applied anew.
    """

    kernel_size: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: str = "valid"
    channels_first: bool = False
    depthwise: Any = None
    steps: int = 0

    def geometry(self, spatial: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        """Returns how a tensor is padded and how many positions it has, for each spatial axis.

        Args:
            spatial: Extents of the spatial axes.
        """
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
