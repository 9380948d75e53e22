"""Arrays of all workers of a distribution strategy, brought together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf


def of_all_workers(row: npt.NDArray[Any], strategy: Any) -> list[npt.NDArray[Any]]:
    """Returns this worker's numbers and those of all others, in the same order everywhere.

    Args:
        row: Numbers of this worker; each worker has as many.
        strategy: The `tf.distribute.Strategy`, with as many replicas on each worker.
    """
    mine = tf.constant(row[None])
    of_replicas = strategy.run(tf.function(lambda: tf.identity(mine)))
    on_a_worker = len(strategy.experimental_local_results(of_replicas))
    rows = strategy.gather(of_replicas, axis=0).numpy()
    return [np.asarray(row) for row in rows[::on_a_worker]]
