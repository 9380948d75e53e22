"""Statistics that several workers collected, each of data of its own, brought together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.execution.workers import of_all_workers
from sgdap.statistics.collect import CalibrationStatistics
from sgdap.statistics.moments import Moments

Array = npt.NDArray[np.float64]


def merge_across_workers(statistics: CalibrationStatistics, strategy: Any) -> CalibrationStatistics:
    """Merges the statistics that each worker of a strategy collected; all workers get the same.

    Moments of disjoint data merge exactly, fold by fold: they are those of one pass over the data
    of all workers. Sensitivities are averaged over all samples.

    Args:
        statistics: What this worker collected. Every worker must call this at the same time, with
            statistics of the same model.
        strategy: The `tf.distribute.Strategy`, `MultiWorkerMirroredStrategy` say, with as many
            replicas on each worker.

    Returns:
        The statistics of all workers' data.

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
    shapes = [array.shape for array in _arrays(statistics)]
    parts = [_unpacked(row, shapes) for row in of_all_workers(_packed(statistics), strategy)]
    samples = [int(part[0]) for part in parts]
    place = 1
    merged = {}
    for path, consumer in statistics.consumers.items():
        stop = place + len(fields(Moments))
        moments = reduce(Moments.merged, (Moments(*part[place:stop]) for part in parts))
        place = stop
        means: dict[str, Any] = {}
        for name in ("sensitivity", "taylor"):
            if getattr(consumer, name) is not None:
                means[name] = np.average([p[place] for p in parts], axis=0, weights=samples)
                place += 1
        merged[path] = replace(consumer, moments=moments, **means)
    return CalibrationStatistics(sum(samples), merged)


def _arrays(statistics: CalibrationStatistics) -> Iterator[Array]:
    yield np.array(float(statistics.samples))
    for consumer in statistics.consumers.values():
        moments = consumer.moments
        yield from (own for _, own in moments._arrays())
        yield from (a for a in (consumer.sensitivity, consumer.taylor) if a is not None)


def _packed(statistics: CalibrationStatistics) -> Array:
    return np.concatenate([array.reshape(-1) for array in _arrays(statistics)])


def _unpacked(row: Array, shapes: list[tuple[int, ...]]) -> list[Array]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    pieces = np.split(row, ends[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
