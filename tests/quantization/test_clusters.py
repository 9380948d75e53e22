"""K-means in the plane beside all partitions, and where it needs no search."""

import itertools

import numpy as np
import pytest

from sgdap.quantization.clusters import best_points


def error(pairs, weights, points):
    each = (weights[:, None] * (pairs[:, None] - points) ** 2).sum(axis=-1)
    return each.min(axis=1).sum()


def least_by_partition(pairs, weights, size):
    """The least error of points at the means, over all partitions."""
    found = np.inf
    for chosen in itertools.product(range(size), repeat=len(pairs)):
        total = 0.0
        for number in set(chosen):
            own = np.array(chosen) == number
            x, w = pairs[own], weights[own]
            mean = (w * x).sum(axis=0) / w.sum(axis=0)
            total += (w * (x - mean) ** 2).sum()
        found = min(found, total)
    return found


def test_it_mostly_finds_the_best_of_all_partitions():
    gaps = []
    for seed in range(8):
        random = np.random.default_rng(seed)
        pairs, weights = random.normal(size=(7, 2)), random.uniform(0.1, 2, (7, 2))
        found = error(pairs, weights, best_points(pairs, weights, 3))
        gaps.append(found / least_by_partition(pairs, weights, 3))
    assert min(gaps) > 1 - 1e-6
    assert np.median(gaps) < 1 + 1e-6
    assert max(gaps) < 1.3


def test_few_different_pairs_are_the_points():
    pairs = np.repeat([[1.0, 2.0], [0.5, -1.0], [1.0, -3.0]], 4, axis=0)
    points = best_points(pairs, np.ones_like(pairs), 5)
    np.testing.assert_array_equal(points, [[0.5, -1], [1, -3], [1, 2], [1, 2], [1, 2]])


def test_half_a_pair_goes_with_a_whole_one_of_its_number():
    pairs = np.array([[1.0, 2.0], [3.0, 4.0], [3.0, 0.0]])
    weights = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(best_points(pairs, weights, 2), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(best_points(pairs, 0 * weights + 1, 3), [[1, 2], [3, 0], [3, 4]])


def test_the_same_pairs_give_the_same_points():
    pairs = np.random.default_rng(0).normal(size=(20_000, 2))
    one, other = (best_points(pairs, np.ones_like(pairs), 16) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one, axis=0)) == 16


@pytest.mark.parametrize("size", [4, 16])
def test_many_pairs_are_nearer_than_to_a_grid(size):
    pairs = np.random.default_rng(0).normal(size=(4000, 2))
    points = best_points(pairs, np.ones_like(pairs), size)
    side = int(size**0.5)
    steps = np.linspace(0.05, 2, 60)
    grids = (s * (np.arange(side) - (side - 1) / 2) for s in steps)
    grid = min(
        ((pairs - g[np.abs(pairs[..., None] - g).argmin(axis=-1)]) ** 2).sum() for g in grids
    )
    found = error(pairs, np.ones_like(pairs), points)
    assert found < (1.001 if size == 4 else 0.95) * grid
