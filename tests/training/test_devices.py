"""A run on two devices makes the slim model that a run on one device makes."""

import numpy as np
import pytest

from tests.training.mirrored_run import SAMPLES, data

pytestmark = pytest.mark.devices


@pytest.fixture(scope="module")
def runs(devices):
    return devices.found_by("tests.training.mirrored_run")


def test_statistics_are_those_of_one_device(runs):
    one, two = runs["one"]["data"], runs["two"]["data"]
    for name in ("moments", "sensitivity"):
        for mine, other in zip(one[name], two[name], strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-6)


@pytest.mark.parametrize("source", ["data", "reservoir"])
def test_the_slim_model_is_that_of_one_device_and_lives_on_both(runs, source):
    one, two = runs["one"][source], runs["two"][source]
    assert two["kinds"] == ["MirroredVariable"]
    assert set(two["copies"]) == {2}
    assert two["alike"]
    assert one["widths"] == two["widths"] != [8, 6, 3]
    assert one["iterations"] == two["iterations"] == 6
    if source == "data":  # the sample comes in another order from two devices
        for mine, other in zip(one["weights"], two["weights"], strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)


def test_copies_live_on_the_devices_of_their_model(runs):
    for copy in runs["two"]["copies"]:
        assert copy["kinds"] == ["MirroredVariable"]
        assert set(copy["copies"]) == {2}
        assert copy["alike"]


def test_the_sample_of_the_training_data_has_the_batches_of_both_devices(runs):
    for run in runs.values():
        assert run["reservoir"]["seen"] == SAMPLES
        np.testing.assert_array_equal(run["reservoir"]["sample"], np.sort(data()[0], axis=0))


def test_a_round_is_undone_on_both_devices_as_on_one(runs):
    one, two = runs["one"]["guarded"], runs["two"]["guarded"]
    assert two["decisions"] == one["decisions"]
    assert two["decisions"][0] == "undone"
    assert two["widths"] == one["widths"]
    assert two["kinds"] == ["MirroredVariable"]
    assert two["alike"]


def test_a_run_on_both_devices_that_was_interrupted_goes_on_on_both(runs):
    whole, resumed = runs["two"]["guarded"], runs["two"]["resumed"]
    assert (whole.pop("epochs"), resumed.pop("epochs")) == ([0, 1, 2], [2])
    assert resumed == whole
