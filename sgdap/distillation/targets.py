"""Checks of targets and sample weights before weights are moved by them; changes nothing."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from sgdap import _keras
from sgdap.execution.data import rows_of
from sgdap.execution.losses import compiled_terms, program_loss
from sgdap.execution.output_scales import targets_of
from sgdap.model.program import Program


def check_sample_weights(weights: Any) -> None:
    """Raises if sample weights can't weigh a loss.

    Args:
        weights: Sample weights as arrays in Keras' structure, or None.

    Raises:
        ValueError: They are not finite, negative, or all zero.
    """
    for own in (np.asarray(leaf) for leaf in keras.tree.flatten(weights) if leaf is not None):
        if not np.isfinite(own).all():
            found = f"{np.sum(~np.isfinite(own))} that are NaN or infinite"
        elif (own < 0).any():
            found = f"{np.sum(own < 0)} below zero, the least is {own.min():g}"
        elif not own.any():
            found = "zeros only"
        else:
            continue
        raise ValueError(
            "Sample weights must be finite, not negative and not all zero. "
            f"Received: {found}, of {own.size}. A weight of 0 leaves a sample out."
        )


def check_targets(program: Program, x: Any, y: Any, weights: Any, batch: int) -> None:
    """Raises if the loss that a model was compiled with can't be computed of targets.

    Args:
        program: The calls of the model.
        x: All inputs, as arrays.
        y: All targets, as arrays.
        weights: All sample weights, or None.
        batch: Samples in a batch, of which one is tried.

    Raises:
        ValueError: A class number is none of the output's, targets are not finite, or the loss
            raises.
    """
    for leaf in keras.tree.flatten(y):
        if np.issubdtype(np.asarray(leaf).dtype, np.floating) and not np.isfinite(leaf).all():
            raise ValueError(
                "The targets are not finite: they hold NaN or infinity. Take these samples out, as "
                "for training."
            )
    model = program.model
    _check_class_numbers(program, y)
    some = rows_of((x, y, weights), slice(None, batch))
    try:
        with keras.StatelessScope():  # no variable of the model changes
            made = model(some[0], training=False)
        model.compute_loss(*some[:2], made, some[2])
    except Exception as error:  # the loss may be the user's
        received = ", ".join(_described(leaf) for leaf in keras.tree.flatten(y))
        outputs = ", ".join(str(program.shapes[ref.index]) for ref in program.outputs)
        raise ValueError(
            f"The loss of model '{model.name}' can't be computed of these targets: {error} "
            f"Received: targets of {received}, for outputs of shape {outputs}. Pass targets as for "
            "fit: class numbers for a sparse categorical loss, one-hot rows for a categorical one."
        ) from error


def _check_class_numbers(program: Program, y: Any) -> None:
    count = len(program.outputs)
    targets = targets_of(program_loss(program), y, count)
    for number, loss, _ in compiled_terms(program)[0]:
        function, options = _keras.loss_function(loss)
        target = None if targets is None else targets[number]
        if function is not keras.losses.sparse_categorical_crossentropy or target is None:
            continue
        shape = program.shapes[program.outputs[number].index]
        classes = shape[options.get("axis", -1)]
        found = np.unique(np.asarray(target))
        wrong = found[((found < 0) | (found >= classes)) & (found != options.get("ignore_class"))]
        if len(wrong):
            raise ValueError(
                f"The output has {classes} classes, so targets of a sparse categorical loss must "
                f"be class numbers from 0 to {classes - 1}. Received: "
                f"{', '.join(f'{own:g}' for own in wrong[:5])}{', …' if len(wrong) > 5 else ''}. "
                "Count classes from 0, or give the model more outputs."
            )


def _described(leaf: Any) -> str:
    array = np.asarray(leaf)
    return f"shape {array.shape} and type {array.dtype}"
