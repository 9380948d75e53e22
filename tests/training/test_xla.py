"""Whether to compile with XLA is measured, and the model stays as it is meanwhile."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

from sgdap.model.tracing import trace
from sgdap.training import xla as measuring
from tests.models import randomise, samples


@pytest.fixture
def model():
    made = keras.Sequential(
        [
            keras.Input((6, 2)),
            layers.LSTM(4),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )
    made.compile("adam", "mse")
    return randomise(made)


def seconds(monkeypatch, plain, first, compiled):
    """Lets the clock show these times for a plain step, a compile and a compiled step."""
    found = iter([(9.0, plain), (first, compiled)])
    monkeypatch.setattr(measuring, "_seconds", lambda function, **_: next(found))


@pytest.mark.parametrize(
    "plain,first,compiled,steps,compiles,chosen",
    [
        (1.0, 20.0, 0.5, 100, 2, True),  # 50 s won for 40 s of compiles
        (1.0, 20.0, 0.5, 100, 3, False),
        (1.0, 20.0, 0.9, 100, 1, False),
        (1.0, 20.0, 1.5, 10_000, 1, False),
        (0.1, 0.0, 0.0, 599, 1, False),  # not a minute is left
    ],
)
def test_xla_is_chosen_where_it_pays_for_its_compiles(
    monkeypatch, model, plain, first, compiled, steps, compiles, chosen
):
    seconds(monkeypatch, plain, first, compiled)
    found, _ = measuring.choose_jit_compile(trace(model), samples(model, 4), steps, compiles)
    assert found is chosen


@pytest.mark.parametrize(("lasting", "calls"), [(0.1, 6), (0.4, 4), (30.0, 2)])
def test_steps_that_take_long_are_timed_but_once(monkeypatch, lasting, calls):
    now, steps = [0.0], []

    def step():
        steps.append(None)
        now[0] += lasting + (len(steps) == 1)
        return []

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    assert measuring._seconds(step) == pytest.approx((lasting + 1, lasting))
    assert len(steps) == calls


@pytest.mark.parametrize(("steps", "calls"), [(0, 1), (60, 1), (10**9, 6)])
def test_one_call_tells_that_the_steps_left_take_less_than_a_minute(
    monkeypatch, model, steps, calls
):
    asked = []
    clock = SimpleNamespace(perf_counter=lambda: asked.append(None) or 0.1 * (len(asked) % 2 == 0))
    monkeypatch.setattr(measuring, "time", clock)
    chosen, _ = measuring.choose_jit_compile(trace(model), samples(model, 4), steps, 1)
    assert not chosen
    assert len(asked) == 2 * calls * (1 + (calls > 1))  # with XLA it takes as long


@pytest.mark.compiled
def test_both_ways_are_timed_on_a_batch_and_nothing_of_the_model_changes(model):
    before = [v.numpy().copy() for v in model.variables]
    chosen, why = measuring.choose_jit_compile(trace(model), samples(model, 4), 10**9, 1)
    assert "a step with XLA takes" in why and isinstance(chosen, bool)
    after = [v.numpy().copy() for v in model.variables]
    assert all(map(np.array_equal, before, after))
    assert model.optimizer.iterations == 0
