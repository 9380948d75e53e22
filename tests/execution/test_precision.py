"""While statistics are gathered no GPU multiplies in TensorFloat-32; afterwards as before."""

import threading

import pytest
import tensorflow as tf

import sgdap
from sgdap.execution import batch_sums, segments
from sgdap.execution.precision import full_precision
from tests.models import mlp, samples

enabled = tf.config.experimental.tensor_float_32_execution_enabled


@pytest.fixture(params=[True, False], autouse=True)
def setting(request):
    before = enabled()
    tf.config.experimental.enable_tensor_float_32_execution(request.param)
    yield request.param
    assert enabled() is request.param
    tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.mark.parametrize("module", [batch_sums, segments])
def test_both_passes_over_the_data_run_without_it(module, monkeypatch):
    seen = []
    traced = module.traced_for_any_batch

    def noting(shapes, step):
        run = traced(shapes, step)
        return lambda *batch: (seen.append(enabled()), run(*batch))[1]

    monkeypatch.setattr(module, "traced_for_any_batch", noting)
    model = mlp()
    sgdap.plan(model, samples(model, 40), sgdap.Budget(flops=0.5))
    assert seen and not any(seen)


def test_it_is_restored_after_an_error():
    with pytest.raises(RuntimeError), full_precision():
        assert not enabled()
        raise RuntimeError


def test_it_is_restored_when_the_last_of_several_threads_is_through(setting):
    inside, leave = threading.Barrier(3), threading.Event()

    def work():
        with full_precision():
            inside.wait(10)
            leave.wait(10)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    with full_precision():
        assert not enabled()
    assert not enabled(), "two others still run"
    leave.set()
    for thread in threads:
        thread.join()
    assert enabled() is setting
