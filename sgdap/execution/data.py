"""Batches of calibration data from everything that `fit` takes; never more than asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sgdap._arguments import shown

Batch = tuple[Any, Any, Any]
"""Inputs, targets or None, sample weights or None."""


def batches(
    data: Any, batch_size: int, limit: int | None, most: int | None = None
) -> Iterator[Batch]:
    """Yields batches of calibration data.

    Args:
        data: An array, tensor, list or dict of model inputs; a tuple `(x, y)` or
            `(x, y, sample_weight)` of them; a `tf.data.Dataset`, `keras.utils.PyDataset` or
            iterable of batches.
        batch_size: Samples in a batch; data that comes in batches keeps its own size.
        limit: Stop after this many samples; None takes all.
        most: Batches of more samples are cut into several; None: they stay whole.

    Yields:
        `(x, y, sample_weight)`.

    Raises:
        ValueError: There is no sample, or the arrays differ in length.
        TypeError: `data` is None or of an unknown kind.
    """
    seen = 0
    for batch in _all_batches(data, batch_size):
        count = _length(batch[0])
        if count == 0:
            continue
        if limit is not None and seen + count > limit:
            batch = _head(batch, limit - seen)
            count = limit - seen
        if count:
            yield from _cut(batch, count, most or count)
        seen += count
        if limit is not None and seen >= limit:
            break
    if not seen:
        raise ValueError(
            "The calibration data are empty: no sample was received. Pass some hundred inputs of "
            "the kind that the model is trained on."
        )


def reusable(data: Any, limit: int | None) -> Any:
    """Returns data that can be read again and again.

    Args:
        data: As `batches` takes it.
        limit: How many samples of an iterator to read, which gives them only once; None: all.

    Returns:
        `data` itself, or the inputs that an iterator gave, in a tuple, and their targets if all
        batches have such that fit together.
    """
    if not hasattr(data, "__next__"):
        return data
    inputs, targets, _ = zip(*batches(data, limit or 1, limit), strict=True)
    shapes = [[np.shape(leaf) for leaf in keras.tree.flatten(y)] for y in targets]
    alike = {str([shape[1:] for shape in own]) for own in shapes}
    if len(alike) > 1 or not all(shape for own in shapes for shape in own):
        return (_joined(inputs),)
    return _joined(inputs), _joined(targets)


def known_length(data: Any, limit: int | None) -> int | None:
    """How many samples are read of data, where that is known before: of arrays.

    Args:
        data: As `batches` takes it.
        limit: How many are read at most; None: all.
    """
    if not isinstance(data, (np.ndarray, tf.Tensor, list, dict, tuple)):
        return None
    first = keras.tree.flatten(data)[:1]  # of inputs: they come before targets
    shape: tuple[int, ...] = tuple(getattr(first[0], "shape", ())) if first else ()
    return min(int(shape[0]), limit or int(shape[0])) if shape else None


def joined(data: Any, limit: int | None = None) -> Batch:
    """Reads data into arrays.

    Args:
        data: As `batches` takes it.
        limit: Stop after this many samples; None takes all.

    Returns:
        `(x, y, sample_weight)`; the last two are None where there are none.

    Raises:
        ValueError: There is no sample, the batches do not fit together, or a dataset has no end.
        TypeError: `data` is None or of an unknown kind.
    """
    if limit is None:
        check_ends(data)
    read = list(batches(data, sys.maxsize, limit))
    first, *others = ([leaf is not None for leaf in keras.tree.flatten(b)] for b in read)
    try:
        if any(other != first for other in others):
            raise ValueError("not all have targets or sample weights")
        whole: Batch = keras.tree.map_structure(
            lambda *leaves: None if leaves[0] is None else np.concatenate(leaves), *read
        )
    except ValueError as error:  # samples of several lengths, say
        raise ValueError(
            f"The batches of the data can't be put together: {error}. Pass arrays, or batches "
            "whose samples have one shape."
        ) from error
    return whole


def check_ends(data: Any) -> None:
    """Raises if all of some data can't be read.

    Raises:
        ValueError: It is a dataset without an end.
    """
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "The dataset never ends, and all of it would be read. Pass a part of it: "
            "dataset.take(100) has 100 batches."
        )


def can_be_read_again(x: Any) -> bool:
    """Whether what `fit` or `evaluate` is given as inputs is still there after it was read."""
    again = (tf.data.Dataset, tf.distribute.DistributedDataset, keras.utils.PyDataset)
    return isinstance(x, again) or all(
        leaf is None or hasattr(leaf, "shape") for leaf in keras.tree.flatten(x)
    )


def comes_in_batches(x: Any) -> bool:
    """Whether what `fit` is given as inputs are batches; else they are arrays."""
    return hasattr(x, "element_spec") or hasattr(x, "num_batches")


def first_sample(data: Any) -> Any:
    """The model inputs of the first sample, or zeros of its shape where a dataset tells that.

    Args:
        data: As `batches` takes it.

    Raises:
        ValueError: There is no sample, or the arrays differ in length.
        TypeError: `data` is None or of an unknown kind.
    """
    if isinstance(data, tf.data.Dataset):  # one that shuffles draws anew whenever it is read
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data.element_spec)
        specs = keras.tree.flatten(x)
        if not any(spec.shape.rank is None or None in spec.shape[1:] for spec in specs):
            return keras.tree.map_structure(lambda s: tf.zeros([1, *s.shape[1:]], s.dtype), x)
    return next(batches(data, 1, 1))[0]


def _joined(parts: Sequence[Any]) -> Any:
    return keras.tree.map_structure(lambda *leaves: np.concatenate(leaves), *parts)


def _all_batches(data: Any, batch_size: int) -> Iterator[Batch]:
    if data is None:
        raise TypeError(
            "Calibration data are needed. Pass an array of inputs, a tuple (x, y), a "
            "tf.data.Dataset or a keras.utils.PyDataset. Received: None"
        )
    if isinstance(data, tf.data.Dataset):
        for element in data:
            batch = keras.utils.unpack_x_y_sample_weight(element)
            _check_is_batch(batch, data.element_spec)
            yield batch
    elif isinstance(data, keras.utils.PyDataset):
        for index in range(data.num_batches or 0):
            yield keras.utils.unpack_x_y_sample_weight(data[index])
    elif isinstance(data, (np.ndarray, tf.Tensor, list, dict, tuple)):
        yield from _sliced(data, batch_size)
    elif not isinstance(data, (str, bytes)) and hasattr(data, "__iter__"):
        for element in data:
            yield keras.utils.unpack_x_y_sample_weight(element)
    else:
        raise TypeError(
            "Calibration data must be an array, a list or dict of arrays, a tuple (x, y), a "
            f"tf.data.Dataset, a keras.utils.PyDataset or a generator. Received: {shown(data)} (of "
            f"type {type(data).__name__})"
        )


def _sliced(data: Any, batch_size: int) -> Iterator[Batch]:
    x, y, weight = data, None, None
    if isinstance(data, tuple):  # a list is one of model inputs
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    if any(hasattr(leaf, "toarray") for leaf in keras.tree.flatten(x)):
        raise TypeError(
            "Calibration data must be dense arrays. Received a sparse matrix: pass x.toarray()."
        )
    x, y, weight = keras.tree.map_structure(
        lambda leaf: leaf if leaf is None or hasattr(leaf, "shape") else np.asarray(leaf),
        (x, y, weight),
    )
    lengths = {_length(leaf) for leaf in keras.tree.flatten((x, y, weight)) if leaf is not None}
    if len(lengths) > 1:
        raise ValueError(
            f"The arrays of the calibration data differ in length: {sorted(lengths)} samples. Pass "
            "equally many of each. A tuple is read as (inputs, targets, sample weights), a list as "
            "several inputs."
        )
    for start in range(0, max(lengths, default=0), batch_size):
        stop = start + batch_size
        yield keras.tree.map_structure(
            lambda leaf, start=start, stop=stop: None if leaf is None else leaf[start:stop],
            (x, y, weight),
        )


def _check_is_batch(batch: Batch, shapes: Any) -> None:
    for part in batch:
        leaves = [leaf for leaf in keras.tree.flatten(part) if leaf is not None]
        if leaves and not any(tuple(getattr(leaf, "shape", (None,))) for leaf in leaves):
            raise ValueError(
                "The elements of the dataset are no batches but single samples. Received: "
                f"{shown(shapes)}. Pass dataset.batch(32)."
            )


def _length(x: Any) -> int:
    first = keras.tree.flatten(x)[0]
    shape: tuple[int, ...] = tuple(getattr(first, "shape", ()))
    if not shape:
        raise TypeError(
            "Each calibration input must be an array with a batch axis. "
            f"Received: {shown(first)} (of type {type(first).__name__})"
        )
    return int(shape[0])


def _cut(batch: Batch, count: int, most: int) -> Iterator[Batch]:
    if count <= most:
        yield batch
        return
    for start in range(0, count, most):
        yield keras.tree.map_structure(
            lambda leaf, start=start: None if leaf is None else leaf[start : start + most], batch
        )


def _head(batch: Batch, count: int) -> Batch:
    head: Batch = keras.tree.map_structure(
        lambda leaf: None if leaf is None else leaf[:count], batch
    )
    return head


def rows_of(arrays: Any, rows: Any) -> Any:
    """Some rows of arrays in any structure; where there is None there is None.

    Args:
        arrays: Arrays that begin with the same axis, in Keras' structure.
        rows: Numbers of the rows, a mask or a slice.
    """
    return keras.tree.map_structure(lambda own: None if own is None else own[rows], arrays)


def saved_dataset(path: Path) -> Any:
    """A `tf.data.Dataset` that its `save` wrote into a folder."""
    return tf.data.Dataset.load(str(path))
