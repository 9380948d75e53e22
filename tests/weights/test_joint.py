import numpy as np
import pytest

from sgdap.weights.joint import _best

CURVATURE = np.diag([1.0, 10.0, 100.0])


def bowl(centre):
    def of(flat):
        apart = flat - centre
        return float(apart @ CURVATURE @ apart / 2), CURVATURE @ apart

    return of


@pytest.mark.parametrize("steps", [3, 50])
def test_what_is_held_back_says_which_weights_of_the_way_are_best(steps):
    wanted = np.array([1.0, -1.0, 0.5])
    learnt, held = bowl(wanted), bowl(wanted + 0.01)
    found = _best(learnt, lambda flat: held(flat)[0], np.zeros(3), steps)
    assert held(found)[0] < 0.5 * held(np.zeros(3))[0]
    if steps == 50:
        np.testing.assert_allclose(found, wanted, atol=0.1)


def test_weights_stay_where_each_step_makes_what_is_held_back_worse():
    begin = np.array([0.1, 0.2, 0.3])
    seen = []

    def held(flat):
        seen.append(flat)
        return float(np.abs(flat - begin).sum())

    np.testing.assert_array_equal(_best(bowl(np.ones(3)), held, begin, 200), begin)
    assert len(seen) > 1
