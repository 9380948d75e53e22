"""Which widths groups may have follows from the user's options."""

from dataclasses import replace

import numpy as np
import pytest

import sgdap
from sgdap.planning.widths import WidthRules
from tests.models import convnet

GROUP = sgdap.channel_graph(convnet()).group("conv_1")


def allowed(rules: WidthRules, size: int) -> list[int]:
    group = replace(GROUP, channels=np.arange(size), removable=np.ones(size, bool))
    return list(rules.allowed(group))


def test_automatic_rounding_is_coarse_where_groups_are_wide():
    assert allowed(WidthRules(round_to="auto"), 61) == [
        *(61, 56, 48, 40, 32, 24, 16),
        *(12, 8),
        *(7, 6, 5, 4, 3, 2, 1),
    ]
    assert allowed(WidthRules(round_to="auto", min_channels=10), 20) == [20, 16, 12]


def test_a_number_rounds_all_alike():
    assert allowed(WidthRules(round_to=8), 30) == [30, 24, 16, 8]
    assert allowed(WidthRules(), 4) == [4, 3, 2, 1]


def test_a_plan_with_automatic_rounding_meets_the_budget():
    x = np.random.default_rng(0).normal(size=(40, 8, 8, 2)).astype("float32")
    plan = sgdap.plan(convnet(), x, sgdap.Budget(flops=0.5), round_to="auto")
    assert plan.flops[1] <= 0.5 * plan.flops[0]
    for group in plan.groups:
        width = len(group.kept)
        assert width == group.size or width < 8 or width % 4 == 0


@pytest.mark.parametrize("round_to", [0, "automatic", 2.5, None])
def test_other_rounding_is_refused(round_to):
    x = np.zeros((9, 8, 8, 2), "float32")
    with pytest.raises((TypeError, ValueError), match="round_to must be"):
        sgdap.plan(convnet(), x, sgdap.Budget(flops=0.5), round_to=round_to)
