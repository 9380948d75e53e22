"""Statistics that several workers collected, each of data of its own, brought together."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.execution.workers import of_all_workers
from sgdap.statistics.collect import CalibrationStatistics, ConsumerStatistics
from sgdap.statistics.moments import Moments

Array = npt.NDArray[np.float64]
Kept = dict[tuple[str, str, str], Array]
"""All arrays of some statistics, by consumer, field and name within the field."""


def merge_across_workers(statistics: CalibrationStatistics, strategy: Any) -> CalibrationStatistics:
    """Merges the statistics that each worker of a strategy collected; all workers get the same.

    Moments of disjoint data merge exactly, fold by fold: they are those of one pass over the data
    of all workers. Sensitivities are averaged over all samples.

    Workers must have kept the same, so give each the same `memory_limit`: the default follows the
    memory of each machine. Where a limit allows for contributions of whole channels only, these are
    weighted with each worker's own sensitivity and can't be merged.

    Args:
        statistics: What this worker collected. Every worker must call this at the same time, with
            statistics of the same model.
        strategy: The `tf.distribute.Strategy`, `MultiWorkerMirroredStrategy` say, with as many
            replicas on each worker.

    Returns:
        The statistics of all workers' data.

    Raises:
        ValueError: If the workers kept different things, or what they kept can't be merged. It is
            raised on all of them.

    Example:
        >>> import tensorflow as tf
        >>> strategy = tf.distribute.get_strategy()
        >>> with strategy.scope():
        ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8),
        ...                               keras.layers.Dense(2)])
        >>> mine = sgdap.collect_statistics(sgdap.channel_graph(model), np.random.rand(50, 4))
        >>> sgdap.statistics.merge_across_workers(mine, strategy).samples
        50
    """
    kept = _kept(statistics)
    _check_they_merge(statistics, kept, strategy)
    row = np.concatenate([[float(statistics.samples)], *(a.reshape(-1) for a in kept.values())])
    rows = of_all_workers(row, strategy)
    parts = [_unpacked(own[1:], kept) for own in rows]
    samples = [int(own[0]) for own in rows]
    merged = {
        path: _merged(path, own, parts, samples) for path, own in statistics.consumers.items()
    }
    return replace(statistics, samples=sum(samples), consumers=merged)


def _merged(
    path: str, own: ConsumerStatistics, parts: list[Kept], samples: list[int]
) -> ConsumerStatistics:
    """One consumer's statistics of all workers."""

    def moments(field: str, known: Moments) -> Moments:
        names = known.arrays()
        every = [replace(known, **{n: part[path, field, n] for n in names}) for part in parts]
        return reduce(Moments.merged, every)

    def mean(field: str, known: Array | None) -> Any:
        if known is None:
            return None
        return np.average([part[path, field, ""] for part in parts], axis=0, weights=samples)

    return replace(
        own,
        moments=moments("moments", own.moments),
        sensitivity=mean("sensitivity", own.sensitivity),
        taylor=mean("taylor", own.taylor),
        gathered=None if own.gathered is None else moments("gathered", own.gathered),
    )


def _kept(statistics: CalibrationStatistics) -> Kept:
    kept: Kept = {}
    for path, own in statistics.consumers.items():
        for field, value in vars(own).items():
            if isinstance(value, Moments):
                kept.update({(path, field, name): a for name, a in value.arrays().items()})
            elif isinstance(value, np.ndarray):
                kept[path, field, ""] = value
    return kept


def _check_they_merge(statistics: CalibrationStatistics, kept: Kept, strategy: Any) -> None:
    """Raises if the workers kept different things, or what only one of them can use."""
    shapes = repr([(*key, array.shape) for key, array in kept.items()])
    digest = np.frombuffer(hashlib.sha256(shapes.encode()).digest(), np.uint8)
    weighted = [
        path
        for path, own in statistics.consumers.items()
        if own.gathered is not None and own.sensitivity is not None
    ]
    of_all = of_all_workers(np.append(digest.astype(np.int64), bool(weighted)), strategy)
    if len(of_all) > 1 and all(own[-1] for own in of_all):
        raise ValueError(
            "Contributions of whole channels are weighted with each worker's own sensitivity, "
            f"so they can't be merged: {', '.join(weighted)}. Collect them again with a larger "
            "memory_limit on all workers, or with sensitivity=False."
        )
    given_up = " ".join(statistics.notes) or "Nothing was given up for memory here."
    if any((own != of_all[0]).any() for own in of_all):
        raise ValueError(
            f"The workers kept different statistics, which can't be merged. {given_up} Collect "
            "them again with one memory_limit for all workers: collect_statistics(graph, data, "
            "memory_limit=bytes)."
        )


def _unpacked(row: Array, kept: Kept) -> Kept:
    """Arrays of the shapes of `kept` from all their numbers in a row."""
    ends = np.cumsum([array.size for array in kept.values()])
    pieces = np.split(row, ends[:-1])
    return {
        key: piece.reshape(array.shape)
        for (key, array), piece in zip(kept.items(), pieces, strict=True)
    }
