"""The sensitivity of layers is what the plan's own error curves say, and survives its file."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap.planning.sensitivity import SHARES, GroupSensitivity, shown_loss
from tests.models import convnet, digits_like


@pytest.fixture(scope="module")
def plan() -> sgdap.Plan:
    return sgdap.plan(convnet(), digits_like()[0], sgdap.Budget(flops=0.5))


def test_a_plan_of_any_width_expects_what_the_curve_says(plan):
    for group in plan.groups:
        removed = group.size - len(group.kept)
        assert len(group.curve) in (0, group.size + 1)
        assert (group.curve[removed] if group.curve else 0.0) == group.error


def test_without_refit_the_rise_goes_with_the_squares_of_what_the_outputs_lose():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="hidden"), layers.Dense(1, name="end")]
    )
    model.compile(loss="mse")
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    plan = sgdap.plan(
        model, x, sgdap.Budget(flops=1.0), guidance="magnitude", reconstruction=False, samples=50
    )
    hidden = model.layers[0](x).numpy()
    kernel = model.layers[1].kernel.numpy()
    order = np.argsort((model.layers[0].kernel.numpy() ** 2).sum(axis=0))
    curve = next(g.curve for g in plan.sensitivity().groups if g.name == "hidden")
    lost = [np.mean((hidden[:, order[:k]] @ kernel[order[:k]]) ** 2) for k in range(5)]
    np.testing.assert_allclose(np.array(curve) / curve[4], lost / lost[4], rtol=1e-3)


def test_the_nearest_whole_number_of_channels_leaves_at_least_one():
    group = GroupSensitivity("a", ("a",), 6, (0.0, 1.0, 2.0, 3.0, 4.0))
    assert [group.rise(share) for share in (0.01, 0.1, 0.25, 0.5, 0.75)] == [1, 1, 2, 3, None]
    assert [group.rise(share) for share in SHARES] == [1, 2, 3, None]


def test_the_table_has_a_row_for_each_layer_and_none_for_what_is_not_known(plan):
    text = str(plan.sensitivity())
    row = next(line for line in text.splitlines() if "conv_1" in line)
    known = next(g for g in plan.groups if g.name == "conv_1").curve
    cells = [cell.strip() for cell in row.split("│")[3:7]]
    assert cells == [f"{known[k]:.2g}" for k in (1, 2, 3, 5)]
    assert "mixes" in next(line for line in text.splitlines() if "│ end" in line)


def test_a_plan_from_a_file_tells_the_same(plan, tmp_path):
    plan.save(tmp_path / "plan")
    assert sgdap.Plan.load(tmp_path / "plan").sensitivity() == plan.sensitivity()


def test_a_plan_without_curves_says_so():
    with pytest.raises(ValueError, match=r"holds no error curves.*sgdap\.plan\(model, data"):
        sgdap.plan_removal(convnet(), {"conv_1": [0]}).sensitivity()


def test_the_figure_has_a_line_for_each_group_that_may_shrink(plan):
    (axis,) = plan.sensitivity().plot().axes
    assert [line.get_label() for line in axis.get_lines()] == ["conv_1", "conv_2", "hidden"]
    line = axis.get_lines()[0]
    curve = next(g for g in plan.groups if g.name == "conv_1").curve
    np.testing.assert_allclose(line.get_xdata(), 100 * (1 - np.arange(1, 7) / 6))
    np.testing.assert_allclose(line.get_ydata(), np.maximum(curve[1:], line.get_ydata().min()))
    assert axis.get_yscale() == "log"


def test_a_rise_that_is_only_rounding_is_shown_as_0():
    assert [shown_loss(rise) for rise in (0.0, 1e-64, 1e-9, 0.123)] == ["0", "0", "1e-09", "0.12"]
