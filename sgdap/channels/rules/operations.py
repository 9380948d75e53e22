"""Operations that multiply and sum: their axes are known by letters."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from sgdap import _keras
from sgdap.channels.labels import Labels, Symbol, plain, positions
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.channels.rules.trial import MIXES, tried
from sgdap.model.program import Ref


def _class(function: Any, *arguments: Any) -> type:
    return _keras.operation_class(function, *arguments)


_SQUARE = keras.KerasTensor((2, 2))


@register_rule(_class(keras.ops.einsum, "ab,bc->ac", _SQUARE, _SQUARE))
def einsum(operation: Any, call: RuleCall) -> Symbol:
    """Letters that meet are tied; those of the result pass."""
    equation = operation.subscripts.replace(" ", "")
    read, arrow, made = equation.partition("->")
    operands = _operands(call)
    terms = read.split(",")
    if not arrow or len(terms) != len(operands):
        return _keep_all(operation, call)
    spare = [c for c in string.ascii_letters if c not in equation]
    ranks = [s.rank - len(t.replace("...", "")) for s, t in zip(operands, terms, strict=True)]
    widest = "".join(spare[: max(ranks)])
    terms = [t.replace("...", widest[len(widest) - r :]) for t, r in zip(terms, ranks, strict=True)]
    return _contract(operation, call, operands, terms, made.replace("...", widest))


@register_rule(_class(keras.ops.matmul, _SQUARE, _SQUARE), _class(keras.ops.dot, _SQUARE, _SQUARE))
def product(operation: Any, call: RuleCall) -> Symbol:
    """The last axis of the first meets the last but one of the second."""
    operands = _operands(call)
    first, second = operands
    if min(first.rank, second.rank) < 2:
        return _keep_all(operation, call)
    batch = string.ascii_letters[3:]
    if isinstance(operation, _class(keras.ops.dot, _SQUARE, _SQUARE)):
        left, right = batch[: first.rank - 2], batch[20 : 20 + second.rank - 2]
        made = f"{left}a{right}c"
    else:
        longest = batch[: max(first.rank, second.rank) - 2]
        left = longest[len(longest) - first.rank + 2 :]
        right = longest[len(longest) - second.rank + 2 :]
        made = f"{longest}ac"
    return _contract(operation, call, operands, [f"{left}ab", f"{right}bc"], made)


@register_rule(_class(keras.ops.tensordot, _SQUARE, _SQUARE, 1))
def tensordot(operation: Any, call: RuleCall) -> Symbol:
    """The axes that it names meet, the others pass."""
    operands = _operands(call)
    first, second = operands
    axes = operation.axes
    if isinstance(axes, int):
        axes = (range(first.rank - axes, first.rank), range(axes))
    mine, theirs = ([a] if isinstance(a, int) else list(a) for a in axes)
    left = list(string.ascii_lowercase[: first.rank])
    right = list(string.ascii_uppercase[: second.rank])
    for one, other in zip(mine, theirs, strict=True):
        right[other] = left[one]
    met = [left[one] for one in mine]
    made = [letter for letter in [*left, *right] if letter not in met]
    return _contract(operation, call, operands, ["".join(left), "".join(right)], "".join(made))


@register_rule(_class(keras.ops.sum, _SQUARE))
def total(operation: Any, call: RuleCall) -> Symbol | list[Symbol]:
    """What is summed over can lack some, the others pass."""
    x = call.input
    axes = range(x.rank) if operation.axis is None else np.atleast_1d(operation.axis)
    over = {int(axis) % x.rank for axis in axes}
    if all(x.axes[axis] is None for axis in over):
        return tried(operation, call)
    left = [None if axis in over else own for axis, own in enumerate(x.axes)]
    if not operation.keepdims:
        left = [own for axis, own in enumerate(left) if axis not in over]
    return Symbol(tuple(call.output_shape), tuple(left))


def _operands(call: RuleCall) -> list[Symbol]:
    """The operands in order; a constant array is a tensor of which nothing can be removed."""
    symbols = iter(call.inputs)
    flat = keras.tree.flatten((call.args, call.kwargs)) if call.inputs else []
    found = [next(symbols) if isinstance(leaf, Ref) else plain(np.shape(leaf)) for leaf in flat]
    return [symbol for symbol in found if symbol.rank]


def _keep_all(operation: Any, call: RuleCall) -> Symbol:
    for symbol in call.inputs:
        call.keep(symbol, f"'{operation.name}' {MIXES}")
    return call.output()


def _contract(
    operation: Any, call: RuleCall, operands: Sequence[Symbol], terms: Sequence[str], made: str
) -> Symbol:
    if any(len(set(term)) < len(term) for term in (*terms, made)):
        return _keep_all(operation, call)
    output = call.output()
    sizes: dict[str, int | None] = {}
    along: dict[str, Labels] = {}
    for letter in dict.fromkeys("".join(terms)):
        places = [
            (symbol, term.index(letter))
            for symbol, term in zip(operands, terms, strict=True)
            if letter in term
        ]
        widths = [symbol.shape[axis] for symbol, axis in places]
        sizes[letter] = None if None in widths else max(width or 1 for width in widths)
        met = [c for symbol, axis in places if (c := symbol.axes[axis]) is not None]
        others = [symbol.shape[axis] for symbol, axis in places if symbol.axes[axis] is None]
        if not met:
            continue
        if len({len(channels) for channels in met}) > 1 or any(size != 1 for size in others):
            for channels in met:
                call.keep(channels, f"'{operation.name}' reads them with a tensor that keeps all")
            if len({len(channels) for channels in met}) > 1:
                continue
        if others and letter not in made:
            for channels in met:
                call.keep(channels, f"'{operation.name}' {MIXES}")
        for channels in met[1:]:
            call.tie(met[0], channels)
        along[letter] = met[0]
        if letter in made and output.shape[made.index(letter)] == len(met[0]):
            output = output.with_axis(made.index(letter), met[0])
    rest = [size for letter, size in sizes.items() if letter not in along]
    call.work(2 * positions(rest), *along.values())
    return output
