"""Activation values and patterns: the same as NumPy's on the activations themselves."""

import numpy as np

from sgdap.statistics.activation import activation_statistics
from sgdap.statistics.moments import moments_of


def patches(places=3):
    random = np.random.default_rng(0)
    activations = np.maximum(random.normal(size=(300, places, 4)) @ random.normal(size=(4, 4)), 0)
    activations[..., 3] = 2.0  # one channel is constant
    return activations, np.tile(np.arange(4), places)


def test_activation_values_are_those_of_all_places_of_a_channel():
    activations, features = patches()
    rows = activations.reshape(300, -1)
    found = activation_statistics(moments_of(rows, np.arange(300) % 5, 5), features)
    flat = activations.reshape(-1, 4)
    np.testing.assert_allclose(found.mean, flat.mean(axis=0))
    np.testing.assert_allclose(found.std, flat.std(axis=0), atol=1e-7)
    combined = np.abs(flat).mean(axis=0) + np.abs(flat).std(axis=0)
    np.testing.assert_allclose(found.combined, combined, atol=1e-7)
    np.testing.assert_allclose(found.zeros, (flat == 0).mean(axis=0))


def test_pattern_is_the_correlation_between_channels_at_the_same_place():
    activations, features = patches()
    rows = activations.reshape(300, -1)
    found = activation_statistics(moments_of(rows, np.zeros(300, int), 1), features)
    expected = np.corrcoef(activations.reshape(-1, 4)[:, :3].T)
    np.testing.assert_allclose(found.correlation[:3, :3], expected, atol=1e-9)
    np.testing.assert_allclose(found.correlation[3], [0, 0, 0, 1], atol=1e-9)


def test_a_channel_that_the_consumer_does_not_read_is_silent():
    activations, features = patches(places=2)
    some = np.where(features == 1, -1, features)
    rows = activations.reshape(300, -1)
    found = activation_statistics(moments_of(rows, np.zeros(300, int), 1), some)
    whole = activation_statistics(moments_of(rows, np.zeros(300, int), 1), features)
    others = [0, 2, 3]
    for name in ("mean", "std", "combined", "zeros"):
        np.testing.assert_array_equal(getattr(found, name)[others], getattr(whole, name)[others])
    assert (found.mean[1], found.std[1], found.combined[1], found.zeros[1]) == (0, 0, 0, 1)
    np.testing.assert_allclose(
        found.correlation[np.ix_(others, others)], whole.correlation[np.ix_(others, others)]
    )
    np.testing.assert_array_equal(found.correlation[1], [0, 1, 0, 0])


def test_features_of_other_groups_are_left_out():
    activations, features = patches(places=1)
    found = activation_statistics(
        moments_of(activations[:, 0], np.zeros(300, int), 1),
        np.where(features == 0, -1, features - 1),
    )
    np.testing.assert_allclose(found.mean, activations[:, 0, 1:].mean(axis=0))
