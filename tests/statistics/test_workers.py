"""Workers that look at parts of the data get the statistics of all of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

import sgdap
from sgdap.statistics import merge_across_workers
from tests.statistics.worker_run import arrays, data, net

ROOT = Path(__file__).parents[2]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def run_workers(folder: Path) -> list[dict[str, np.ndarray]]:
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    running = []
    for index in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.statistics.worker_run", str(folder / f"{index}.npz")],
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [dict(np.load(folder / f"{index}.npz")) for index in range(2)]


def test_two_workers_get_the_moments_of_one_pass_over_all_data(tmp_path):
    results = run_workers(tmp_path)
    whole = arrays(sgdap.collect_statistics(sgdap.channel_graph(net()), data(), batch_size=10))
    for name, expected in whole.items():
        first, second = (result[name] for result in results)
        np.testing.assert_array_equal(first, second)
        if not name.endswith(("sensitivity", "taylor")):  # their targets are drawn at random
            np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-5, err_msg=name)
    own = [(25, results[0]), (35, results[1])]
    for name in ("three/sensitivity", "three/taylor"):
        mean = sum(samples * result[f"own/{name}"] for samples, result in own) / 60
        np.testing.assert_allclose(results[0][name], mean, rtol=1e-12)


def test_one_worker_keeps_its_own_statistics():
    statistics = sgdap.collect_statistics(sgdap.channel_graph(net()), data())
    merged = merge_across_workers(statistics, tf.distribute.get_strategy())
    for name, expected in arrays(statistics).items():
        np.testing.assert_allclose(arrays(merged)[name], expected, rtol=1e-12, atol=1e-12)
