"""Models are timed in turns, in the runtimes that they are shipped in."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from sgdap import _extras
from sgdap.execution import latency
from sgdap.execution.latency import (
    NoisyClockError,
    Stopwatch,
    check_runtime,
    compare_latency,
    measure_latency,
)
from tests.models import convnet


@pytest.mark.compiled
def test_latency_is_measured_for_each_model():
    model = convnet()
    both = compare_latency([model, model], batch_size=4, repeats=2)
    assert len(both) == 2
    assert all(0 < seconds < 10 for seconds in (*both, measure_latency(model, repeats=2)))


def test_a_model_is_timed_compiled_where_functions_run_eagerly():
    eager = []

    def noting(x):
        eager.append(tf.executing_eagerly())
        return x

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, noting)])
    assert measure_latency(model, repeats=2) > 0
    assert eager and not any(eager)


def dense(width: int) -> keras.Model:
    inputs = keras.Input((512,))
    x = keras.layers.Dense(width, "relu")(inputs)
    return keras.Model(inputs, keras.layers.Dense(width)(x))


@pytest.mark.compiled
@pytest.mark.parametrize("runtime", ["keras", "litert", "onnx"])
def test_a_model_that_computes_more_takes_longer_in_each_runtime(runtime, monkeypatch):
    monkeypatch.setattr(latency, "_TOLERANCE", 1.0)  # other tests run beside it
    watch = Stopwatch(dense(2048), 8, runtime)
    assert 0 < watch.seconds_of(dense(16)) < watch.seconds < 10


@pytest.mark.compiled
@pytest.mark.parametrize("runtime", ["keras", "litert", "onnx"])
def test_longer_inputs_take_longer_where_sizes_are_left_open(runtime, monkeypatch):
    monkeypatch.setattr(latency, "_TOLERANCE", 1.0)
    first, second = keras.Input((None, 64)), keras.Input((4,))
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Conv1D(64, 5, padding="same")(first))
    model = keras.Model([first, second], keras.layers.Concatenate()([x, second]))
    short, long = (
        Stopwatch(model, 2, runtime, [(None, length, 64), (None, 4)]) for length in (4, 4000)
    )
    assert 0 < short.seconds < long.seconds < 10


def test_a_machine_that_gets_slower_makes_no_difference(monkeypatch):
    """Times are compared with what the first model takes at the same time."""
    pace = [1.0]
    monkeypatch.setattr(latency, "_seconds", lambda run: pace[0] * run())
    monkeypatch.setattr(latency, "_prepared", lambda model, *_: lambda: model)
    watch = Stopwatch(0.004)
    pace[0] = 3.0
    assert watch.seconds == pytest.approx(0.004)
    assert watch.seconds_of(0.001) == pytest.approx(0.001)


def test_a_clock_that_can_not_be_read_is_refused(monkeypatch):
    noise = np.random.default_rng(0)
    monkeypatch.setattr(latency, "_MOST_SECONDS", 0.01)
    monkeypatch.setattr(latency, "_seconds", lambda run: float(noise.exponential(0.1)))
    monkeypatch.setattr(latency, "_prepared", lambda model, *_: lambda: time.sleep(0.0002))
    with pytest.raises(NoisyClockError, match=r"known to ±\d+% only. Close what else runs"):
        Stopwatch(0.004)


def test_times_far_from_the_limit_need_not_be_known_well(monkeypatch):
    noise = np.random.default_rng(0)
    monkeypatch.setattr(latency, "_seconds", lambda run: run())
    monkeypatch.setattr(latency, "_prepared", lambda model, *_: lambda: model)
    watch = Stopwatch(0.004)
    monkeypatch.setattr(latency, "_MOST_SECONDS", 0.01)
    monkeypatch.setattr(latency, "_TOLERANCE", 0.0)
    monkeypatch.setattr(latency, "_seconds", lambda run: run() * float(noise.uniform(0.1, 2.0)))
    assert watch.seconds_of(0.004, limit=1.0) < 1.0


@pytest.mark.parametrize(
    ("runtime", "error", "message"),
    [
        ("tflite", ValueError, "No runtime is called 'tflite'. There are: keras, litert, onnx"),
        (3, TypeError, "a function that takes a model and returns seconds. Received: runtime=3"),
    ],
)
def test_a_runtime_that_is_not_there_is_refused(runtime, error, message):
    with pytest.raises(error, match=message):
        check_runtime(runtime)


def test_a_runtime_that_is_not_installed_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(_extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs onnxruntime and tf2onnx: pip install 'sgdap"):
        check_runtime("onnx")


def test_a_function_of_the_users_must_return_seconds():
    with pytest.raises(ValueError, match="must return the seconds.*Received: None"):
        Stopwatch(None, runtime=lambda model: None)
