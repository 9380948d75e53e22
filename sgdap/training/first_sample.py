"""A sample of the training data before the first epoch, and whether the model knows them already.

It trains nothing and leaves no trace in the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sgdap import _keras
from sgdap.execution.data import Batch, batches, can_be_read_again
from sgdap.model.generators import random_state, set_random_state
from sgdap.training.baseline import state_kept

TRAINED = 0.5
"""A model is trained if its loss is at most this share of that with its targets mixed up."""

_ASKED = 1024
"""The most samples whose loss is measured."""

_TESTED = 32
"""The samples whose loss is measured at a time."""

_BATCH = 128
"""The rows of an array that are read at a time."""


def known_samples(
    model: Any, calibration_data: Any, samples: int | None, limit: int, seed: int
) -> tuple[Any, Any] | None:
    """Returns samples whose targets a model tells before its `fit` trains it.

    Rows of arrays and batches of a `keras.utils.PyDataset` are drawn at random; of a
    `tf.data.Dataset` the first ones are read. The model, and the generators of Python, NumPy and
    Keras are as before.

    Args:
        model: The model in its `fit`.
        calibration_data: The user's calibration data, which count where those of `fit` can't be
            read; None: there are none.
        samples: The most samples; None: as many as fit into `limit`.
        limit: The most bytes of the inputs.
        seed: Seed for the choice.

    Returns:
        Inputs and targets in arrays; None where the model doesn't tell the targets, or no data can
        be read without taking them away from `fit`.
    """
    for data in (_keras.training_data(model), calibration_data):
        if isinstance(data, tuple) and len(data) > 1 and can_be_read_again(data[0]):
            found = drawn_sample(data[0], data[1], samples, limit, seed)
            return found if found is not None and is_trained(model, *found) else None
    return None


def drawn_sample(
    x: Any, y: Any, samples: int | None, limit: int, seed: int
) -> tuple[Any, Any] | None:
    """Reads some training data; see `known_samples`.

    Returns:
        Inputs and targets; None where samples differ in shape or there is none that fits.
    """
    drawn = random_state()
    try:
        return _joined(_drawn((x, y), samples, seed), limit)
    except (TypeError, ValueError, IndexError):  # no rows of arrays: training tells the user why
        return None
    finally:
        set_random_state(drawn)


def is_trained(model: Any, x: Any, y: Any) -> bool:
    """Whether a model tells the targets of its inputs.

    Its loss is compared with the loss for the targets of other samples. A new model, or one with a
    new head, has about the same for both, whatever the loss.

    Args:
        model: The compiled model.
        x: Inputs, with a leading batch axis.
        y: Their targets; None: it can't be told.
    """
    if any(leaf is None for leaf in keras.tree.flatten(y)):
        return False
    x, y = keras.tree.map_structure(lambda leaf: leaf[:_ASKED], (x, y))
    other = np.random.default_rng(0).permutation(len(keras.tree.flatten(y)[0]))
    mixed = keras.tree.map_structure(lambda leaf: leaf[other], y)
    try:
        with state_kept(model):
            right, wrong = (_loss(model, x, targets) for targets in (y, mixed))
    except Exception:  # a test step of the user's own may raise anything
        return False
    return wrong > 0 and right <= TRAINED * wrong


def _loss(model: Any, x: Any, y: Any) -> float:
    """The loss of samples, in batches of the size that `evaluate` takes.

    To set up the data that `evaluate` reads takes longer than the losses of a small model.
    """
    x, y = keras.tree.map_structure(_in_precision_of_keras, (x, y))
    count = len(keras.tree.flatten(y)[0])
    count -= count % _TESTED if count > _TESTED else 0  # a smaller batch would be traced anew
    total = 0.0
    for start in range(0, count, _TESTED):
        rows = slice(start, min(start + _TESTED, count))
        part = keras.tree.map_structure(lambda leaf, rows=rows: leaf[rows], (x, y))
        found = model.test_on_batch(*part, return_dict=True)["loss"]
        total += float(found) * (rows.stop - rows.start)
    return total / count


def _in_precision_of_keras(leaf: Any) -> Any:
    is_float = leaf.dtype.kind == "f"
    return leaf.astype(keras.config.floatx()) if is_float else leaf


def _drawn(data: tuple[Any, Any], samples: int | None, seed: int) -> Iterator[Batch]:
    """Batches of training data, of `samples` samples at most."""
    random = np.random.default_rng(seed)
    x = data[0]
    source: Any = x
    if isinstance(x, keras.utils.PyDataset):
        source = (x[int(i)] for i in random.permutation(x.num_batches))
    elif not isinstance(x, tf.data.Dataset):
        x, y = _arrays(data)
        order = random.permutation(len(keras.tree.flatten(x)[0]))[:samples]
        parts = (np.sort(order[i : i + _BATCH]) for i in range(0, len(order), _BATCH))
        source = (
            keras.tree.map_structure(
                lambda leaf, rows=rows: None if leaf is None else leaf[rows], (x, y)
            )
            for rows in parts
        )
    return batches(source, 1, samples)


def _joined(found: Iterator[Batch], limit: int) -> tuple[Any, Any] | None:
    """The samples in arrays, as far as they fit into `limit` bytes."""
    kept: list[Any] = []
    size = 0
    for x, y, _ in found:
        part = _arrays((x, y))
        size += sum(leaf.nbytes for leaf in keras.tree.flatten(part[0]))
        if size > limit:
            break
        kept.append(part)
    if not kept:
        return None
    joined: tuple[Any, Any] = keras.tree.map_structure(
        lambda *rows: None if rows[0] is None else np.concatenate(rows), *kept
    )
    return joined


def _arrays(data: Any) -> Any:
    return keras.tree.map_structure(lambda leaf: None if leaf is None else np.asarray(leaf), data)
