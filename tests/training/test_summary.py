"""A run's summary says what it made of what, in one line and in several."""

import pytest

import sgdap
from sgdap.training.summary import RunSummary


@pytest.fixture
def summary() -> RunSummary:
    widths = {"conv_1": (6, 2), "hidden": (120, 52)}
    return RunSummary((61706, 18503), (833040, 223944), widths, "val_loss", (0.5, None), 3, 1)


def test_the_line_holds_everything(summary):
    assert summary.line == (
        "61,706 → 18,503 parameters (30.0%), 833,040 → 223,944 FLOPs (26.9%), "
        "widths 6-120 → 2-52, val_loss 0.5000 → not measured"
    )


def test_it_prints_a_line_for_each_group(summary):
    assert str(summary).splitlines() == [
        "parameters  61,706 → 18,503 (30.0%)",
        "FLOPs       833,040 → 223,944 (26.9%)",
        "val_loss    0.5000 → not measured",
        "rounds      3 kept, 1 undone",
        "channels",
        "  conv_1    6 → 2",
        "  hidden    120 → 52",
    ]


def test_flops_that_are_not_known_are_not_told():
    found = sgdap.RunSummary((8, 4), None, {})
    assert "FLOPs" not in found.line + str(found)


def test_a_run_without_groups_and_metric_has_a_summary_too():
    bare = sgdap.RunSummary((0, 0), (7, 7), {})
    assert bare.line == "0 → 0 parameters (0.0%), 7 → 7 FLOPs (100.0%)"
    assert "rounds" in str(bare) and "channels" not in str(bare)
