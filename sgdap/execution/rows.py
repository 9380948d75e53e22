"""Reads the rows that a linear layer's kernel multiplies from a tensor, and what it makes of them.

At most so many output positions are read of each sample; of more, some are sampled without
replacement, the same ones for the whole batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.channels.patches import Patches


class Rows(NamedTuple):
    """Rows of a batch that a kernel multiplies.

    Attributes:
        values: `(batch, positions, features)`.
        there: Which of them the layer looks at, `(batch, positions)`; None: all.
    """

    values: Any
    there: Any = None

    def of(self, first: int, step: int) -> Any:
        """The rows looked at of every `step`-th sample from `first` on, `(rows, features)`."""
        values, there = self
        if step > 1:
            values, there = values[first::step], None if there is None else there[first::step]
        return _flat(values, there)

    def at(self, samples: npt.NDArray[np.int64]) -> Any:
        """The rows looked at of samples, by number, `(rows, features)`."""
        values, there = self
        there = None if there is None else tf.gather(there, samples)
        return _flat(tf.gather(values, samples), there)


def _flat(values: Any, there: Any) -> Any:
    if there is None:
        return tf.reshape(values, [-1, values.shape[-1]])
    return tf.boolean_mask(values, there)


def rows_looked_at(patches: Patches, x: Any, mask: Any, limit: int, seed: Any) -> Any:
    """Returns at which of the rows that `input_rows` returns a mask is true.

    Args:
        patches: How the layer reads its input: each position for itself, where there is a mask.
        x: The layer's input, `(batch, …, channels)`.
        mask: `(batch, …)`, or None.
        limit: As for `input_rows`.
        seed: As for `input_rows`.

    Returns:
        Tensor `(batch, positions)`, or None.
    """
    if mask is None or len(mask.shape) != len(x.shape) - 1:
        return None
    return input_rows(patches, tf.cast(mask, tf.int32)[..., None], limit, seed)[..., 0] > 0


def input_rows(patches: Patches, x: Any, limit: int, seed: Any) -> Any:
    """Returns rows of patches of a batch.

    Args:
        patches: How the layer reads its input.
        x: The layer's input, `(batch, …, channels)`.
        limit: How many output positions to read of each sample.
        seed: Two integers (int32 tensor) for the sampling.

    Returns:
        Tensor `(batch, positions, features)`.
    """
    if patches.steps:
        return _of_steps(patches, x, limit, seed, input_rows)
    if patches.depthwise is not None:
        x = keras.ops.depthwise_conv(
            tf.cast(x, patches.depthwise.compute_dtype),
            patches.depthwise.depthwise_kernel,
            patches.strides,
            patches.padding,
            patches.depthwise.data_format,
            patches.dilation,
        )
    if not patches.kernel_size or patches.depthwise is not None:
        apart = patches.depthwise is not None and patches.channels_first
        return _sampled_rows(_channels_last(x) if apart else x, limit, seed)
    if patches.channels_first:
        x = _channels_last(x)
    x = x[..., patches.of_group(x.shape[-1])]
    spatial = [int(size) for size in x.shape[1:-1]]
    low_high, out = patches.geometry(spatial)
    strides, taps = patches.strides, _grid(patches.kernel_size, patches.dilation)
    if patches.transposed is not None:
        x, spatial = _spread_out(x, spatial, strides)
        strides, taps = (1,) * len(strides), taps[::-1]
    x = tf.pad(x, [(0, 0), *low_high, (0, 0)])
    padded = [size + low + high for size, (low, high) in zip(spatial, low_high, strict=True)]
    stride = np.cumprod([1, *padded[:0:-1]])[::-1]
    offsets = taps @ stride
    positions = tf.constant(_grid(out, strides) @ stride, tf.int32)
    chosen = tf.gather(positions, _sample(math.prod(out), limit, seed))
    index = chosen[:, None] + tf.constant(offsets, tf.int32)[None]
    channels = x.shape[-1]
    flat = tf.reshape(x, [tf.shape(x)[0], math.prod(padded), channels])
    rows = tf.gather(flat, index, axis=1)
    return tf.reshape(rows, [tf.shape(x)[0], -1, len(offsets) * channels])


def output_rows(patches: Patches, y: Any, limit: int, seed: Any) -> Any:
    """Returns what the layer makes of the rows that `input_rows` returns.

    Args:
        patches: How the layer reads its input.
        y: The layer's output, `(batch, …, outputs)`.
        limit: As for `input_rows`.
        seed: As for `input_rows`.

    Returns:
        Tensor `(batch, positions, outputs)`.
    """
    if patches.steps:
        return _of_steps(patches, y, limit, seed, output_rows)
    y = _channels_last(y) if patches.channels_first else y
    return _sampled_rows(y[..., patches.of_group(y.shape[-1])], limit, seed)


def _of_steps(patches: Patches, x: Any, limit: int, seed: Any, read: Callable[..., Any]) -> Any:
    count = tf.shape(x)[1] if x.shape[1] is None else int(x.shape[1])
    x = tf.gather(x, _sample(count, limit, seed), axis=1)
    shape = tf.shape(x)
    flat = tf.reshape(x, tf.concat([[shape[0] * shape[1]], shape[2:]], 0))
    flat = tf.ensure_shape(flat, [None, *x.shape[2:]])
    each = limit // min(count, limit) if isinstance(count, int) else 1
    rows = read(replace(patches, steps=patches.steps - 1), flat, each, seed)
    return tf.reshape(rows, [shape[0], -1, rows.shape[-1]])


def _channels_last(x: Any) -> Any:
    return tf.transpose(x, [0, *range(2, len(x.shape)), 1])


def _spread_out(x: Any, spatial: list[int], strides: tuple[int, ...]) -> tuple[Any, list[int]]:
    """A tensor with `stride - 1` zeros after each position of each spatial axis; its extents."""
    wide = [size * stride for size, stride in zip(spatial, strides, strict=True)]
    for axis, (size, stride) in enumerate(zip(spatial, strides, strict=True), 1):
        if stride > 1:
            ends = tf.pad(x, [(0, int(i == axis)) for i in range(len(x.shape))])
            index = np.full(size * stride, size)
            index[::stride] = np.arange(size)
            x = tf.gather(ends, index, axis=axis)
    return x, wide


def _sampled_rows(x: Any, limit: int, seed: Any) -> Any:
    """The channels at some positions of a tensor, `(batch, positions, channels)`."""
    rows = tf.reshape(x, [tf.shape(x)[0], -1, x.shape[-1]])
    places = x.shape[1:-1]
    count = tf.shape(rows)[1] if None in places else math.prod(places)
    return tf.gather(rows, _sample(count, limit, seed), axis=1)


def _grid(counts: Any, steps: Any) -> Any:
    points = itertools.product(*(range(n) for n in counts))
    return np.array(list(points), np.int64).reshape(-1, len(counts)) * np.array(steps)


def _sample(count: Any, limit: int, seed: Any) -> Any:
    """Numbers of at most `limit` of `count` positions, all of them where there are no more."""
    if isinstance(count, int) and count <= limit:
        return tf.range(count)
    order = tf.argsort(tf.random.stateless_uniform([count], seed))
    return order[:limit]
