import itertools

import numpy as np
import pytest

from sgdap.sparsity.elimination import (
    GONE,
    costs_alone,
    costs_in_turn,
    refitted,
    swept,
)

GENERATOR = np.random.default_rng(1)


def moments(features, rows=40):
    x = GENERATOR.normal(size=(rows, features)) @ GENERATOR.normal(size=(features, features))
    return x.T @ x / rows


def least_rise(second, weights, stay):
    """The least-squares optimum for one output by the normal equations, and what it costs."""
    fitted = np.zeros_like(weights)
    fitted[stay] = np.linalg.solve(second[np.ix_(stay, stay)], second[stay] @ weights)
    apart = fitted - weights
    return fitted, apart @ second @ apart / 2


def surgeon(second, weights, part=(1, 1)):
    """Brute force: always the weight whose leaving raises the optimum's error least."""
    n, m = part
    there, order, rises, before = list(range(len(weights))), [], [], 0.0
    while there:
        parts = [j // m for j in there]
        free = [j for j in there if parts.count(j // m) > n] or there if n < m else there
        found = {j: least_rise(second, weights, [k for k in there if k != j])[1] for j in free}
        best = min(found, key=found.get)
        order.append(best)
        rises.append(found[best] - before)
        before = found[best]
        there.remove(best)
    return order, np.maximum.accumulate(rises)


@pytest.mark.parametrize("part", [(1, 1), (2, 4), (1, 3)])
def test_weights_leave_as_brute_force_has_it(part):
    second, weights = moments(12), GENERATOR.normal(size=(12, 5))
    costs = costs_in_turn(second, weights, np.ones(weights.shape, bool), part)
    for output in range(5):
        order, rises = surgeon(second, weights[:, output], part)
        np.testing.assert_allclose(costs[order, output], rises, rtol=1e-6)
        np.testing.assert_array_equal(np.argsort(costs[:, output]), order)


def test_many_weights_wait_and_leave_as_brute_force_has_it():
    second, weights = moments(70, 300), GENERATOR.normal(size=(70, 2))
    costs = costs_in_turn(second, weights, np.ones(weights.shape, bool), (1, 1))
    order, rises = surgeon(second, weights[:, 1])
    np.testing.assert_allclose(costs[order, 1], rises, rtol=1e-6)


def test_weights_that_left_before_are_no_help():
    second, weights = moments(10), GENERATOR.normal(size=(10, 3))
    stays = GENERATOR.random((10, 3)) < 0.6
    stays[0] = [True, False, True]
    weights *= stays
    costs = costs_in_turn(second, weights, stays, (1, 1))
    assert (costs[~stays] == GONE).all()
    for output in range(3):
        own = np.flatnonzero(stays[:, output])
        order, rises = surgeon(second[np.ix_(own, own)], weights[own, output])
        np.testing.assert_allclose(costs[own[order], output], rises, rtol=1e-6)


def test_costs_alone_are_those_of_the_optimum_without_the_weight():
    second, weights = moments(8), GENERATOR.normal(size=(8, 2))
    costs = costs_alone(second, weights)
    for j, output in itertools.product(range(8), range(2)):
        stay = [k for k in range(8) if k != j]
        rise = least_rise(second, weights[:, output], stay)[1]
        np.testing.assert_allclose(costs[j, output], rise, rtol=1e-6)


def test_weights_are_refitted_to_the_optimum():
    second, weights = moments(9), GENERATOR.normal(size=(9, 4))
    stays = GENERATOR.random((9, 4)) < 0.5
    stays[:, 0] = False
    made = refitted(second, weights, stays)
    assert (made[~stays] == 0).all()
    for output in range(1, 4):
        own = np.flatnonzero(stays[:, output])
        wanted = least_rise(second, weights[:, output], own)[0]
        np.testing.assert_allclose(made[:, output], wanted, atol=1e-9)


@pytest.mark.parametrize("features", [9, 150])
def test_a_sweep_is_the_optimum_of_later_weights(features):
    second, weights = moments(features, 400), GENERATOR.normal(size=(features, 3))
    stays = np.ones(weights.shape, bool)
    stays[[2, 5], 0] = False
    made = swept(second, weights, stays)
    later = [3, 4, *range(6, features)]
    # Brute force: one weight after another becomes 0, and those behind it are fitted anew.
    wanted = weights[:, 0].copy()
    for j in (2, 5):
        behind = np.arange(j + 1, features)
        own = np.linalg.solve(second[np.ix_(behind, behind)], second[behind, j] * wanted[j])
        wanted[behind] += own
        wanted[j] = 0
    np.testing.assert_allclose(made[later, 0], wanted[later], atol=1e-8)
    np.testing.assert_array_equal(made[:, 1], weights[:, 1])
