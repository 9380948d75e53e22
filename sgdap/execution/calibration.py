"""Runs a model over calibration data and yields what each batch adds for each consumer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap import _keras
from sgdap.channels.groups import ChannelGraph
from sgdap.execution.batch_sums import Gathering, make_step
from sgdap.execution.inputs import input_batches

Shifts = dict[str, npt.NDArray[np.float32]]
"""For each consumer the point about which sums are taken, `(features,)`."""


@dataclass(frozen=True, eq=False)
class BatchSums:
    """What one batch adds.

    Attributes:
        samples: Samples in the batch.
        shifts: The points about which sums are taken, the same for all batches of a run.
        sums: For each consumer its sums by name, tensors with a method `numpy`.
    """

    samples: int
    shifts: Shifts
    sums: dict[str, dict[str, Any]]


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
    """Runs a model over data in inference mode.

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
    around: Shifts = {
        path: np.zeros(len(places[0].features), np.float32)
        for path, places in gathering.places.items()
    }
    if shifts is not None:
        around = {path: own.astype(np.float32) for path, own in shifts.items()}
    seen = 0
    with _keras.recurrent_states_kept(graph.program.model):
        for number, inputs in input_batches(graph, data, batch_size, samples, most):
            random = tf.constant([seed, number], tf.int32)
            first = tf.constant(seen % gathering.folds)  # fold of the first sample
            if shifts is None and not seen:
                for path, own in step(inputs, random, first, _tensors(around)).items():
                    count = max(float(own["count"].numpy().sum()), 1.0)
                    around[path] = own["total"].numpy().sum(0) / np.float32(count)
            size = int(inputs[0].shape[0])
            yield BatchSums(size, around, step(inputs, random, first, _tensors(around)))
            seen += size


def _tensors(arrays: Shifts) -> dict[str, Any]:
    return {path: tf.constant(own) for path, own in arrays.items()}
