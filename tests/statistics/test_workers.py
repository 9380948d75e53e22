"""Workers that look at parts of the data get the statistics of all of it."""

import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import sgdap
from sgdap.execution.memory import Storage
from sgdap.statistics import merge_across_workers, workers
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
    command = [sys.executable, "-m", "tests.statistics.worker_run", str(folder)]
    command += map(str, free_ports(2))
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
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


class TwoWorkers:
    """Two threads in the place of two workers, which exchange rows as a strategy does."""

    def __init__(self, monkeypatch):
        self.rows, self.both = [None, None], threading.Barrier(2)
        monkeypatch.setattr(workers, "of_all_workers", self.exchange)

    def exchange(self, row, number):
        self.rows[number] = row
        self.both.wait(20)
        found = list(self.rows)
        self.both.wait(20)
        return found

    def merge(self, *statistics):
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(merge_across_workers, s, n) for n, s in enumerate(statistics)]
        return running


def collected(part, monkeypatch, level="folds", **options):
    def choose(sizes, folds, limit, sensitivity):
        return dict.fromkeys(sizes, Storage(level, sensitivity))

    monkeypatch.setattr("sgdap.statistics.collect.choose_storage", choose)
    return sgdap.collect_statistics(
        sgdap.channel_graph(net()), part, folds=5, batch_size=10, **options
    )


def everything_in(statistics):
    return {
        "/".join(key): array
        for key, array in workers._kept(statistics).items()
        if "sensitivity" not in key and "taylor" not in key
    }


@pytest.mark.parametrize("level", ["folds", "merged", "channels", "alone"])
def test_whatever_memory_allowed_for_merges_to_that_of_one_pass(level, monkeypatch):
    parts = data()[:25], data()[25:], data()
    first, second, whole = (
        collected(part, monkeypatch, level, sensitivity=False) for part in parts
    )
    expected = everything_in(whole)
    for run in TwoWorkers(monkeypatch).merge(first, second):
        merged = run.result()
        assert merged.samples == 60
        found = everything_in(merged)
        assert found.keys() == expected.keys()
        for name, array in found.items():
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(array, expected[name], atol=1e-5 * scale, err_msg=name)


def test_notes_of_what_was_given_up_stay(monkeypatch):
    parts = [collected(part, monkeypatch, "merged") for part in (data()[:25], data()[25:])]
    noted = [replace(part, notes=("Given up.",)) for part in parts]
    assert all(r.result().notes == ("Given up.",) for r in TwoWorkers(monkeypatch).merge(*noted))


def test_workers_that_kept_different_things_are_all_refused(monkeypatch):
    first = collected(data()[:25], monkeypatch, "folds")
    second = collected(data()[25:], monkeypatch, "merged")
    for run in TwoWorkers(monkeypatch).merge(first, second):
        with pytest.raises(ValueError, match="kept different.*one memory_limit for all workers"):
            run.result()


def test_contributions_weighted_with_different_sensitivities_are_refused(monkeypatch):
    parts = [collected(part, monkeypatch, "channels") for part in (data()[:25], data()[25:])]
    for run in TwoWorkers(monkeypatch).merge(*parts):
        with pytest.raises(ValueError, match="own sensitivity.*: two, three. Collect them again"):
            run.result()
