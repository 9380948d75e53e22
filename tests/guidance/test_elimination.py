"""Error curves equal what refitting, or just dropping, costs on the samples."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from sgdap.guidance import elimination
from sgdap.guidance.elimination import Consumer, eliminate
from sgdap.statistics.contributions import channel_grams
from sgdap.statistics.moments import moments_of


@dataclass(frozen=True)
class Case:
    """The samples behind some consumers of one group."""

    rows: list
    weights: list
    channels: list

    @property
    def consumers(self) -> list[Consumer]:
        return [
            Consumer(moments_of(x, np.zeros(len(x), int), 1), w, c, refittable=True)
            for x, w, c in zip(self.rows, self.weights, self.channels, strict=True)
        ]

    def refit_error(self, removed: list[int]) -> float:
        """Half the mean squared error of the best weights on what is left, offset included."""
        total = 0.0
        for x, w, c in zip(self.rows, self.weights, self.channels, strict=True):
            kept = np.column_stack([x[:, ~np.isin(c, removed)], np.ones(len(x))])
            target = x @ w
            best = np.linalg.lstsq(kept, target, rcond=None)[0]
            total += np.square(target - kept @ best).sum() / len(x) / 2
        return total

    def drop_error(self, removed: list[int]) -> float:
        """Half the mean squared error where removed channels are just 0."""
        total = 0.0
        for x, w, c in zip(self.rows, self.weights, self.channels, strict=True):
            gone = np.isin(c, removed)
            total += np.square(x[:, gone] @ w[gone]).sum() / len(x) / 2
        return total


def case(*layouts) -> Case:
    """Correlated samples; a layout gives the channel of each feature of one consumer."""
    random = np.random.default_rng(0)
    rows, weights = [], []
    for layout in layouts:
        features = len(layout)
        mixing = np.eye(features) + random.normal(0, 0.4, (features, features))
        rows.append(random.normal(size=(400, features)) @ mixing + random.normal(size=features))
        weights.append(random.normal(size=(features, 3)))
    return Case(rows, weights, [np.array(layout) for layout in layouts])


CASES = {
    "dense": case(range(6)),
    "convolution of kernel area 4": case([0, 1, 2, 3, 4] * 4),
    "two consumers": case([0, 1, 2, 3, 4], [0, 1, 2, 3, 4] * 3),
    "with channels of other groups": case([0, -1, 1, -1, 2, 3, 4]),
    "a consumer that reads some": case([2, 4, 3, -1], [0, 1, 2, 3, 4]),
    "flattened, places differ": case([0, 0, 0, 1, 2, 2, 3, 4, 4]),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_each_removal_costs_what_the_refitted_weights_lose(case):
    order = np.array([3, 0, 4, 2, 1])
    curve = eliminate(case.consumers, np.arange(5), order)
    assert curve.order.tolist() == order.tolist()
    expected = [case.refit_error(order[:i].tolist()) for i in range(6)]
    np.testing.assert_allclose(curve.errors, expected, rtol=1e-3, atol=1e-9)


@every_case
@pytest.mark.parametrize("pending", [1, 3, 5])
def test_downdates_that_wait_change_nothing(case, pending, monkeypatch):
    expected = eliminate(case.consumers, np.arange(5))
    monkeypatch.setattr(elimination, "PENDING", pending)
    curve = eliminate(case.consumers, np.arange(5))
    assert curve.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(curve.errors, expected.errors, rtol=1e-9)


def test_more_outputs_than_features_are_as_many():
    plain = CASES["dense"]
    wide = Case(plain.rows, [np.random.default_rng(1).normal(size=(6, 20))], plain.channels)
    curve = eliminate(wide.consumers, np.arange(6))
    expected = [wide.refit_error(curve.order[:i].tolist()) for i in range(7)]
    np.testing.assert_allclose(curve.errors, expected, rtol=1e-3, atol=1e-9)


@every_case
def test_the_cheapest_channel_leaves_first(case):
    candidates = np.arange(5)
    curve = eliminate(case.consumers, candidates)
    left, removed = candidates.tolist(), []
    while left:
        costs = [case.refit_error([*removed, channel]) for channel in left]
        removed.append(left.pop(int(np.argmin(costs))))
    assert curve.order.tolist() == removed
    assert (np.diff(curve.errors) >= 0).all()


@pytest.mark.parametrize(("refinement", "window"), [(0.0, 1), (0.5, 3), (1.0, 6)])
def test_refinement_lets_the_cheapest_of_the_next_ones_leave(refinement, window):
    case, order = CASES["dense"], np.array([5, 2, 0, 4, 1, 3])
    costs = [case.refit_error([channel]) for channel in order[:window]]
    curve = eliminate(case.consumers, np.arange(6), order, refinement)
    assert curve.order[0] == order[int(np.argmin(costs))]
    assert sorted(curve.order) == list(range(6))
    if refinement == 1.0:
        assert curve.order.tolist() == eliminate(case.consumers, np.arange(6)).order.tolist()


@every_case
def test_without_refit_removed_channels_are_zero(case):
    order = np.array([3, 0, 4, 2, 1])
    curve = eliminate(case.consumers, order, order, reconstruction=False)
    expected = [case.drop_error(order[:i].tolist()) for i in range(6)]
    np.testing.assert_allclose(curve.errors, expected, rtol=1e-9, atol=1e-12)


@every_case
def test_refitted_consumers_and_others_have_their_say_together(case):
    candidates, removed = np.arange(5), []
    others = [replace(own, refittable=False) for own in case.consumers]
    curve = eliminate([*case.consumers, *others], candidates)
    for step in range(1, 6):
        left = [c for c in candidates if c not in removed]
        sums = [case.refit_error([*removed, c]) + case.drop_error([*removed, c]) for c in left]
        removed.append(left[int(np.argmin(sums))])
        assert curve.errors[step] == pytest.approx(min(sums), rel=1e-4)
    assert curve.order.tolist() == removed


def test_only_candidates_leave():
    assert set(eliminate(CASES["dense"].consumers, np.array([1, 4, 5])).order) == {1, 4, 5}


def test_dead_constant_and_duplicated_channels_leave_first_and_cost_nothing():
    whole = CASES["dense"]
    x = whole.rows[0].copy()
    x[:, 1], x[:, 4], x[:, 5] = 0.0, 2.5, x[:, 0]
    consumers = Case([x], whole.weights, whole.channels).consumers
    curve = eliminate(consumers, np.arange(6))
    assert {1, 4} < set(curve.order[:3]) and set(curve.order[:3]) & {0, 5}
    assert curve.errors[3] < 1e-5 * curve.errors[-1]
    assert curve.errors[4] > 1e-2 * curve.errors[-1]


def test_features_in_other_units_give_the_same_curve():
    plain = CASES["convolution of kernel area 4"]
    units = 10.0 ** np.random.default_rng(2).integers(-5, 6, 20)
    scaled = Case([plain.rows[0] * units], [plain.weights[0] / units[:, None]], plain.channels)
    expected, found = (eliminate(own.consumers, np.arange(5)) for own in (plain, scaled))
    assert found.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-7)


def test_gram_sums_over_the_features_of_each_pair_of_channels():
    random = np.random.default_rng(0)
    second, weights = random.normal(size=(6, 6)), random.normal(size=(6, 2))
    channels = np.array([0, 2, -1, 2, 1, 0])
    expected = np.zeros((3, 3))
    for i, c in enumerate(channels):
        for j, d in enumerate(channels):
            if c >= 0 and d >= 0:
                expected[c, d] += second[i, j] * (weights[i] @ weights[j])
    (found,) = channel_grams(second[None], weights, channels, 3)
    np.testing.assert_allclose(found, expected)
