"""Reconstruction is the least squares fit of a consumer to the features that stay."""

import numpy as np
import pytest

from sgdap.reconstruction.closed_form import prior_ridge, reconstruct, validated_fit


@pytest.fixture
def rows() -> np.ndarray:
    random = np.random.default_rng(0)
    mixing = np.eye(6) + random.normal(0, 0.3, (6, 6))
    return random.normal(size=(300, 6)) @ mixing + random.normal(size=6)


WEIGHTS = np.random.default_rng(1).normal(size=(6, 4))
KEPT = np.array([True, False, True, True, False, True])


def fitted(rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The outputs of the reconstructed weights."""
    weights, offset = reconstruct(np.cov(rows.T, bias=True), rows.mean(axis=0), WEIGHTS, kept)
    return rows[:, kept] @ weights + offset


def test_no_other_weights_come_closer(rows):
    design = np.column_stack([rows[:, KEPT], np.ones(len(rows))])
    target = rows @ WEIGHTS
    best = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    np.testing.assert_allclose(fitted(rows, KEPT), best, atol=1e-4)


@pytest.mark.parametrize("kind", ["dead", "constant", "duplicated", "linearly dependent"])
def test_channels_that_others_can_stand_in_for_are_removed_without_a_trace(rows, kind):
    rows[:, 1] = {
        "dead": 0 * rows[:, 1],
        "constant": 0 * rows[:, 1] + 7,
        "duplicated": rows[:, 2],
        "linearly dependent": rows[:, 0] - 2 * rows[:, 3] + 1,
    }[kind]
    kept = np.arange(6) != 1
    np.testing.assert_allclose(fitted(rows, kept), rows @ WEIGHTS, atol=1e-4)


def test_weights_of_features_that_nothing_is_gained_from_stay(rows):
    rows[:, 2] = rows[:, 0]
    independent = np.eye(6)
    weights, offset = reconstruct(independent, np.zeros(6), WEIGHTS, KEPT)
    np.testing.assert_allclose(weights, WEIGHTS[KEPT])
    assert not offset.any()


def test_singular_moments_leave_the_weights_finite_and_near_the_old_ones(rows):
    rows[:, 2] = rows[:, 0]
    kept = np.ones(6, bool)
    weights, _ = reconstruct(np.cov(rows.T, bias=True), rows.mean(axis=0), WEIGHTS, kept)
    np.testing.assert_allclose(weights, WEIGHTS)


def test_with_nothing_left_the_bias_gives_the_mean_output(rows):
    none = np.zeros(6, bool)
    weights, offset = reconstruct(np.cov(rows.T, bias=True), rows.mean(axis=0), WEIGHTS, none)
    assert weights.shape == (0, 4)
    np.testing.assert_allclose(offset, (rows @ WEIGHTS).mean(axis=0))


def test_a_feature_in_another_unit_changes_nothing(rows):
    units = np.array([1e-6, 1.0, 1e5, 1e-3, 30.0, 1e-4])
    expected, offset = reconstruct(np.cov(rows.T, bias=True), rows.mean(axis=0), WEIGHTS, KEPT)
    scaled = rows * units
    found, same = reconstruct(
        np.cov(scaled.T, bias=True), scaled.mean(axis=0), WEIGHTS / units[:, None], KEPT
    )
    np.testing.assert_allclose(found * units[KEPT, None], expected, rtol=1e-7)
    np.testing.assert_allclose(same, offset, rtol=1e-7)


def test_features_of_small_scale_stand_in_for_removed_ones_too(rows):
    rows[:, 1] = 1e4 * rows[:, 0]  # a duplicate, large where the one that stays is small
    rows[:, 2] *= 1e4
    kept = np.arange(6) != 1
    target = rows @ WEIGHTS
    np.testing.assert_allclose(fitted(rows, kept), target, rtol=1e-4, atol=1e-4 * target.std())


def moments(rows: np.ndarray, lack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Second and cross moments of samples to fit and of samples held back."""
    count = rows.shape[1]
    second = np.einsum("hni,hnj->hij", rows, rows) / count
    return second, np.einsum("hni,hno->hio", rows, lack) / count


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_validated_fit_does_not_depend_on_units(unit):
    random = np.random.default_rng(0)
    rows = random.normal(size=(2, 60, 5))
    weights = random.normal(size=(5, 2))
    lack = rows @ weights + random.normal(size=(2, 60, 2))
    units = np.array([1, unit, 1, 1, unit**0.5])

    def fit(x, w):
        return validated_fit(*moments(x, lack), prior_ridge(w, lack[0].var(0), 60))

    scaled = fit(rows * units, weights / units[:, None])
    np.testing.assert_allclose(scaled * units[:, None], fit(rows, weights), rtol=1e-7)


def test_dead_features_leave_the_fit_of_the_others_alone(rows):
    lack = rows @ WEIGHTS
    halves = np.stack([rows[::2], rows[1::2]])
    dead = halves * (np.arange(6) != 2)

    def fit(x):
        lacks = np.stack([lack[::2], lack[1::2]])
        return validated_fit(*moments(x, lacks), np.zeros(x.shape[2]))

    with_dead, without = fit(dead), fit(np.delete(halves, 2, axis=2))
    assert not with_dead[2].any()
    np.testing.assert_allclose(np.delete(with_dead, 2, axis=0), without, rtol=1e-9)


def test_the_ridge_is_the_one_that_gains_most_on_samples_held_back():
    random = np.random.default_rng(0)
    rows = random.normal(size=(2, 30, 20))  # hardly more rows than features
    truth = random.normal(size=(20, 2)) * (np.arange(20) < 3)[:, None]
    lack = rows @ truth + random.normal(size=(2, 30, 2)) * 3
    second, cross = moments(rows, lack)
    change = validated_fit(second, cross, np.zeros(20))
    least_squares = np.linalg.solve(second[0], cross[0])
    assert np.linalg.norm(change - truth) < np.linalg.norm(least_squares - truth)


def test_what_no_fit_explains_changes_nothing():
    random = np.random.default_rng(1)
    rows, noise = random.normal(size=(2, 25, 20)), random.normal(size=(2, 25, 3))
    assert not validated_fit(*moments(rows, noise), np.zeros(20)).any()


def test_the_prior_is_that_of_changes_as_large_as_the_weights():
    random = np.random.default_rng(0)
    rows, weights = random.normal(size=(2, 40, 6)), random.normal(size=(6, 1))
    lack = rows @ random.normal(size=(6, 1)) + random.normal(size=(2, 40, 1))
    power = (lack[0] ** 2).mean(0)
    found = validated_fit(*moments(rows, lack), prior_ridge(weights, power, 40))
    # The same as more rows, each of which says that one change is 0.
    expected = np.diag(np.sqrt(power / weights[:, 0] ** 2))
    more = np.vstack([rows[0], expected])
    least, *_ = np.linalg.lstsq(more, np.vstack([lack[0], np.zeros((6, 1))]))
    np.testing.assert_allclose(found, least, rtol=1e-4)


def test_a_feature_that_is_all_but_dead_gets_no_large_weight():
    random = np.random.default_rng(0)
    rows = random.normal(size=(2, 200, 3))
    rows[..., 1] = 0
    rows[0, 7, 1] = 1e-5  # alive in one sample, which lacks something
    lack = rows[..., :1] + random.normal(size=(2, 200, 1))
    kernel = np.ones((3, 1))
    alone = validated_fit(*moments(rows, lack), np.zeros(3))
    careful = validated_fit(*moments(rows, lack), prior_ridge(kernel, lack[0].var(0), 200))
    assert abs(alone[1, 0]) > 1e4 > 1 > abs(careful[1, 0])
    np.testing.assert_allclose(careful[[0, 2]], alone[[0, 2]], atol=0.02)


def test_weights_that_are_zero_stay_so_or_nearly():
    kernel = np.array([[0.0, 0.0], [1.0, 2.0]])
    added = prior_ridge(kernel, np.ones(2), 100)
    assert added[0] > 1e9 * added[1] > 0
    assert not prior_ridge(np.zeros((2, 2)), np.ones(2), 100).any()
