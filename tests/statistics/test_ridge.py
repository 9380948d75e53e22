"""Second moments are factored and inverted with a small ridge, singular ones too."""

import numpy as np
import pytest
from scipy import linalg

from sgdap.statistics.ridge import cholesky_with, inverse_with, ridged, ridges


def moment(rows: int, features: int = 5) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(rows, features))
    return x.T @ x / rows


@pytest.mark.parametrize("rows", [50, 3], ids=["full rank", "singular"])
def test_the_inverse_and_the_factor_are_those_of_the_sum(rows):
    second = moment(rows)
    added = ridges(second)
    expected = np.linalg.inv(second + np.diag(added))
    inverse = np.triu(inverse_with(second, added))
    np.testing.assert_allclose(inverse, np.triu(expected), rtol=1e-6)
    solved = linalg.cho_solve(cholesky_with(second, added), np.eye(5))
    np.testing.assert_allclose(solved, expected, rtol=1e-6)


def test_ten_times_as_much_is_added_until_there_is_a_factor():
    second = np.diag([1.0, -1e-4])  # as rounding leaves it
    factor, lower = cholesky_with(second, np.array([1e-6, 1e-6]))
    made = np.tril(factor) @ np.tril(factor).T
    np.testing.assert_allclose(np.diag(made - second), [1e-3, 1e-3])
    assert lower


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(1, 1), (0, 2)])
@pytest.mark.parametrize("compute", [cholesky_with, inverse_with])
def test_moments_that_are_not_finite_are_refused(compute, place, value):
    second, added = moment(50), ridges(moment(50))
    second[place] = second[place[::-1]] = value
    with pytest.raises(ValueError, match=r"second moments of 5 features.*are not finite"):
        compute(second, added)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_ridge_that_is_not_positive_is_refused(value):
    """Ten times it would never be enough."""
    with pytest.raises(ValueError, match=r"must be positive.*Received"):
        cholesky_with(np.zeros((2, 2)), np.array([1.0, value]))


def test_moments_of_few_rows_get_what_they_lack():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    second = (x.T @ x).astype(np.float64)
    made = ridged(second, np.full(8, 1e-12))
    np.linalg.cholesky(made)
    np.testing.assert_allclose(made - second, np.diag(np.diag(made - second)))
