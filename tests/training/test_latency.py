"""Latency is measured in a compiled function, for several models in turn."""

import pytest

from sgdap.training.latency import compare_latency, measure_latency
from tests.models import convnet


@pytest.mark.compiled
def test_latency_is_measured_for_each_model():
    model = convnet()
    both = compare_latency([model, model], batch_size=4, repeats=2)
    assert len(both) == 2
    assert all(0 < seconds < 10 for seconds in (*both, measure_latency(model, repeats=2)))
