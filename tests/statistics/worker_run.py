"""Two processes that collect statistics together, for `test_workers.py`."""

import json
import os
import sys
import time
import traceback

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import sgdap
from sgdap.statistics import merge_across_workers

SAMPLES, FIRST_OF_SECOND = 60, 25  # a multiple of the five folds


def net() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "relu", name="one"),
            layers.Dense(5, "relu", name="two"),
            layers.Dense(3, "softmax", name="three"),
        ]
    )


def data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(SAMPLES, 6)).astype("float32")


def arrays(statistics) -> dict[str, np.ndarray]:
    found = {"samples": np.array(statistics.samples)}
    for path, consumer in statistics.consumers.items():
        found.update({f"{path}/{name}": a for name, a in vars(consumer.moments).items()})
        found[f"{path}/sensitivity"] = consumer.sensitivity
        found[f"{path}/taylor"] = consumer.taylor
    return found


def run(path: str) -> None:
    """Collects the statistics of this process' part of the data, and those of both."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    second = strategy.cluster_resolver.task_id == 1
    mine = data()[FIRST_OF_SECOND:] if second else data()[:FIRST_OF_SECOND]
    with strategy.scope():
        model = net()
        own = sgdap.collect_statistics(sgdap.channel_graph(model), mine, batch_size=10)
    merged = arrays(merge_across_workers(own, strategy))
    own_arrays = {f"own/{name}": value for name, value in arrays(own).items()}
    np.savez(path, **merged, **own_arrays)


def wait_for(paths: list[str]) -> None:
    """Waits until all have written: one that ends closes the connection that others still read."""
    until = time.monotonic() + 60
    while not all(map(os.path.exists, paths)) and time.monotonic() < until:
        time.sleep(0.05)


def main(folder: str, *ports: str) -> None:
    """Runs a process for each port; it ends with an error if one of them does."""
    workers = [f"127.0.0.1:{port}" for port in ports]
    processes = []
    for index in range(len(workers)):
        process = os.fork()  # TensorFlow is imported but has not started anything yet
        if not process:
            task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            os.environ["TF_CONFIG"] = json.dumps(task)
            try:
                run(f"{folder}/{index}.npz")
                wait_for([f"{folder}/{other}.npz" for other in range(len(workers))])
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        processes.append(process)
    sys.exit(any([os.waitpid(process, 0)[1] for process in processes]))


if __name__ == "__main__":
    main(*sys.argv[1:])
