"""Regularizers of the user's own that need to know how many channels there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from sgdap import _keras
from sgdap.channels.facts import Statements
from sgdap.channels.labels import Symbol
from sgdap.model.program import Program
from sgdap.model.user_code import first_sentence

_KNOWN = tuple(
    found
    for found in vars(keras.regularizers).values()
    if isinstance(found, type) and found is not keras.regularizers.Regularizer
)


def keep_what_regularizers_need(
    program: Program, statements: Statements, symbols: Mapping[int, Symbol]
) -> None:
    """Protects channels without some of which a regularizer of the user's own can't be computed.

    What it is computed of are zeros, so only how many are left out counts: one, and half.
    """
    layers = program.layers()
    penalised = []
    for (path, number, axis), fact in statements.axes.items():
        variable = _keras.layer_variables(layers[path])[number]
        regularizer = getattr(variable, "regularizer", None)
        penalised.append((path, regularizer, tuple(variable.shape), axis, fact.labels[0]))
    for call in program.calls:
        regularizer = getattr(call.operation, "activity_regularizer", None)
        for symbol in (symbols[ref.index] for ref in call.outputs):
            shape = tuple(size or 2 for size in symbol.shape)
            for axis, labels in enumerate(symbol.axes):
                if labels is not None:
                    penalised.append((call.path, regularizer, shape, axis, labels))
    for path, regularizer, shape, axis, labels in penalised:
        error = _failure(regularizer, shape, axis)
        if error is not None:
            name = getattr(regularizer, "__name__", type(regularizer).__name__)
            reason = (
                f"{name}, a regularizer of '{path}', can't be computed without some of them; it "
                f"stops with {type(error).__name__}: {first_sentence(error)}. Let it take sizes "
                "from the shape of what it is given"
            )
            statements.ledger.protect(labels, reason)


def _failure(regularizer: Any, shape: tuple[int, ...], axis: int) -> Exception | None:
    """What a regularizer raises where an axis is shorter; None where it can be computed."""
    if regularizer is None or isinstance(regularizer, _KNOWN):
        return None
    for width in {shape[axis] - 1, shape[axis] // 2}:
        try:
            regularizer(keras.ops.zeros([*shape[:axis], width, *shape[axis + 1 :]]))
        except Exception as error:  # whatever it raises, it can't be computed for that width
            return error
    return None
