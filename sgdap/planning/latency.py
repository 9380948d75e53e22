"""Measures how long models take for a batch on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sgdap.graph.groups import channel_graph


def measure_latency(model: Any, batch_size: int = 1, repeats: int = 50) -> float:
    """Median seconds that a model takes for a batch, in a compiled function, after a warm-up."""
    return compare_latency([model], batch_size, repeats)[0]


def compare_latency(models: Sequence[Any], batch_size: int = 1, repeats: int = 50) -> list[float]:
    """Median seconds that each of several models takes for a batch, measured in turn.

    Models that take turns see the same machine, busy or not; so their ratio can be trusted where
    times can't.

    Args:
        models: Built models.
        batch_size: Samples in the batch.
        repeats: How often each is timed, after a warm-up.

    Returns:
        Seconds, one number a model.
    """
    runs = [_timed(model, batch_size) for model in models]
    times = np.array([[run() for run in runs] for _ in range(repeats + 5)])
    return [float(median) for median in np.median(times[5:], axis=0)]


def _timed(model: Any, batch_size: int) -> Callable[[], float]:
    """A function that runs a model once on a batch of zeros and returns the seconds it took."""
    import tensorflow as tf

    graph = channel_graph(model)
    inputs = [
        tf.zeros(
            (shape[0] or batch_size, *(size or 1 for size in shape[1:])),
            graph.program.dtypes[ref.index],
        )
        for ref in graph.program.inputs
        for shape in [graph.program.shapes[ref.index]]
    ]
    compiled = tf.function(lambda *x: graph.program.run_flat(list(x)))

    def run() -> float:
        began = time.perf_counter()
        for output in compiled(*inputs):
            output.numpy()
        return time.perf_counter() - began

    return run
