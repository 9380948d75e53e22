"""All models of `keras.applications`, found in the module."""

import inspect

import keras
import numpy as np
import pytest

pytestmark = [pytest.mark.architectures, pytest.mark.compiled]

APPLICATIONS = dict(inspect.getmembers(keras.applications, inspect.isfunction))


def smallest(make) -> keras.Model:
    """A model of an architecture for the smallest images that it accepts."""
    for size in range(8, 512):
        try:
            return make(
                weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
            )
        except ValueError:
            keras.backend.clear_session()
    raise AssertionError("It accepts no image.")


def images(model: keras.Model) -> np.ndarray:
    """Four random images, in the range of pixels where the model scales them itself."""
    x = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")
    scales = any(isinstance(layer, keras.layers.Rescaling) for layer in model.layers)
    return x * 64 + 128 if scales else x


@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application_pruned_at_random_passes_the_proof(name, tmp_path, tabulated):
    model = smallest(APPLICATIONS[name])
    evidence = tabulated(name, model, images(model), tmp_path)
    assert evidence.params[1] < 0.6 * evidence.params[0]
