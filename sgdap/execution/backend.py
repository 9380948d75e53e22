"""Which of Keras' backends models can be run on here."""

from __future__ import annotations

import keras


def check_backend(what: str) -> None:
    """Checks that Keras computes with TensorFlow, before anything is run or changed.

    Args:
        what: What is about to be done, as the message names it.

    Raises:
        RuntimeError: If Keras uses another backend.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise RuntimeError(
            f"{what} runs the model with TensorFlow, and Keras uses the backend '{backend}'. "
            "Reading a model works there (sgdap.inspect, sgdap.profile). To prune it, save it, set "
            "the environment variable KERAS_BACKEND=tensorflow, start Python anew and load it."
        )
