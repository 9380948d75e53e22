"""Logits are fitted so that predictions, not logits, come close to the wanted ones."""

import numpy as np
import pytest
from scipy import optimize, special

from sgdap.reconstruction.predictions import RIDGES, Rows, prediction_fit

RANDOM = np.random.default_rng(0)


def cross_entropy(z, y, kind) -> float:
    """From the formula, in probabilities."""
    if kind == "categorical":
        return float(-(special.softmax(y, 1) * np.log(special.softmax(z, 1))).sum(1).mean())
    p, q = special.expit(y), special.expit(z)
    return float(-(p * np.log(q) + (1 - p) * np.log(1 - q)).sum(1).mean())


def test_one_sample_alone_changes_nothing():
    x, z = RANDOM.normal(size=(3, 4)), RANDOM.normal(size=(3, 2))
    assert prediction_fit([x, x[:0]], [z, z[:0]], [z + 1, z[:0]], "categorical") is None


def halves(array) -> list[np.ndarray]:
    return [array[::2], array[1::2]]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
@pytest.mark.parametrize("doubled", [1, 20])
def test_the_fit_is_the_least_cross_entropy_with_a_ridge(kind, bias, doubled):
    """Of more features than rows, some are the same."""
    x = RANDOM.normal(size=(60, 4)) * [1, 5, 0.2, 1] + [0, 2, 0, 0]
    z = RANDOM.normal(size=(60, 3))
    y = x @ RANDOM.normal(size=(4, 3)) + 2 * RANDOM.normal(size=(60, 3))
    more = np.tile(x, doubled)
    change, offset = prediction_fit(halves(more), halves(z), halves(y), kind, bias)
    change = change.reshape(doubled, 4, 3).sum(axis=0)
    centred = x - x.mean(0) * bias

    def objective(flat, ridge):
        made, c = flat[:12].reshape(4, 3), flat[12:] * bias
        penalty = ridge / 2 * ((centred @ made) ** 2).sum() / len(x)
        return cross_entropy(z + x @ made + c, y, kind) + penalty

    found = np.concatenate([change.ravel(), offset])
    least = min(
        objective(found, ridge) - optimize.minimize(objective, found, ridge, tol=1e-9).fun
        for ridge in RIDGES
    )
    assert least < 1e-4
    assert bias or not offset.any()


def test_predictions_that_the_features_can_make_are_met_on_other_rows():
    x, fresh = RANDOM.normal(size=(2, 400, 5))
    truth = RANDOM.normal(size=(5, 3))
    change, offset = prediction_fit(
        halves(x), halves(np.zeros((400, 3))), halves(x @ truth), "categorical"
    )
    made, wanted = (special.softmax(own, 1) for own in (fresh @ change + offset, fresh @ truth))
    assert np.abs(made - wanted).max() < 0.05


def test_dead_and_doubled_features_do_no_harm():
    x = RANDOM.normal(size=(100, 4))
    x[:, 1] = 0
    x[:, 2] = x[:, 0]
    y = x @ RANDOM.normal(size=(4, 3))
    change, offset = prediction_fit(halves(x), halves(0 * y), halves(y), "categorical")
    assert np.isfinite(change).all()
    made = x @ change + offset
    assert cross_entropy(made, y, "categorical") <= cross_entropy(0 * y, y, "categorical") + 1e-6


def test_what_is_only_chance_changes_nothing():
    x, y = RANDOM.normal(size=(100, 4)), RANDOM.normal(size=(100, 3))
    assert prediction_fit(halves(x), halves(0 * y), halves(y), "categorical") is None
    x[:, 0] = 0
    x[[3, 60], 0] = 1e-3  # nearly dead: in each half it could explain all there is
    wanted = 0 * y
    wanted[3, 0] = wanted[60, 1] = 5.0
    assert prediction_fit(halves(x), halves(0 * y), halves(wanted), "categorical") is None


def test_rows_are_joined_in_their_half_with_the_shift_put_back():
    rows = Rows()
    for number, value in ((0, 1.0), (1, 2.0), (4, 3.0)):
        own, samples = np.full((2, 1), value, np.float32), np.full(2, number)
        rows.add({"features": own - 1, "made": own, "wanted": own + 1, "samples": samples})
    features, made, wanted = rows.result(np.array([1.0]))
    assert [part[:, 0].tolist() for part in features] == [[1, 1, 3, 3], [2, 2]]
    assert [part[:, 0].tolist() for part in made] == [[1, 1, 3, 3], [2, 2]]
    assert [part[:, 0].tolist() for part in wanted] == [[2, 2, 4, 4], [3, 3]]
