"""How a linear layer reads its input: as rows of patches that its kernel multiplies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np


@dataclass(frozen=True)
class Patches:
    """Turns a tensor into the rows that a kernel multiplies, `(positions, features)` each sample.

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

    def after(self, layer: Any) -> Patches:
        """Rows of what the depthwise part of a separable convolution makes of the input."""
        return replace(self, depthwise=layer)

    def extract(self, x: Any, limit: int, seed: Any) -> Any:
        """Returns rows of patches of a batch.

        Args:
            x: TensorFlow tensor, `(batch, …, channels)`.
            limit: How many output positions to read of each sample; more are sampled without
                replacement, the same ones for the whole batch.
            seed: Two integers (int32 tensor) for the sampling.

        Returns:
            Tensor `(batch, positions, features)`.
        """
        import tensorflow as tf

        if self.steps:
            return self._of_steps(x, limit, seed, Patches.extract)
        if self.depthwise is not None:
            x = keras.ops.depthwise_conv(
                tf.cast(x, self.depthwise.compute_dtype),
                self.depthwise.depthwise_kernel,
                self.strides,
                self.padding,
                self.depthwise.data_format,
                self.dilation,
            )
        if self.depthwise is not None and self.channels_first:
            x = tf.transpose(x, [0, *range(2, len(x.shape)), 1])
        if not self.kernel_size or self.depthwise is not None:
            return _sampled_rows(x, limit, seed)
        if self.channels_first:
            rank = len(x.shape)
            x = tf.transpose(x, [0, *range(2, rank), 1])
        spatial = [int(size) for size in x.shape[1:-1]]
        low_high, out = self._geometry(spatial)
        x = tf.pad(x, [(0, 0), *low_high, (0, 0)])
        padded = [size + low + high for size, (low, high) in zip(spatial, low_high, strict=True)]
        stride = np.cumprod([1, *padded[:0:-1]])[::-1]
        offsets = _grid(self.kernel_size, self.dilation) @ stride
        positions = tf.constant(_grid(out, self.strides) @ stride, tf.int32)
        chosen = tf.gather(positions, _sample(math.prod(out), limit, seed))
        index = chosen[:, None] + tf.constant(offsets, tf.int32)[None]
        channels = x.shape[-1]
        flat = tf.reshape(x, [tf.shape(x)[0], math.prod(padded), channels])
        rows = tf.gather(flat, index, axis=1)
        return tf.reshape(rows, [tf.shape(x)[0], -1, len(offsets) * channels])

    def at_positions(self, y: Any, limit: int, seed: Any) -> Any:
        """Returns what the layer makes of the rows that `extract` returns.

        Args:
            y: The layer's output, `(batch, …, outputs)`.
            limit: As for `extract`.
            seed: As for `extract`.

        Returns:
            Tensor `(batch, positions, outputs)`.
        """
        import tensorflow as tf

        if self.steps:
            return self._of_steps(y, limit, seed, Patches.at_positions)
        if self.channels_first:
            y = tf.transpose(y, [0, *range(2, len(y.shape)), 1])
        return _sampled_rows(y, limit, seed)

    def _of_steps(self, x: Any, limit: int, seed: Any, read: Callable[..., Any]) -> Any:
        import tensorflow as tf

        count = tf.shape(x)[1] if x.shape[1] is None else int(x.shape[1])
        x = tf.gather(x, _sample(count, limit, seed), axis=1)
        shape = tf.shape(x)
        flat = tf.reshape(x, tf.concat([[shape[0] * shape[1]], shape[2:]], 0))
        flat = tf.ensure_shape(flat, [None, *x.shape[2:]])
        each = limit // min(count, limit) if isinstance(count, int) else 1
        rows = read(replace(self, steps=self.steps - 1), flat, each, seed)
        return tf.reshape(rows, [shape[0], -1, rows.shape[-1]])

    def _geometry(self, spatial: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
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


def _sampled_rows(x: Any, limit: int, seed: Any) -> Any:
    """The channels at some positions of a tensor, `(batch, positions, channels)`."""
    import tensorflow as tf

    rows = tf.reshape(x, [tf.shape(x)[0], -1, x.shape[-1]])
    places = x.shape[1:-1]
    count = tf.shape(rows)[1] if None in places else math.prod(places)
    return tf.gather(rows, _sample(count, limit, seed), axis=1)


def _grid(counts: Any, steps: Any) -> Any:
    points = itertools.product(*(range(n) for n in counts))
    return np.array(list(points), np.int64).reshape(-1, len(counts)) * np.array(steps)


def _sample(count: Any, limit: int, seed: Any) -> Any:
    """Numbers of at most `limit` of `count` positions, all of them where there are no more."""
    import tensorflow as tf

    if isinstance(count, int) and count <= limit:
        return tf.range(count)
    order = tf.argsort(tf.random.stateless_uniform([count], seed))
    return order[:limit]
