"""Rounding of pairs with compensation beside its definition."""

import itertools

import numpy as np
import pytest

from sgdap.quantization import Codebook, Pairs
from sgdap.quantization.pair_rounding import adapted_points, compensated_pairs, greedy_pairs
from sgdap.quantization.rounding import compensated, error
from tests.quantization.test_rounding import moment, weights

SCHEMES = [Pairs(size=8), Pairs(size=4, per="channel"), Pairs(size=2, per=6)]


@pytest.mark.parametrize("features", [7, 8])
def test_greedy_rounding_takes_the_point_that_the_others_make_up_for_best(features):
    second, w = moment(features), weights(features, 2)
    lattice = Pairs(size=5).lattice(w)
    pairs = [[2 * j, 2 * j + 1] for j in range(features // 2)]
    pairs.sort(key=lambda rows: -second[rows, rows].sum())
    pairs += [[features - 1]] if features % 2 else []
    wanted, left = w.copy(), list(range(features))
    for rows in pairs:
        left = [row for row in left if row not in rows]
        for output in range(2):
            results = []
            for point in lattice.points[0]:
                rest = point[: len(rows)] - wanted[rows, output]
                own = second[np.ix_(left, left)]
                moves = -np.linalg.solve(own, second[np.ix_(left, rows)] @ rest)
                change = np.zeros(features)
                change[rows], change[left] = rest, moves
                results.append((change @ second @ change, change))
            wanted[:, output] += min(results, key=lambda own: own[0])[1]
    found = lattice.values(greedy_pairs(second, w, lattice))
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("features", [48, 67])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_each_part_makes_the_error_less(scheme, features):
    second, w = moment(features), weights(features, 6)
    lattice = scheme.lattice(w, np.outer(np.diag(second), np.ones(6)))
    plain = error(second, w - lattice.values(lattice.nearest(w)))
    first = error(second, w - lattice.values(greedy_pairs(second, w, lattice)))
    codes, fixed = compensated_pairs(second, w, lattice, adapts=False)
    assert fixed is lattice
    second_one = error(second, w - lattice.values(codes))
    codes, moved = compensated_pairs(second, w, lattice)
    last = error(second, w - moved.values(codes))
    assert first.sum() < 0.9 * plain.sum()
    assert (second_one <= first * (1 + 1e-9)).all()
    assert last.sum() <= second_one.sum() * (1 + 1e-6)
    assert codes.shape == (-(-features // 2), 6)
    assert 0 <= codes.min() <= codes.max() < scheme.size


def test_no_pair_is_better_alone():
    second, w = moment(9), weights(9, 3)
    lattice = Pairs(size=4).lattice(w)
    codes, _ = compensated_pairs(second, w, lattice, adapts=False)
    least = error(second, w - lattice.values(codes))
    for pair, output, other in itertools.product(range(5), range(3), range(4)):
        changed = codes.copy()
        changed[pair, output] = other
        assert error(second, w - lattice.values(changed))[output] >= least[output] * (1 - 1e-8)


@pytest.mark.parametrize("scheme", SCHEMES[:2], ids=str)
def test_points_are_those_of_least_squares(scheme):
    second, w = moment(13), weights(13, 4)
    lattice = scheme.lattice(w)
    codes = lattice.nearest(w)
    for _ in range(60):
        lattice = adapted_points(second, codes, second @ (w - lattice.values(codes)), lattice)
    columns = []
    for unit, code, axis in itertools.product(*map(range, lattice.points.shape)):
        own = np.zeros((7, 4, 2))
        own[..., axis] = (lattice.units == unit) & (codes == code)
        columns.append(own.transpose(0, 2, 1).reshape(14, 4)[:13])
    columns = [own for own in columns if own.any()]
    system = [[(a * (second @ b)).sum() for b in columns] for a in columns]
    best = np.linalg.solve(system, [(a * (second @ w)).sum() for a in columns])
    made = sum(x * own for x, own in zip(best, columns, strict=True))
    found, least = (error(second, w - own).sum() for own in (lattice.values(codes), made))
    assert found <= least * (1 + 1e-3)


def test_pairs_are_ahead_of_single_levels_with_compensation_too():
    second, w = moment(96), weights(96, 24)
    importance = np.outer(np.diag(second), np.ones(24))
    single = Codebook(size=4, per="tensor").lattice(w, importance)
    codes, single = compensated(second, w, single)
    pairs = Pairs(size=16).lattice(w, importance)
    own, pairs = compensated_pairs(second, w, pairs)
    found, scalar = (
        error(second, w - lattice.values(c)).sum() for lattice, c in ((pairs, own), (single, codes))
    )
    assert found < scalar
