"""What is kept stays under the limit, and what is given up for it is exact as far as it goes."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

import sgdap
from sgdap.execution import memory
from sgdap.execution.batch_sums import Gathering
from sgdap.execution.memory import (
    LEVELS,
    Size,
    Storage,
    batch_memory,
    checked_memory_limit,
    choose_storage,
    free_memory,
    total_memory,
)
from sgdap.execution.row_sums import RowSums
from sgdap.execution.rows import Rows
from sgdap.execution.taps import kernel_matrix
from sgdap.execution.triangle import numbers_kept
from sgdap.statistics.contributions import channel_sums, weighted_kernel
from tests.models import convnet, randomise, samples

GB = 10**9

sizes = st.builds(
    lambda channels, area, outputs: Size(channels * area, channels, outputs, outputs),
    st.integers(1, 300),
    st.integers(1, 30),
    st.integers(1, 300),
)


@given(st.lists(sizes, min_size=1, max_size=6), st.integers(1, 6), st.integers(1, 10**8))
def test_the_total_is_under_the_limit_or_refused(found, folds, limit):
    by_path = {str(i): size for i, size in enumerate(found)}
    try:
        chosen = choose_storage(by_path, folds, limit)
    except ValueError:
        vectors = sum(32 * folds * s.features for s in found)
        least = sum(
            min(Storage(level, "diagonal").bytes(s, folds) for level in LEVELS) for s in found
        )
        assert (vectors + least) * 4 / 3 > limit
        return
    kept = sum(own.bytes(by_path[path], folds) for path, own in chosen.items())
    assert kept + batch_memory(limit) <= limit
    assert kept + max(own.work(by_path[path], folds) for path, own in chosen.items()) <= limit


def test_with_enough_memory_everything_is_kept():
    chosen = choose_storage({"a": Size(90, 10, 4, 4), "b": Size(10, 10, 2, 2)}, 5, 10**9)
    assert set(chosen.values()) == {Storage("folds", "whole")}


def test_folds_of_the_largest_are_merged_before_anything_is_given_up():
    by_path = {"large": Size(900, 100, 10, 10), "small": Size(100, 100, 10, 10)}
    everything = 8 * (5 * 900**2 + 5 * 100**2)
    chosen = choose_storage(by_path, 5, everything * 3 // 5)  # a sum, and work on the largest
    assert (chosen["large"].level, chosen["small"].level) == ("merged", "folds")
    chosen = choose_storage(by_path, 5, 8 * 700**2)
    assert (chosen["large"].level, chosen["small"].level) == ("channels", "merged")


def test_a_sensitivity_of_many_outputs_is_kept_as_its_diagonal():
    chosen = choose_storage({"words": Size(64, 64, 30_000, 30_000)}, 5, 10**9)
    assert chosen["words"] == Storage("merged", "diagonal")


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "1GB"])
def test_a_limit_that_is_no_number_of_bytes_is_refused(limit):
    with pytest.raises(ValueError, match="memory_limit must be an integer of at least 1. Received"):
        checked_memory_limit(limit)


@given(st.integers(1, 10**5))
def test_the_least_that_a_refusal_names_is_enough(limit):
    by_path = {"a": Size(90, 10, 4, 4), "b": Size(300, 30, 20, 20)}
    try:
        choose_storage(by_path, 5, limit)
    except ValueError as error:
        least = int(str(error).split(" takes ")[1].split(".")[0])
        assert least > limit
        choose_storage(by_path, 5, least)


def test_the_default_does_not_depend_on_what_else_runs(monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 32 * GB)
    for free in (32 * GB, 20 * GB, 16 * GB):
        monkeypatch.setattr(memory, "free_memory", lambda free=free: free)
        assert checked_memory_limit(None) == 8 * GB
    monkeypatch.setattr(memory, "free_memory", lambda: 10 * GB)  # most of it is taken
    assert checked_memory_limit(None) == 5 * GB
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    assert checked_memory_limit(None) == 1


def test_free_memory_is_some_of_all_memory():
    assert 0 < free_memory() <= total_memory()


def control_group(root, folder, files):
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / folder / name).write_text(f"{text}\n")


STAT = "anon 300\nfile 500\ninactive_file 400\nactive_file 100"
V2 = {"memory.max": 2000, "memory.current": 900, "memory.stat": STAT}


def test_a_control_group_limits_memory_and_its_page_cache_is_free(tmp_path):
    control_group(tmp_path, "sys/fs/cgroup/own/inner", V2)
    (tmp_path / "proc/self/cgroup").write_text("0::/own/inner\n")
    assert memory._control_groups(tmp_path) == [(2000, 400)]


def test_groups_around_a_control_group_limit_it_too(tmp_path):
    control_group(tmp_path, "sys/fs/cgroup/own", V2)
    control_group(tmp_path, "sys/fs/cgroup/own/inner", V2 | {"memory.max": "max"})
    (tmp_path / "proc/self/cgroup").write_text("0::/own/inner\n")
    assert memory._control_groups(tmp_path) == [(2000, 400)]


def test_control_groups_of_the_first_version_are_read_too(tmp_path):
    stat = STAT + "\ntotal_inactive_file 450\ntotal_active_file 150"
    files = {"memory.limit_in_bytes": 3000, "memory.usage_in_bytes": 1000, "memory.stat": stat}
    control_group(tmp_path, "sys/fs/cgroup/memory/own", files)
    (tmp_path / "proc/self/cgroup").write_text("9:name=systemd:/\n4:memory:/own\n0::/\n")
    assert memory._control_groups(tmp_path) == [(3000, 400)]


def test_a_system_without_control_groups_limits_nothing(tmp_path):
    assert memory._control_groups(tmp_path) == []


# What is gathered then


def net() -> keras.Model:
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(6, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(5, 3, activation="relu", name="conv")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(7, "relu", name="hidden", use_bias=False)(x)
    return randomise(keras.Model(inputs, layers.Dense(3, "softmax", name="end")(x)))


@pytest.fixture(scope="module")
def whole():
    keras.utils.set_random_seed(0)
    model = net()
    graph, x = sgdap.channel_graph(model), samples(model, 60)
    return model, graph, x, sgdap.collect_statistics(graph, x, folds=3)


def limited(graph, x, monkeypatch, levels, **options):
    def choose(sizes, folds, limit, sensitivity=True):
        kept = "whole" if sensitivity else "none"
        return {path: Storage(levels.get(path, "folds"), kept) for path in sizes}

    monkeypatch.setattr("sgdap.statistics.collect.choose_storage", choose)
    return sgdap.collect_statistics(graph, x, folds=3, **options)


@pytest.mark.compiled
@pytest.mark.parametrize("path", ["conv", "hidden", "end"])
def test_products_of_whole_channels_are_those_of_the_whole_moments(whole, monkeypatch, path):
    model, graph, x, statistics = whole
    full = statistics.consumers[path]
    found = limited(graph, x, monkeypatch, {path: "channels"}, batch_size=16).consumers[path]
    distinct, channels = np.unique(full.place.features, return_inverse=True)
    gathered = found.gathered.total()
    assert not found.moments.has_products
    np.testing.assert_allclose(found.sensitivity, full.sensitivity, rtol=0.3, atol=0.1)
    # Sampled targets and the batches differ, so the weights do; with its own they must agree.
    weights = weighted_kernel(kernel_matrix(full.place, model.get_layer(path)), found.sensitivity)
    expected = full.moments.contributions(weights, channels, len(distinct)).total()
    scale = np.sqrt(np.outer(np.diag(expected.second[0]), np.diag(expected.second[0])))
    np.testing.assert_allclose(gathered.second[0] / scale, expected.second[0] / scale, atol=1e-6)
    np.testing.assert_allclose(gathered.mean, expected.mean, rtol=1e-5, atol=1e-5)


def test_alone_each_channel_has_its_own_power(whole, monkeypatch):
    _, graph, x, _ = whole
    products = limited(graph, x, monkeypatch, {"conv": "channels"}).consumers["conv"].gathered
    alone = limited(graph, x, monkeypatch, {"conv": "alone"}).consumers["conv"].gathered
    assert not alone.has_products and alone.second.shape == (3, 6)
    diagonal = np.diagonal(products.second, axis1=1, axis2=2)
    np.testing.assert_allclose(alone.second, diagonal, rtol=1e-5)


@pytest.mark.compiled
def test_merged_folds_are_their_sum(whole, monkeypatch):
    _, graph, x, statistics = whole
    merged = limited(graph, x, monkeypatch, dict.fromkeys(("conv", "hidden", "end"), "merged"))
    for path, own in merged.consumers.items():
        expected, found = statistics.consumers[path].moments.total(), own.moments
        assert found.folds == 1
        scale = np.abs(expected.second).max()
        np.testing.assert_allclose(found.second, expected.second, rtol=0, atol=3e-6 * scale)
        np.testing.assert_allclose(found.mean, expected.mean, atol=1e-6)
        np.testing.assert_array_equal(found.zeros, expected.zeros)


def test_channels_of_unlike_areas_add_up_too(monkeypatch):
    """A Concatenate of a tensor with itself and another: channels have two features, or one."""
    inputs = keras.Input((4,))
    a, b = layers.Dense(3, "tanh", name="a")(inputs), layers.Dense(2, "tanh", name="b")(inputs)
    x = layers.Concatenate()([a, b, a])
    model = randomise(keras.Model(inputs, layers.Dense(2, name="end")(x)))
    graph, x = sgdap.channel_graph(model), samples(model, 30)
    full = sgdap.collect_statistics(graph, x, folds=3, sensitivity=False).consumers["end"]
    found = limited(graph, x, monkeypatch, {"end": "channels"}, sensitivity=False).consumers["end"]
    distinct, channels = np.unique(full.place.features, return_inverse=True)
    kernel = kernel_matrix(full.place, model.get_layer("end"))
    expected = full.moments.contributions(kernel, channels, len(distinct))
    np.testing.assert_allclose(found.gathered.second, expected.second, rtol=1e-4, atol=1e-5)
    means = channel_sums(full.moments.total().mean[0], kernel, channels, len(distinct))
    np.testing.assert_allclose(found.gathered.total().mean[0], means, rtol=1e-4, atol=1e-5)


def test_what_is_given_up_is_logged_in_words(whole, caplog):
    _, graph, x, _ = whole
    with caplog.at_level(logging.INFO, "sgdap.statistics.collect"):
        statistics = sgdap.collect_statistics(graph, x, folds=3, memory_limit=40_000)
    assert "Moments of all folds are kept together" in caplog.text
    assert [record.message for record in caplog.records] == list(statistics.notes)


def test_a_limit_that_is_too_small_for_anything_is_refused(whole):
    _, graph, x, _ = whole
    with pytest.raises(ValueError, match="memory_limit=100 bytes are too few: the least that can"):
        sgdap.collect_statistics(graph, x, memory_limit=100)


def test_data_that_can_be_read_once_only_serves_both_passes(whole, monkeypatch):
    _, graph, x, _ = whole
    parts = iter([x[:32], x[32:]])
    found = limited(graph, parts, monkeypatch, {"conv": "channels"})
    assert found.samples == 60
    assert found.consumers["conv"].gathered.count.sum() == 60 * 4


def test_what_a_limit_changed_is_noted_with_the_limit(whole):
    _, graph, x, _ = whole
    statistics = sgdap.collect_statistics(graph, x, folds=3, memory_limit=40_000)
    assert statistics.notes and all("(memory_limit=40000)" in note for note in statistics.notes)
    assert any("Batches hold at most" in note for note in statistics.notes)


@pytest.mark.parametrize("limit", [30_000, 100_000, 10**7])
def test_statistics_take_no_more_than_their_share_of_the_limit(whole, limit):
    _, graph, x, _ = whole
    statistics = sgdap.collect_statistics(graph, x, folds=3, memory_limit=limit)
    assert 0 < statistics.nbytes <= limit - batch_memory(limit)


def test_rows_that_wait_are_counted_where_they_may():
    size = Size(features=64, channels=16, outputs=4, weighed=4)
    for level, folds in (("folds", 5), ("merged", 1)):
        matrices = folds * 8 * numbers_kept(64)
        assert Storage(level, "none").bytes(size, 5) == matrices + folds * (64 // 4) * 64 * 4
    assert Storage("alone", "none").bytes(size, 1) == 8 * 16 * (1 + 4)


@pytest.mark.parametrize("level", ["merged", "alone"])
def test_rows_wait_only_where_all_products_are_kept(level):
    model = convnet()
    graph = sgdap.channel_graph(model)
    place = next(own for own in graph.places if own.path == "end")
    features = len(place.features)
    weights = {} if level == "merged" else {"end": np.ones((features, 1), np.float32)}
    storage = {"end": Storage(level, "none")}
    whole = Gathering({"end": [place]}, storage, 1, 32, False, True, True, (), weights)
    sums = RowSums("end", whole)
    rows = Rows(tf.ones([1, 1, features]))
    found = list(sums.add([rows], 0, tf.zeros([features])))
    assert len(found) + len(list(sums.rest(tf.zeros([features])))) == 1
    assert bool(found) == (level == "alone")
