"""Tables fit the terminal and never break a name in the middle."""

import keras
import numpy as np
import pytest
from keras import layers

import sgdap
from sgdap._table import short_name, terminal_width


@pytest.mark.parametrize(
    ("name", "most", "short"),
    [
        ("conv_1", 8, "conv_1"),
        ("backbone/block5a/conv_2", 16, "backbone…/conv_2"),
        ("a_very_long_name_of_a_layer", 11, "a_ver…layer"),
        ("backbone/a_very_long_name_of_a_layer", 11, "backb…layer"),
    ],
)
def test_the_last_part_of_a_path_is_kept(name, most, short):
    assert short_name(name, most) == short
    assert len(short) <= most


@pytest.mark.parametrize(("columns", "width"), [("40", 80), ("90", 90), ("300", 100)])
def test_tables_are_as_wide_as_the_terminal_within_bounds(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width(100) == width


@pytest.mark.parametrize("columns", ["80", "100", "120"])
def test_names_of_many_paths_stand_in_one_piece(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    parts = [layers.Dense(4, name=f"block{i}a_project_and_expand_{i}x") for i in range(3)]
    inner = keras.Sequential([keras.Input((4,)), *parts], name="a_backbone_with_a_name")
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2, name="end")])
    plan = sgdap.plan(model, np.eye(4), sgdap.Budget(params=0.8), folds=2)
    for text in (str(plan), str(sgdap.inspect(model)), str(sgdap.profile(model, latency=False))):
        lines = text.splitlines()
        assert max(map(len, lines)) <= int(columns)
        for i in range(3):
            assert any(f"{i}x" in line for line in lines)  # the end of each name
