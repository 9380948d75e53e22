"""On two devices kernels and activations lie on the lattices that they lie on with one."""

import numpy as np
import pytest


@pytest.mark.devices
def test_two_devices_hold_the_levels_of_one(devices):
    for one, two in (own.values() for own in devices.found_by(MODULE).values()):
        assert one["levels"] == two["levels"] == 3
        assert two["apart"] == 0
        np.testing.assert_allclose(one["weights"], two["weights"], atol=1e-3)
        assert one["ranges"].keys() == two["ranges"].keys()
        for name, ends in one["ranges"].items():
            np.testing.assert_allclose(two["ranges"][name], ends, atol=1e-3)


MODULE = "tests.training.mirrored_levels_run"
