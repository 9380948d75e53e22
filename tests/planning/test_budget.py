"""A budget is a fraction or an absolute number, and says what is wrong with one that is neither."""

import numpy as np
import pytest

import sgdap
from sgdap.planning.budget import check_budget

FULL = np.array([1000.0, 40_000.0])  # parameters, FLOPs


@pytest.mark.parametrize(
    ("budget", "targets"),
    [
        (sgdap.Budget(flops=0.25), [np.inf, 10_000]),
        (sgdap.Budget(params=0.5), [500, np.inf]),
        (sgdap.Budget(flops=9000, params=1), [1000, 9000]),
        (sgdap.Budget(params=np.int64(70)), [70, np.inf]),
    ],
)
def test_limits_up_to_1_are_fractions_and_above_absolute(budget, targets):
    assert budget.targets(FULL).tolist() == targets


@pytest.mark.parametrize("limit", [0, -0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["flops", "params"])
def test_a_limit_that_is_not_positive_is_refused(name, limit):
    with pytest.raises(ValueError, match=f"{name} must be positive and finite. Received: {name}="):
        sgdap.Budget(**{name: limit})


@pytest.mark.parametrize("limit", ["0.5", True, [0.5]])
def test_a_limit_that_is_no_number_is_refused(limit):
    with pytest.raises(TypeError, match=r"flops must be a number.*Received: flops="):
        sgdap.Budget(flops=limit)


def test_a_budget_without_a_limit_is_refused_with_an_example():
    with pytest.raises(ValueError, match=r"needs a limit: Budget\(flops=0\.5\)"):
        sgdap.Budget()


def test_what_is_no_budget_is_refused_with_an_example():
    with pytest.raises(TypeError, match=r"sgdap\.Budget\(flops=0\.5\).*Received: 0\.3"):
        check_budget(0.3)


def test_a_budget_prints_its_limits():
    assert str(sgdap.Budget(flops=0.3)) == "Budget(flops=0.3)"
