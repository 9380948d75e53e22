"""Symmetric matrices are kept in block rows of their upper triangle and come back whole."""

import numpy as np
import pytest

from sgdap.execution import triangle


@pytest.fixture(params=[1, 3, 7, 512])
def block(request, monkeypatch):
    monkeypatch.setattr(triangle, "BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("n", [0, 1, 6, 7, 8])
def test_a_matrix_comes_back(block, n):
    x = np.random.default_rng(0).normal(size=(20, n))
    packed = triangle.packed_from(x.T @ x)
    assert packed.shape == (triangle.numbers_kept(n),)
    np.testing.assert_array_equal(triangle.unpacked(packed, n), x.T @ x)
    np.testing.assert_array_equal(triangle.diagonal_of(packed, n), np.diag(x.T @ x))


def test_small_blocks_keep_half(monkeypatch):
    monkeypatch.setattr(triangle, "BLOCK", 1)
    assert triangle.numbers_kept(8) == 8 * 9 / 2


def test_products_are_added(block):
    random = np.random.default_rng(0)
    x, vectors = random.normal(size=(20, 8)), random.normal(size=(8, 3))
    packed = triangle.packed_from(x.T @ x)
    triangle.add_products(packed, vectors, -2.0)
    expected = x.T @ x - 2 * vectors @ vectors.T
    np.testing.assert_allclose(triangle.unpacked(packed, 8), expected)
