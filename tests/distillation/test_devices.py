"""A teacher teaches a model on two devices what it teaches it on one."""

import numpy as np
import pytest

pytestmark = pytest.mark.devices


def test_two_devices_learn_from_a_teacher_what_one_does(devices):
    one, two = devices.found_by("tests.distillation.mirrored_run").values()
    for name in ("distillation_loss", "loss"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4)
    for mine, other in zip(one["weights"], two["weights"], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)
