"""Regularizers of the user's own that need to know how many channels there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from sgdap import _keras
from sgdap.channels.facts import Statements
from sgdap.channels.labels import Symbol
from sgdap.model.program import Program

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

    Args:
        program: The model's calls.
        statements: What the rules said; receives the protections.
        symbols: The labels of each tensor, by its number.
    """
    layers = program.layers()
    for (path, number, axis), fact in statements.axes.items():
        variable = _keras.layer_variables(layers[path])[number]
        regularizer = getattr(variable, "regularizer", None)
        if _needs(regularizer, tuple(variable.shape), axis):
            statements.ledger.protect(fact.labels[0], _reason(path, regularizer))
    for call in program.calls:
        regularizer = getattr(call.operation, "activity_regularizer", None)
        for symbol in (symbols[ref.index] for ref in call.outputs):
            for axis, labels in enumerate(symbol.axes):
                shape = tuple(size or 2 for size in symbol.shape)
                if labels is not None and _needs(regularizer, shape, axis):
                    statements.ledger.protect(labels, _reason(call.path, regularizer))


def _needs(regularizer: Any, shape: tuple[int, ...], axis: int) -> bool:
    if regularizer is None or isinstance(regularizer, _KNOWN):
        return False
    for width in {shape[axis] - 1, shape[axis] // 2}:
        try:
            regularizer(keras.ops.zeros([*shape[:axis], width, *shape[axis + 1 :]]))
        except Exception:  # whatever it raises, it can't be computed for that width
            return True
    return False


def _reason(path: str, regularizer: Any) -> str:
    name = getattr(regularizer, "__name__", type(regularizer).__name__)
    return f"{name}, a regularizer of '{path}', can't do without some of them"
