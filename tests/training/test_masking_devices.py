"""Masks on two devices are those on one, and hold on both."""

import numpy as np
import pytest

pytestmark = pytest.mark.devices


@pytest.fixture(scope="module")
def runs(devices):
    return devices.found_by("tests.training.mirrored_masks_run")


RUNS = [f"gradient {o}" for o in ("adam", "averaged", "scaled")]
RUNS += ["second_order adam"]


@pytest.mark.parametrize("name", RUNS)
def test_weights_with_a_mask_are_zero_after_each_step_on_both_devices(runs, name):
    one, two = runs["one"][name], runs["two"][name]
    assert one["wrong"] == two["wrong"] == 0
    assert set(two["copies"]) == {2}
    assert two["alike"]
    assert one["rounds"] == two["rounds"] == [0, 1]
    for weights, mask in zip(two["weights"][::2], two["masks"], strict=True):
        np.testing.assert_array_equal(np.array(weights) != 0, mask)


@pytest.mark.parametrize("name", RUNS)
def test_both_devices_choose_and_train_as_one(runs, name):
    one, two = runs["one"][name], runs["two"][name]
    assert one["masks"] == two["masks"]
    for mine, other in zip(one["weights"], two["weights"], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)


def test_a_run_on_both_devices_that_was_interrupted_goes_on(runs):
    whole, resumed = (runs["two"][name] for name in ("gradient adam", "resumed"))
    assert resumed["masks"] == whole["masks"]
    assert (whole["epochs"], resumed["epochs"]) == ([0, 1, 2], [2])
    for mine, other in zip(resumed["weights"], whole["weights"], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
