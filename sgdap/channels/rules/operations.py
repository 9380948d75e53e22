"""Operations and layers that multiply and sum: their axes are known by letters."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from sgdap import _keras
from sgdap.channels.labels import Labels, Symbol, plain, positions
from sgdap.channels.patches import Patches
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.channels.rules.activation import is_elementwise
from sgdap.channels.rules.trial import MIXES, tried
from sgdap.model.program import Ref

_SQUARE = keras.KerasTensor((2, 2))
_EINSUM, _MATMUL, _DOT, _TENSORDOT, _SUM = (
    _keras.operation_class(function, *arguments)
    for function, *arguments in (
        (keras.ops.einsum, "ab,bc->ac", _SQUARE, _SQUARE),
        (keras.ops.matmul, _SQUARE, _SQUARE),
        (keras.ops.dot, _SQUARE, _SQUARE),
        (keras.ops.tensordot, _SQUARE, _SQUARE, 1),
        (keras.ops.sum, _SQUARE),
    )
)


@register_rule(_EINSUM)
def einsum(operation: Any, call: RuleCall) -> Symbol:
    """Letters that meet are tied; those of the result pass."""
    return _by_equation(operation, call, operation.subscripts)


@register_rule(_MATMUL)
def matmul(operation: Any, call: RuleCall) -> Symbol:
    """The last axis of the first meets the last but one of the second."""
    if min(symbol.rank for symbol in _operands(call)) < 2:
        return _keep_all(operation, call)
    return _by_equation(operation, call, "...ab,...bc->...ac")


@register_rule(_DOT, _TENSORDOT)
def tensordot(operation: Any, call: RuleCall) -> Symbol:
    """The axes that it names meet, the others pass."""
    first, second = operands = _operands(call)
    if isinstance(operation, _DOT):
        if min(first.rank, second.rank) < 2:
            return _keep_all(operation, call)
        return _meeting(operation, call, operands, [first.rank - 1], [second.rank - 2])
    axes = operation.axes
    if isinstance(axes, int):
        axes = (range(first.rank - axes, first.rank), range(axes))
    mine, theirs = ([a] if isinstance(a, int) else list(a) for a in axes)
    return _meeting(operation, call, operands, mine, theirs)


@register_rule(layers.Dot)
def dot(layer: Any, call: RuleCall) -> Symbol:
    """The channels along the axes that are summed over leave together, all others pass."""
    axes = [layer.axes] * 2 if isinstance(layer.axes, int) else layer.axes
    if layer.normalize:
        for symbol, axis in zip(call.inputs, axes, strict=True):
            call.keep_along(symbol, axis, f"'{layer.name}' normalises over them")
    return _meeting(layer, call, call.inputs, [axes[0]], [axes[1]], aligned=1)


@register_rule(_SUM)
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


@register_rule(layers.EinsumDense)
def einsum_dense(layer: Any, call: RuleCall) -> Symbol:
    """A kernel's axes that the input has too are read, those that the output has are made."""
    x = call.input
    read, kernel, made = layer.equation.replace(" ", "").replace("->", ",").split(",")
    if "..." in made and not made.startswith("..."):
        call.keep(
            x, f"'{layer.name}' has an ellipsis inside its equation; write a letter for each axis"
        )
        return call.output()
    given = len(layer.partial_output_shape)
    before = len(call.output_shape) - given if made.startswith("...") else 1
    read, made = _spelt_out([read, made], [x.rank, len(call.output_shape)], layer.equation)
    labels: dict[str, Any] = {}
    for letter, size in zip(kernel, layer.kernel.shape, strict=True):
        if letter not in read:
            labels[letter] = call.new_channels(int(size), letter)
            continue
        axis = read.index(letter)
        if x.axes[axis] is None and letter not in made:
            x = x.with_axis(axis, call.along(x, axis))
        labels[letter] = x.axes[axis]
    of_kernel = [labels[letter] for letter in kernel]
    call.weight(layer.kernel, *of_kernel)
    weights = Symbol(tuple(layer.kernel.shape), tuple(of_kernel))
    output = _contract(layer, call, [x, weights], [read, kernel], made)
    for place, size in enumerate(layer.partial_output_shape, before):
        if (channels := output.axes[place]) is not None and size is not None:
            call.resize(("output_shape", place - before), channels)
    if layer.bias is not None:
        lines = [
            own if letter in layer.bias_axes else None
            for letter, own in zip(made, output.axes, strict=True)
        ]
        call.weight(layer.bias, *lines[min(map(made.index, layer.bias_axes)) :])
    feature, unit = read[-1], made[-1]
    if kernel == feature + unit and feature not in made and unit not in read:
        call.linear(layer.kernel, layer.bias, Patches(), labels[feature], labels[unit])
    if not all(is_elementwise(layer.activation, len(c)) for c in output.all_channels()):
        call.keep(output, f"the activation of '{layer.name}' mixes the channels")
    return output


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


def _by_equation(operation: Any, call: RuleCall, equation: str) -> Symbol:
    """A contraction that an equation tells: `"...ab,...bc->...ac"`."""
    read, arrow, made = equation.replace(" ", "").partition("->")
    operands, terms = _operands(call), read.split(",")
    if not arrow or len(terms) != len(operands):
        return _keep_all(operation, call)
    ranks = [*(symbol.rank for symbol in operands), len(call.output_shape)]
    *terms, made = _spelt_out([*terms, made], ranks, equation)
    return _contract(operation, call, operands, terms, made)


def _spelt_out(terms: Sequence[str], ranks: Sequence[int], equation: str) -> list[str]:
    """Terms with letters in the place of ellipses, the same ones for axes that meet at the end."""
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    hidden = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)]
    widest = "".join(spare[: max(hidden)])
    dots = [widest[len(widest) - count :] for count in hidden]
    return [term.replace("...", own) for term, own in zip(terms, dots, strict=True)]


def _meeting(
    operation: Any,
    call: RuleCall,
    operands: Sequence[Symbol],
    mine: Sequence[int],
    theirs: Sequence[int],
    aligned: int = 0,
) -> Symbol:
    """A contraction of two tensors over axes that meet in pairs; the first `aligned` ones pass."""
    first, second = operands
    left, right = string.ascii_lowercase[: first.rank], [*string.ascii_uppercase[: second.rank]]
    right[:aligned] = left[:aligned]
    for one, other in zip(mine, theirs, strict=True):
        right[other] = left[one]
    met = [left[one] for one in mine]
    made = [letter for letter in dict.fromkeys([*left, *right]) if letter not in met]
    return _contract(operation, call, operands, [left, "".join(right)], "".join(made))


def _contract(
    operation: Any, call: RuleCall, operands: Sequence[Symbol], terms: Sequence[str], made: str
) -> Symbol:
    """Multiplies tensors whose axes have the same letter where they meet, and sums the rest up.

    Args:
        operation: The layer or operation.
        call: Its call.
        operands: The tensors.
        terms: For each of them a letter for each axis.
        made: The letters of the result's axes.
    """
    if any(len(set(term)) < len(term) for term in (*terms, made)):
        return _keep_all(operation, call)
    output = call.output()
    sizes: dict[str, int | None] = {}
    along: dict[str, Labels] = {}
    for letter in dict.fromkeys("".join(terms)):
        found = [
            (symbol.shape[term.index(letter)], symbol.axes[term.index(letter)])
            for symbol, term in zip(operands, terms, strict=True)
            if letter in term
        ]
        widths = [size for size, _ in found]
        sizes[letter] = None if None in widths else max(size or 1 for size in widths)
        met = [own for _, own in found if own is not None]
        others = [size for size, own in found if own is None]
        if not met:
            continue
        alike = len({len(channels) for channels in met}) == 1
        reason = MIXES if others and letter not in made else ""
        if not alike or any(size != 1 for size in others):
            reason = "reads them with a tensor that keeps all"
        for channels in met if reason else ():
            call.keep(channels, f"'{operation.name}' {reason}")
        if not alike:
            continue
        for channels in met[1:]:
            call.tie(met[0], channels)
        along[letter] = met[0]
        if letter in made and output.shape[made.index(letter)] in (None, len(met[0])):
            output = output.with_axis(made.index(letter), met[0])
    if isinstance(operation, keras.Layer):
        del sizes[terms[0][0]]  # of the batch
    rest = [size for letter, size in sizes.items() if letter not in along]
    call.work(2 * positions(rest), *along.values())
    return output
