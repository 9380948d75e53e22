"""Adapters are the least-squares fit of all rows; NumPy's own is the oracle."""

import numpy as np
import pytest

from sgdap.distillation.adapter import fitted_adapter, sums_of
from sgdap.reconstruction.residuals import ResidualAccumulator

RANDOM = np.random.default_rng(0)


def fitted(s, t, batch=50):
    moments = ResidualAccumulator(np.zeros(s.shape[1]))
    for start in range(0, len(s), batch):
        for half in range(2):
            rows = slice(start + half, start + batch, 2)
            moments.add(half, sums_of(s[rows], t[rows]))
    return fitted_adapter(moments.result())


def test_it_is_the_least_squares_fit_with_an_intercept():
    s = RANDOM.normal(3, 1, size=(400, 5))
    t = s @ RANDOM.normal(size=(5, 7)) + RANDOM.normal(size=7) + 0.1 * RANDOM.normal(size=(400, 7))
    kernel, bias, variance = fitted(s, t)
    expected = np.linalg.lstsq(np.column_stack([s, np.ones(400)]), t, rcond=None)[0]
    np.testing.assert_allclose(np.vstack([kernel, bias]), expected, rtol=1e-2, atol=1e-2)
    assert variance == pytest.approx(t.var(axis=0).sum())


def test_channels_that_are_the_same_are_picked_out():
    t = RANDOM.normal(size=(500, 6))
    kernel, bias, _ = fitted(t[:, [4, 1]], t)
    np.testing.assert_allclose(kernel[:, [4, 1]], np.eye(2), atol=1e-4)
    np.testing.assert_allclose(bias[[4, 1]], 0, atol=1e-4)


def test_where_nothing_is_told_it_is_the_mean():
    s, t = RANDOM.normal(size=(60, 40)), RANDOM.normal(size=(60, 3))
    kernel, bias, variance = fitted(s, t)
    error = ((s @ kernel + bias - t) ** 2).sum(1).mean()
    unseen = RANDOM.normal(size=(1000, 40)) @ kernel
    assert error <= variance * (1 + 1e-12)
    assert (unseen**2).sum(1).mean() < 0.5 * variance


def test_rows_of_one_half_alone_are_refused():
    moments = ResidualAccumulator(np.zeros(2))
    moments.add(0, sums_of(np.ones((1, 2)), np.ones((1, 3))))
    with pytest.raises(ValueError, match="several samples.*1 rows"):
        fitted_adapter(moments.result())
