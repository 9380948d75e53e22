"""Moments of contributions are those of what each channel adds to the outputs."""

import numpy as np
import pytest

from sgdap.statistics import contributions as module
from sgdap.statistics.contributions import weighted_kernel
from sgdap.statistics.moments import Moments, Powers, moments_of

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
    found = moments_of(rows, fold, FOLDS).contributions(weights, CHANNELS, SIZE)
    for f in range(FOLDS):
        own = added(rows[fold == f], weights)
        apart = own - own.mean(axis=0)
        np.testing.assert_allclose(found.mean[f], own.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found.second[f], np.einsum("nco,ndo->cd", apart, apart))


def test_folds_merge_and_move_exactly(rows, weights):
    fold = np.arange(90) % FOLDS
    found = moments_of(rows, fold, FOLDS).contributions(weights, CHANNELS, SIZE)
    own, point = added(rows, weights), np.ones((SIZE, 4))
    total = found.total()
    np.testing.assert_allclose(total.mean[0], own.mean(axis=0), atol=1e-12)
    expected = np.einsum("nco,ndo->cd", own - point, own - point)
    np.testing.assert_allclose(total.about(point), expected)
    powers = Powers(found.count, found.mean, np.diagonal(found.second, axis1=1, axis2=2))
    np.testing.assert_allclose(powers.total().about(point), np.diag(np.diag(expected)))
    np.testing.assert_allclose(found.select([0, 1, 2]).total().second, total.second)


def test_contributions_at_other_places_keep_their_moments_and_others_add_nothing(rows, weights):
    found = moments_of(rows, np.arange(90) % 2, 2).contributions(weights, CHANNELS, SIZE)
    placed = found.contributions(np.ones((5, 1)), np.array([6, -1, 0, 1, -1]), 7)
    assert placed.second.shape == (2, 7, 7)
    np.testing.assert_array_equal(placed.second[:, 6, 0], found.second[:, 0, 2])
    np.testing.assert_array_equal(placed.mean[:, 1], found.mean[:, 3])
    assert not placed.second[:, 3].any() and not placed.mean[:, 3].any()


def test_powers_of_features_give_the_powers_of_what_channels_add_where_nothing_correlates(weights):
    random = np.random.default_rng(0)
    powers = Powers(np.array([90.0]), random.normal(size=(1, 9)), random.uniform(size=(1, 9)))
    whole = Moments(powers.count, powers.mean, np.diag(powers.second[0])[None])
    found, expected = (own.contributions(weights, CHANNELS, SIZE) for own in (powers, whole))
    np.testing.assert_allclose(found.second[0], np.diag(expected.second[0]))
    np.testing.assert_allclose(found.mean, expected.mean)
    np.testing.assert_allclose(found.variance, expected.variance)


def test_a_weighted_kernel_squares_to_the_sensitivity(weights):
    root = np.random.default_rng(2).normal(size=(4, 4))
    sensitivity = root @ root.T
    weighted = weighted_kernel(weights, sensitivity)
    np.testing.assert_allclose(weighted @ weighted.T, weights @ sensitivity @ weights.T)
    weighted = weighted_kernel(weights, np.diag(sensitivity))
    expected = weights @ np.diag(np.diag(sensitivity)) @ weights.T
    np.testing.assert_allclose(weighted @ weighted.T, expected)
    assert weighted_kernel(weights, None) is weights
