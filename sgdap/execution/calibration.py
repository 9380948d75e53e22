"""Runs a model over calibration data and yields what each batch adds for each consumer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.channels.groups import ChannelGraph
from sgdap.execution.batch_sums import Gathering, make_step
from sgdap.execution.inputs import input_batches
from sgdap.execution.row_sums import RowSums, Sums
from sgdap.execution.rows import Rows

Shifts = dict[str, npt.NDArray[np.float32]]
"""For each consumer the point about which sums are taken, `(features,)`."""


@dataclass(frozen=True, eq=False)
class BatchSums:
    """What one batch adds.

    Attributes:
        samples: Samples in the batch.
        shifts: The points about which sums are taken, the same for all batches of a run.
        sums: For each consumer and fold its sums by name, one after another. The fold is None for
            the sums `sensitivity` and `taylor` over all of them.
    """

    samples: int
    shifts: Shifts
    sums: Iterator[tuple[str, int | None, Sums]]


def batch_sums(
    graph: ChannelGraph,
    gathering: Gathering,
    data: Any,
    *,
    batch_size: int,
    samples: int | None,
    most: int,
    seed: int,
    shifts: Mapping[str, npt.NDArray[np.floating]] | None = None,
) -> Iterator[BatchSums]:
    """Runs a model over data in inference mode, each batch from the model's present state.

    Args:
        graph: The model's channels.
        gathering: What is added up.
        data: Inputs as `collect_statistics` takes them.
        batch_size: Samples in a batch, as for `input_batches`.
        samples: Stop after this many samples; None takes all.
        most: Batches of more samples are cut into several.
        seed: Seed for the sampled positions and targets.
        shifts: The points about which sums are taken; None: the means of the first batch.

    Yields:
        `BatchSums` of each batch.
    """
    step = make_step(graph, gathering)
    sums = {path: RowSums(path, gathering) for path in gathering.places}
    around: Shifts = {}
    if shifts is not None:
        around = {path: own.astype(np.float32) for path, own in shifts.items()}
    seen = 0
    for number, inputs in input_batches(graph, data, batch_size, samples, most):
        found = step(inputs, tf.constant([seed, number], tf.int32))
        if not around:
            around = {path: _mean(own["rows"]) for path, own in found.items()}
        first = seen % gathering.folds
        size = int(inputs[0].shape[0])
        yield BatchSums(size, around, _sums(found, sums, first, around))
        seen += size


def _mean(parts: list[Rows]) -> npt.NDArray[np.float32]:
    rows = tf.concat([part.of(0, 1) for part in parts], 0)
    mean: npt.NDArray[np.float32] = np.asarray(tf.reduce_sum(rows, 0) / max(int(rows.shape[0]), 1))
    return mean


def _sums(
    found: dict[str, dict[str, Any]], sums: Mapping[str, RowSums], first: int, around: Shifts
) -> Iterator[tuple[str, int | None, Sums]]:
    for path in list(found):
        own = found.pop(path)
        rows = own.pop("rows")
        if own:
            yield path, None, {name: np.asarray(own.pop(name)) for name in list(own)}
        for fold, of_fold in sums[path].of(rows, first, tf.constant(around[path])):
            yield path, fold, of_fold
