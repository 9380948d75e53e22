"""Rounding with compensation beside its definition and brute force."""

import itertools

import numpy as np
import pytest

from sgdap.quantization import PCM, Affine, Codebook, Ternary, get_scheme
from sgdap.quantization.rounding import adapted, compensated, error, greedy
from sgdap.statistics.ridge import ridged, ridges

SCHEMES = ["int4", "int2", "ternary", "binary", "quaternary", "pcm", "mu_law"]
SCHEMES += [Affine(bits=3, per=5), Affine(bits=3, per="tensor"), Affine(bits=4, symmetric=False)]
SCHEMES += [Codebook(size=3, per=6)]


def moment(features, rows=400, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 4)) @ random.normal(size=(4, features))
    x = np.maximum(x + 0.3 * random.normal(size=(rows, features)), 0)
    second = x.T @ x / rows
    return ridged(second, ridges(second))


def weights(features, outputs, seed=1):
    return np.random.default_rng(seed).normal(size=(features, outputs))


def test_greedy_rounding_is_the_brain_surgeon_with_a_known_rest():
    second, w = moment(7), weights(7, 2)
    lattice = get_scheme("int3").lattice(w)
    wanted, left = w.copy(), list(np.argsort(-np.diag(second), kind="stable"))
    while left:
        j = left.pop(0)
        near = lattice.nearest(wanted[j : j + 1], slice(j, j + 1))
        known = lattice.values(near, slice(j, j + 1))[0]
        rest = known - wanted[j]
        if left:
            own = second[np.ix_(left, left)]
            wanted[left] -= np.linalg.solve(own, np.outer(second[left, j], rest))
        wanted[j] = known
    np.testing.assert_allclose(lattice.values(greedy(second, w, lattice)), wanted, atol=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_each_part_makes_the_error_less(scheme):
    second, w = moment(24), weights(24, 6)
    scheme = get_scheme(scheme)
    lattice = scheme.lattice(w, np.outer(np.diag(second), np.ones(6)))
    plain = error(second, w - lattice.values(lattice.nearest(w)))
    first = error(second, w - lattice.values(greedy(second, w, lattice)))
    codes, fixed = compensated(second, w, lattice, adapts=False)
    assert fixed is lattice
    second_one = error(second, w - lattice.values(codes))
    codes, moved = compensated(second, w, lattice)
    last = error(second, w - moved.values(codes))
    assert first.sum() < 0.9 * plain.sum()
    assert (second_one <= first * (1 + 1e-9)).all()
    assert last.sum() <= second_one.sum() * (1 + 1e-6)
    assert codes.min() >= 0
    assert codes.max() < scheme.levels


def test_no_code_is_better_alone():
    second, w = moment(12), weights(12, 3)
    lattice = Ternary().lattice(w)
    codes, _ = compensated(second, w, lattice, adapts=False)
    least = error(second, w - lattice.values(codes))
    for j, o, other in itertools.product(range(12), range(3), range(3)):
        changed = codes.copy()
        changed[j, o] = other
        assert error(second, w - lattice.values(changed))[o] >= least[o] - 1e-12


def test_it_comes_near_the_best_of_all_codes():
    second, gaps = moment(7), []
    for seed in range(8):
        w = weights(7, 1, seed)
        lattice = Ternary().lattice(w)
        every = np.array(list(itertools.product(range(3), repeat=7))).T
        wide = Ternary().lattice(np.repeat(w, every.shape[1], axis=1))
        least = error(second, w - wide.values(every)).min()
        codes, _ = compensated(second, w, lattice, adapts=False)
        gaps.append(error(second, w - lattice.values(codes))[0] / least)
    assert min(gaps) < 1 + 1e-9
    assert np.mean(gaps) < 1.2


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_scales_and_levels_are_those_of_least_squares(scheme):
    second, w = moment(12), weights(12, 4)
    lattice = get_scheme(scheme).lattice(w)
    codes = lattice.nearest(w)
    for _ in range(30):
        lattice = adapted(second, codes, second @ (w - lattice.values(codes)), lattice)
    # Every weight's value is a sum of the free numbers times columns: solve for these.
    columns = []
    if lattice.base.ndim == 1:
        along = lattice.directions(codes)
        for unit in range(len(lattice.scale)):
            columns.append(np.where(lattice.units == unit, along, 0.0))
    else:
        for unit, level in itertools.product(*map(range, lattice.base.shape)):
            columns.append(((lattice.units == unit) & (codes == level)).astype(float))
    columns = [own for own in columns if own.any()]
    system = [[(a * (second @ b)).sum() for b in columns] for a in columns]
    best = np.linalg.solve(system, [(a * (second @ w)).sum() for a in columns])
    made = sum(x * own for x, own in zip(best, columns, strict=True))
    found, least = (error(second, w - own).sum() for own in (lattice.values(codes), made))
    assert found <= least * (1 + 1e-3)


def test_alike_inputs_share_an_error():
    """Two equal inputs: what one weight can't have, the other makes up for."""
    second = np.ones((2, 2)) + 1e-6 * np.eye(2)
    w = np.array([[0.3, 1.4], [0.3, 1.4]])
    lattice = PCM(bits=1).lattice(np.ones((2, 2)))
    codes, _ = compensated(second, w, lattice, adapts=False)
    np.testing.assert_array_equal(lattice.values(codes).sum(axis=0), [0.0, 2.0])
