"""Figures show the numbers of plans, whatever the names of layers."""

import numpy as np

import sgdap
from sgdap.planning.figures import plot_curves, plot_widths
from tests.models import convnet


def test_a_plan_draws_the_share_of_each_group_that_stays():
    plan = sgdap.plan_removal(convnet(), {"conv_1": [0, 1], "hidden": [2]})
    (axis,) = plan.plot().axes
    _, kept = axis.containers
    np.testing.assert_allclose([bar.get_width() for bar in kept], [400 / 6, 100, 600 / 7, 100])
    assert [text.get_text() for text in axis.texts] == ["6 → 4", "5", "7 → 6", "3"]
    assert [label.get_text() for label in axis.get_yticklabels()] == [*plan.widths]
    assert f"parameters: {plan.params[0]:,} → {plan.params[1]:,}" in axis.get_title(loc="left")


def test_names_are_drawn_as_they_are():
    names = ["a$b^$", "x" * 200]
    plot_widths(names, [3, 3], [2, 1], "").canvas.draw()
    plot_curves({name: ([0.0, 0.1, 0.2], 2) for name in names}).canvas.draw()


def test_of_very_many_lines_only_some_are_named():
    figure = plot_curves({f"layer_{i}": ([0.0, 0.1 + i, 1.0 + i], 2) for i in range(60)})
    (axis,) = figure.axes
    assert len(axis.get_lines()) == 60
    assert len(axis.get_legend().get_lines()) == 24
    assert axis.get_legend().get_title().get_text() == "the first 24 of 60"


def test_curves_of_channels_that_cost_nothing_can_be_drawn():
    plot_curves({"dead": ([0.0, 0.0, 0.0], 2)}).canvas.draw()
