"""Moments of contributions are those of what each channel adds to the outputs."""

from dataclasses import replace

import numpy as np
import pytest

from sgdap.statistics import contributions as module
from sgdap.statistics.contributions import contributions_of, weighted_kernel
from sgdap.statistics.moments import moments_of

CHANNELS = np.array([0, 2, 1, 2, -1, 0, 3, 3, 3])
SIZE, FOLDS = 5, 3  # channel 4 has no feature


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    return random.normal(size=(90, 9)) @ random.normal(size=(9, 9)) + random.normal(size=9)


@pytest.fixture
def weights():
    return np.random.default_rng(1).normal(size=(9, 4))


def added(rows, weights):
    """`(rows, channels, outputs)`."""
    each = rows[:, :, None] * weights
    return np.stack([each[:, c == CHANNELS].sum(axis=1) for c in range(SIZE)], axis=1)


@pytest.mark.parametrize("block", [2, 512])
def test_they_are_the_moments_of_what_each_channel_adds(rows, weights, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    fold = np.arange(90) % FOLDS
    found = contributions_of(moments_of(rows, fold, FOLDS), weights, CHANNELS, SIZE)
    for f in range(FOLDS):
        own = added(rows[fold == f], weights)
        apart = own - own.mean(axis=0)
        np.testing.assert_allclose(found.mean[f], own.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found.gram[f], np.einsum("nco,ndo->cd", apart, apart))


def test_folds_merge_and_move_exactly(rows, weights):
    fold = np.arange(90) % FOLDS
    found = contributions_of(moments_of(rows, fold, FOLDS), weights, CHANNELS, SIZE)
    own, point = added(rows, weights), np.ones((SIZE, 4))
    total = found.total()
    np.testing.assert_allclose(total.mean[0], own.mean(axis=0), atol=1e-12)
    expected = np.einsum("nco,ndo->cd", own - point, own - point)
    np.testing.assert_allclose(total.about(point), expected)
    alone = replace(found, gram=np.diagonal(found.gram, axis1=1, axis2=2))
    np.testing.assert_allclose(alone.total().about(point), np.diag(expected))
    np.testing.assert_allclose(found.select([0, 1, 2]).total().gram, total.gram)


def test_scattered_channels_keep_their_moments_and_others_add_nothing(rows, weights):
    found = contributions_of(moments_of(rows, np.arange(90) % 2, 2), weights, CHANNELS, SIZE)
    placed = found.scattered(np.array([6, -1, 0, 1, -1]), 7)
    assert placed.gram.shape == (2, 7, 7)
    np.testing.assert_array_equal(placed.gram[:, 6, 0], found.gram[:, 0, 2])
    np.testing.assert_array_equal(placed.mean[:, 1], found.mean[:, 3])
    assert not placed.gram[:, 3].any() and not placed.mean[:, 3].any()


def test_a_weighted_kernel_squares_to_the_sensitivity(weights):
    root = np.random.default_rng(2).normal(size=(4, 4))
    sensitivity = root @ root.T
    weighted = weighted_kernel(weights, sensitivity)
    np.testing.assert_allclose(weighted @ weighted.T, weights @ sensitivity @ weights.T)
    weighted = weighted_kernel(weights, np.diag(sensitivity))
    expected = weights @ np.diag(np.diag(sensitivity)) @ weights.T
    np.testing.assert_allclose(weighted @ weighted.T, expected)
    assert weighted_kernel(weights, None) is weights
