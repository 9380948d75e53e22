"""Progress says which group is scored, how many there are, and how long it took."""

import io
import re

import pytest
from rich.console import Console

import sgdap
from sgdap.report.progress import Progress
from tests.models import convnet, digits_like


def test_a_quiet_plan_prints_nothing_and_a_verbose_one_every_step(capsys):
    model, (x, _) = convnet(), digits_like(40)
    budget = sgdap.Budget(flops=0.6)
    sgdap.plan(model, x, budget)
    assert capsys.readouterr().out == ""
    sgdap.plan(model, x, budget, verbose=1)
    shown = capsys.readouterr().out
    assert re.search(r"calibration: samples .* 40/40 +0:00:\d\d", shown)
    assert re.search(r"scoring: (conv_1|conv_2|hidden) .* 3/3 +0:00:\d\d", shown)
    assert re.search(r"refitting: pass 2 of 2 .* 80/80", shown)


def test_the_line_of_a_step_says_what_is_left():
    written = io.StringIO()
    graph = sgdap.channel_graph(convnet())
    with Progress(1, Console(file=written, width=100)) as progress:
        begin = progress.groups(3)
        begin(graph.groups[0])
        begin(graph.groups[1])
    assert f"scoring: {graph.groups[1].name}" in written.getvalue()
    assert "2/3" in written.getvalue()


@pytest.mark.parametrize("verbose", [2, "auto", None])
def test_another_verbose_is_refused(verbose):
    with pytest.raises(ValueError, match="verbose must be 0 or 1. Received: verbose="):
        sgdap.plan(convnet(), digits_like(8)[0], sgdap.Budget(flops=0.5), verbose=verbose)
