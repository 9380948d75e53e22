"""What a model scores on the validation data of its `fit` before it trains; it changes nothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from sgdap import _keras
from sgdap.execution.data import can_be_read_again
from sgdap.model.generators import random_state, set_random_state


def validation_metrics(model: Any) -> tuple[dict[str, float], str]:
    """Evaluates a model on the validation data of the `fit` that is beginning.

    The run that follows is the one without it: variables, metrics and the generators of Python,
    NumPy and Keras are as before. Data that draw random numbers of their own (a shuffled
    `tf.data.Dataset`) draw them once more.

    Args:
        model: The model, compiled, in its `fit`.

    Returns:
        The metrics as `fit` logs them (`val_loss`, …) that are finite numbers, and, where the model
        was not evaluated, why, in words.
    """
    arguments = _keras.validation_arguments(model)
    if arguments is None:
        return {}, "the validation data of this fit can't be reached"
    if not arguments:
        return {}, "fit has no validation data"
    if not can_be_read_again(arguments["x"]):
        kind = type(arguments["x"]).__name__
        return {}, f"validation data of type {kind} may be gone after they are read once"
    with state_kept(model):
        found = model.evaluate(**arguments, verbose=0, return_dict=True)
    scalars = {f"val_{n}": float(value) for n, value in found.items() if np.ndim(value) == 0}
    return {name: value for name, value in scalars.items() if math.isfinite(value)}, ""


@contextlib.contextmanager
def state_kept(model: Any) -> Iterator[None]:
    """A context that leaves no trace in a model or in what the process draws by default."""
    drawn = random_state()
    held = [*_keras.layer_variables(model), *model.metrics_variables]
    before = {id(variable): (variable, variable.numpy()) for variable in held}
    try:
        yield
    finally:
        model.reset_metrics()  # those that were made meanwhile
        for variable, value in before.values():
            if variable.numpy().tobytes() != value.tobytes():
                variable.assign(value)
        set_random_state(drawn)
