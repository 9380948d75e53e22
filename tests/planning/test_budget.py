"""A budget is a fraction or an absolute number, and says what is wrong with one that is neither."""

import numpy as np
import pytest

import sgdap
from sgdap.planning.budget import check_budget

FULL = np.array([1000.0, 40_000.0, 4000.0])  # parameters, FLOPs, bytes


@pytest.mark.parametrize(
    ("budget", "targets"),
    [
        (sgdap.Budget(flops=0.25), [np.inf, 10_000, np.inf]),
        (sgdap.Budget(params=0.5), [500, np.inf, np.inf]),
        (sgdap.Budget(flops=9000, params=1), [1000, 9000, np.inf]),
        (sgdap.Budget(params=np.int64(70)), [70, np.inf, np.inf]),
        (sgdap.Budget(bytes=3000, flops=0.5), [np.inf, 20_000, 3000]),
        (sgdap.Budget(latency="5ms"), [np.inf, np.inf, np.inf]),
    ],
)
def test_limits_up_to_1_are_fractions_and_above_absolute(budget, targets):
    assert budget.targets(FULL).tolist() == targets


@pytest.mark.parametrize("limit", [0, -0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["flops", "params", "bytes", "latency"])
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


@pytest.mark.parametrize(
    ("latency", "seconds"), [("5ms", 0.005), (" 0.2 s", 0.2), ("800us", 0.0008), (0.25, 0.5)]
)
def test_latency_is_a_time_or_a_fraction_of_the_models(latency, seconds):
    assert sgdap.Budget(latency=latency).latency_target(2.0) == pytest.approx(seconds)
    assert sgdap.Budget(flops=0.5).latency_target(2.0) == np.inf


@pytest.mark.parametrize(
    ("latency", "message"),
    [
        ("5", "latency must be a time such as '5ms'.*Received: latency='5'"),
        ("0ms", "latency must be a time such as '5ms'"),
        ("fast", "latency must be a time such as '5ms'"),
        (5, "fraction of the model's, up to 1; write a time with its unit.*latency=5"),
    ],
)
def test_a_latency_that_cannot_be_read_is_refused(latency, message):
    with pytest.raises(ValueError, match=message):
        sgdap.Budget(latency=latency)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        sgdap.Budget(latency="5ms", batch_size=0)


@pytest.mark.parametrize(
    "text",
    ["Budget(flops=0.3)", "Budget(params=0.5, bytes=4000)", "Budget(latency='5ms', batch_size=8)"],
)
def test_a_budget_prints_the_limits_that_it_was_made_with(text):
    budget = eval(text, {"Budget": sgdap.Budget})
    assert str(budget) == repr(budget) == text


@pytest.mark.parametrize("given", [{"batch_size": 8}, {"runtime": "litert"}, {"runtime": len}])
def test_how_to_measure_a_latency_without_one_is_refused(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} says how latency is measured"):
        sgdap.Budget(flops=0.5, **given)
