"""Runs a model over calibration data and yields what each batch adds for each consumer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.channels.groups import ChannelGraph
from sgdap.execution.batch_sums import Gathering, make_step
from sgdap.execution.data import known_length
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
        weighed: How many of them have gradients.
        shifts: The points about which sums are taken, the same for all batches of a run.
        sums: For each consumer and fold its sums by name, one after another. The fold is None for
            the sums `sensitivity` and `taylor` over all of them.
    """

    samples: int
    weighed: int
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
    gradient_samples: int | None = None,
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
        gradient_samples: About how many samples, spread over all of them, have gradients where
            gradients are gathered; None: all.
        shifts: The points about which sums are taken; None: the means of the first batch.

    Yields:
        `BatchSums` of each batch. The last one has no sample: it brings what waited till then.
    """
    step = make_step(graph, replace(gathering, gradients=False))
    both = make_step(graph, gathering)
    weigh = make_step(graph, replace(gathering, rows=False))
    total = known_length(data, samples)
    fixed = graph.program.shapes[graph.program.inputs[0].index][0] is not None
    wanted = None if fixed else gradient_samples
    sums = {path: RowSums(path, gathering) for path in gathering.places}
    around: Shifts = {}
    if shifts is not None:
        around = {path: own.astype(np.float32) for path, own in shifts.items()}
    seen = 0
    for number, inputs in input_batches(graph, data, batch_size, samples, most):
        size, random = int(inputs[0].shape[0]), tf.constant([seed, number], tf.int32)
        every = 1
        if wanted is not None:
            every = max((seen + size) // wanted if total is None else math.ceil(total / wanted), 1)
        weighed = len(range(-seen % every, size, every))
        if not gathering.gradients or not weighed:
            found, weighed = step(inputs, random), 0
        elif weighed == size:
            found = both(inputs, random)
        else:
            found = step(inputs, random)
            chosen = [tensor[-seen % every :: every] for tensor in inputs]
            for path, own in weigh(chosen, random).items():
                found[path].update(own)
        if not around:
            around = {path: _mean(own["rows"]) for path, own in found.items()}
        yield BatchSums(size, weighed, around, _sums(found, sums, seen % gathering.folds, around))
        seen += size
    yield BatchSums(0, 0, around, _rests(sums, around))


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
        for fold, of_fold in sums[path].add(rows, first, tf.constant(around[path])):
            yield path, fold, of_fold


def _rests(sums: Mapping[str, RowSums], around: Shifts) -> Iterator[tuple[str, int | None, Sums]]:
    for path, own in sums.items():
        for fold, of_fold in own.rest(tf.constant(around[path])):
            yield path, fold, of_fold
