"""Sums over the rows that one consumer reads, one fold at a time: the matrices are large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.execution import triangle
from sgdap.execution.batch_sums import Gathering
from sgdap.execution.rows import Rows

WAITING = 4
"""Rows wait until they are this part of the features (a fourth): adding up matrices takes time.
They do not where less than all products is kept, which takes less memory than such rows."""

BLOCK_BYTES = 1 << 26
"""Memory for the contributions of all channels to some outputs, of one batch's rows."""

Sums = dict[str, Any]
"""Sums by name: arrays, and of products of features the block rows of a triangle."""


class RowSums:
    """Adds up the rows of one consumer about a point.

    Args:
        path: Path of the consumer.
        gathering: What is gathered.
    """

    def __init__(self, path: str, gathering: Gathering) -> None:
        self._folds = gathering.folds_of(path)
        self._waiting: list[list[Any]] = [[] for _ in range(self._folds)]
        self._kept = gathering.kept_of(path)
        self._alone = gathering.storage[path].level == "alone"
        self._weights: tuple[Any, Any] | None = None
        if path in gathering.weights:
            features = gathering.places[path][0].features
            rows = 256 * gathering.positions // gathering.folds + 1
            self._weights = by_channel(features, gathering.weights[path], rows)

    def add(self, parts: list[Rows], first: int, shift: Any) -> Iterator[tuple[int, Sums]]:
        """Takes a batch's rows, and yields the sums of each fold where enough of them wait.

        Args:
            parts: The rows of each of the consumer's calls.
            first: Fold of the batch's first sample; the next sample is in the next fold.
            shift: The point, `(features,)`.
        """
        for fold, waiting in enumerate(self._waiting):
            waiting += [part.of((fold - first) % self._folds, self._folds) for part in parts]
            enough = shift.shape[0] if self._kept == "all" else 0
            if WAITING * sum(int(rows.shape[0]) for rows in waiting) >= enough:
                yield from self._rest(fold, shift)

    def rest(self, shift: Any) -> Iterator[tuple[int, Sums]]:
        """Yields the sums of the rows that still wait, by fold."""
        for fold in range(self._folds):
            yield from self._rest(fold, shift)

    def _rest(self, fold: int, shift: Any) -> Iterator[tuple[int, Sums]]:
        waiting, self._waiting[fold] = self._waiting[fold], []
        rows = tf.concat(waiting, 0) if waiting else None
        if rows is not None and rows.shape[0]:
            yield fold, keras.tree.map_structure(np.asarray, self._sums(rows, rows - shift))

    def _sums(self, rows: Any, apart: Any) -> dict[str, Any]:
        sums = {"count": float(rows.shape[0]), "total": tf.reduce_sum(apart, 0)}
        if self._kept == "none":
            return sums
        sums["zeros"] = tf.reduce_sum(tf.cast(tf.equal(rows, 0), tf.float32), 0)
        sums["absolute"] = tf.reduce_sum(tf.abs(rows), 0)
        if self._kept == "all":
            sums["square"] = [
                tf.matmul(apart[:, i : i + triangle.BLOCK], apart[:, i:], transpose_a=True)
                for i in triangle.starts(apart.shape[1])
            ]
        else:
            sums["square"] = tf.reduce_sum(apart * apart, 0)
        if self._weights is not None:
            sums["gram"] = gram_of(apart, *self._weights, self._alone)
        return sums


def by_channel(
    features: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], rows: int
) -> tuple[Any, Any]:
    """The features of each channel and its weights, in blocks of outputs.

    Args:
        features: The channel of each feature, `(features,)`.
        weights: `(features, outputs)`.
        rows: How many rows there are at most.

    Returns:
        Numbers of the features, `(channels, area)`, one past the last where a channel has fewer;
        weights `(blocks, channels, area, outputs of a block)`, 0 there.
    """
    distinct, number, counts = np.unique(features, return_inverse=True, return_counts=True)
    outputs = weights.shape[1]
    order = np.argsort(number, kind="stable")
    nth = np.arange(len(features)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.full((len(distinct), int(counts.max())), len(features))
    index[number[order], nth] = order
    width = max(min(BLOCK_BYTES // (4 * len(distinct) * rows), outputs), 1)
    padded = np.zeros((len(features) + 1, -(-outputs // width) * width), np.float32)
    padded[:-1, :outputs] = weights
    blocks = padded.reshape(len(padded), -1, width).transpose(1, 0, 2)[:, index]
    return tf.constant(index), tf.constant(blocks)


def gram_of(rows: Any, index: Any, weights: Any, diagonal: bool) -> Any:
    """Sums over the rows of the products of the channels' contributions, block by block.

    Args:
        rows: `(rows, features)`.
        index: As `by_channel` returns it.
        weights: As `by_channel` returns them.
        diagonal: Whether only each channel's own square is summed.
    """
    rows = tf.pad(rows, [[0, 0], [0, 1]])
    of_channels = tf.transpose(tf.gather(rows, index, axis=1), [1, 0, 2])
    channels = index.shape[0]
    gram = tf.zeros([channels] if diagonal else [channels, channels])
    for block in weights:
        made = tf.reshape(tf.matmul(of_channels, block), [channels, -1])
        if diagonal:
            gram += tf.reduce_sum(made * made, 1)
        else:
            gram += tf.matmul(made, made, transpose_b=True)
    return gram
