"""Moments: the same as NumPy's on all rows at once, however they are split up."""

import numpy as np
import pytest

from sgdap.execution import triangle
from sgdap.statistics.moments import MomentAccumulator, Powers, moments_of


@pytest.fixture(autouse=True, params=[2, 512], ids=["block rows", "whole"])
def block(request, monkeypatch):
    monkeypatch.setattr(triangle, "BLOCK", request.param)


SCALES = {
    "plain": (0.0, 1.0),
    "large_mean": (1e4, 1.0),
    "scales_apart": (0.0, np.logspace(-3, 3, 5)),
    "means_and_scales_apart": (np.logspace(-1, 5, 5), np.logspace(-3, 3, 5)),
}


def rows_of(name, count=400):
    mean, scale = SCALES[name]
    random = np.random.default_rng(0)
    rows = random.normal(size=(count, 5)) @ random.normal(size=(5, 5)) * scale + mean
    rows[random.random(rows.shape) < 0.2] = 0
    return rows


def assert_same(moments, rows, rtol=1e-9):
    scale = np.abs(rows).max(axis=0)
    np.testing.assert_allclose(moments.mean[0], rows.mean(axis=0), atol=rtol * scale.max())
    expected = np.cov(rows.T, bias=True) * len(rows)
    error = np.abs(moments.second[0] - expected) / np.sqrt(
        np.outer(np.diag(expected), np.diag(expected))
    )
    assert error.max() < rtol
    assert moments.count[0] == len(rows)
    np.testing.assert_array_equal(moments.zeros[0], (rows == 0).sum(axis=0))
    np.testing.assert_allclose(moments.absolute[0], np.abs(rows).sum(axis=0))


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("sizes", [(400,), (100, 300), (1, 7, 392)])
def test_accumulated_batches_are_the_moments_of_all_rows(name, sizes):
    rows = rows_of(name)
    shift = rows[: sizes[0]].mean(axis=0)
    accumulator = MomentAccumulator(1, shift)
    for batch in np.split(rows, np.cumsum(sizes)[:-1]):
        apart = batch - shift
        accumulator.add(
            0,
            len(batch),
            apart.sum(axis=0),
            [apart.T[i : i + triangle.BLOCK] @ apart[:, i:] for i in triangle.starts(5)],
            (batch == 0).sum(axis=0),
            np.abs(batch).sum(axis=0),
        )
    assert_same(accumulator.result(), rows)


@pytest.mark.parametrize("name", SCALES)
def test_folds_and_shards_merge_exactly(name):
    rows = rows_of(name)
    fold = np.arange(len(rows)) % 4
    assert_same(moments_of(rows, fold, 4).total(), rows)
    first, second = moments_of(rows[:90], fold[:90], 4), moments_of(rows[90:], fold[90:], 4)
    merged, whole = first.merged(second), moments_of(rows, fold, 4)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        merged.second, whole.second, rtol=1e-8, atol=1e-9 * np.abs(whole.second).max()
    )
    assert_same(whole.select([1, 3]).total(), rows[np.isin(fold, (1, 3))])


def test_diagonals_alone_merge_to_the_diagonal():
    rows = rows_of("plain")
    whole = moments_of(rows, np.arange(len(rows)) % 4, 4)
    powers = np.diagonal(whole.second, axis1=1, axis2=2)
    diagonal = Powers(whole.count, whole.mean, powers)
    assert whole.has_products and not diagonal.has_products
    np.testing.assert_allclose(diagonal.total().second[0], np.diag(whole.total().second[0]))
    np.testing.assert_allclose(diagonal.total().variance, rows.var(axis=0))
    np.testing.assert_allclose(whole.total().variance, rows.var(axis=0))
