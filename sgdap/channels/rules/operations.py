"""`keras.ops` operations: contractions by their letters, all others by trying them out."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.labels import MEETS_FIXED, Labels, Symbol, plain, positions
from sgdap.channels.probing import Array, line_of, random_inputs, sources
from sgdap.channels.registry import register_default, register_rule
from sgdap.channels.remembering import Remembered, key_of, key_of_arguments
from sgdap.channels.rewriting import Written
from sgdap.channels.rule_call import RuleCall
from sgdap.model.program import Ref

_MIXES = "mixes them"
_FIXED = "can't do without some of them"

Numbers = npt.NDArray[np.int64]
"""The channels of one call, numbered from 0 for a trial."""


@dataclass(frozen=True, eq=False)
class Movement:
    """Where an operation puts its input's labels.

    Attributes:
        pairs: Numbers that leave together, `(pairs, 2)`.
        kept: Numbers that stay, and why.
        met: Numbers that stay because the output has indices of another input there too.
        lines: For each output and axis the labels along it (-1: none), or None.
    """

    pairs: Numbers
    kept: tuple[tuple[Numbers, str], ...]
    met: Numbers
    lines: tuple[tuple[Numbers | None, ...], ...]


_movements: Remembered[Movement | None] = Remembered(4096)


@register_default
def tried(operation: Any, call: RuleCall) -> list[Symbol]:
    """Runs the operation on random numbers to see where its input's channels go.

    A channel passes where each entry of the output depends on one channel at most. Otherwise the
    channels stay.
    """
    made = [plain(shape) for shape in call.output_shapes]
    axes = [
        (number, axis, channels)
        for number, symbol in enumerate(call.inputs)
        for axis, channels in enumerate(symbol.axes)
        if channels is not None
    ]
    if not axes:
        return made
    channels, inverse = np.unique(np.concatenate([c for _, _, c in axes]), return_inverse=True)
    bounds = np.cumsum([len(c) for _, _, c in axes])[:-1]
    labels = {
        (number, axis): own
        for (number, axis, _), own in zip(axes, np.split(inverse, bounds), strict=True)
    }
    movement = _movement(operation, call, labels, len(channels))
    if movement is None:
        for symbol in call.inputs:
            call.keep(symbol, f"'{operation.name}' can't be tried on random numbers")
        return made
    for first, second in movement.pairs:
        call.tie(channels[[first]], channels[[second]])
    for stay, reason in movement.kept:
        call.keep(channels[stay], f"'{operation.name}' {reason}")
    call.keep(channels[movement.met], MEETS_FIXED)
    for number, lines in enumerate(movement.lines):
        for axis, line in enumerate(lines):
            if line is None:
                continue
            along = channels[line]
            if (line < 0).any():
                along[line < 0] = call.constants(int((line < 0).sum()))
            made[number] = made[number].with_axis(axis, along)
    call.rewrite(made)
    return made


def _movement(
    operation: Any, call: RuleCall, labels: dict[tuple[int, int], Numbers], count: int
) -> Movement | None:
    """Tries an operation out, or remembers what came of it."""
    try:
        written = Written(operation.get_config(), call.args, call.kwargs)
    except NotImplementedError:
        return None
    key = (
        key_of(type(operation)),
        key_of({**written.config, "name": None}),
        key_of_arguments(call.args, call.kwargs),
        key_of([symbol.shape for symbol in call.inputs]),
        call.input_dtypes,
        key_of(list(labels.items())),
    )

    def find() -> Movement | None:
        try:
            return _try_out(operation, call, written, labels, count)
        except Exception:  # an operation that takes no random numbers: of a user, or of indices
            return None

    return _movements.get(key, find)


def _try_out(
    operation: Any,
    call: RuleCall,
    written: Written,
    labels: dict[tuple[int, int], Numbers],
    count: int,
) -> Movement:
    shapes = [symbol.shape for symbol in call.inputs]
    values = random_inputs(shapes, call.input_dtypes, 0)
    others = random_inputs(shapes, call.input_dtypes, 1)

    def run(inputs: Sequence[Array]) -> list[Array]:
        return _run(type(operation), written, inputs)

    whole = run(values)
    lines: list[list[Numbers | None]] = [[None] * part.ndim for part in whole]
    pairs = [np.zeros((0, 2), np.int64)]
    kept = []
    for (number, axis), own in labels.items():
        found = sources(run, values, others, number, axis, own) if np.ptp(own) else None
        if found is None:
            kept.append((np.unique(own), _MIXES))
            continue
        for part, source in enumerate(found):
            placed = line_of(source)
            if placed is None:
                kept.append((np.unique(source[source >= 0]), _FIXED))
                continue
            place, line, tied = placed
            pairs.append(tied)
            known = lines[part][place]
            if known is not None:
                both = (known >= 0) & (line >= 0)
                pairs.append(np.stack([known[both], line[both]], -1))
                line = np.where(known >= 0, known, line)
            lines[part][place] = line
    met = [np.zeros(0, np.int64)]
    for number, axis in _fixed_axes(shapes, labels, lines):
        own = np.arange(len(values[number].swapaxes(0, axis)))
        for part, source in enumerate(sources(run, values, others, number, axis, own) or ()):
            placed = line_of(source)
            known = None if placed is None else lines[part][placed[0]]
            if placed is not None and known is not None:
                met.append(known[(known >= 0) & (placed[1] >= 0)])
    return Movement(
        np.concatenate(pairs), tuple(kept), np.concatenate(met), tuple(map(tuple, lines))
    )


def _fixed_axes(
    shapes: Sequence[Sequence[int | None]],
    labels: Mapping[tuple[int, int], Numbers],
    lines: Sequence[Sequence[Numbers | None]],
) -> list[tuple[int, int]]:
    """Inputs and axes of theirs without labels that may meet labels of another input.

    What meets index by index is equally long.
    """
    if len(shapes) == 1:
        return []
    widths = {len(line) for part in lines for line in part if line is not None and len(line) > 1}
    return [
        (number, axis)
        for number, shape in enumerate(shapes)
        for axis, size in enumerate(shape)
        if size in widths and (number, axis) not in labels
    ]


def _run(operation_class: Any, written: Written, inputs: Sequence[Array]) -> list[Array]:
    operation = operation_class.from_config(dict(written.config))
    rest = list(inputs)

    def value(leaf: Any) -> Any:
        return keras.ops.convert_to_tensor(rest.pop(0)) if _is_ref(leaf) else leaf

    args, kwargs = keras.tree.map_structure(value, (written.args, dict(written.kwargs)))
    made = keras.tree.flatten(operation(*args, **kwargs))
    return [np.asarray(keras.ops.convert_to_numpy(part)) for part in made]


def _is_ref(leaf: Any) -> bool:
    return isinstance(leaf, Ref)


# Contractions


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
    found = [next(symbols) if _is_ref(leaf) else plain(np.shape(leaf)) for leaf in flat]
    return [symbol for symbol in found if symbol.rank]


def _keep_all(operation: Any, call: RuleCall) -> Symbol:
    for symbol in call.inputs:
        call.keep(symbol, f"'{operation.name}' {_MIXES}")
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
                call.keep(channels, f"'{operation.name}' {_MIXES}")
        for channels in met[1:]:
            call.tie(met[0], channels)
        along[letter] = met[0]
        if letter in made and output.shape[made.index(letter)] == len(met[0]):
            output = output.with_axis(made.index(letter), met[0])
    rest = [size for letter, size in sizes.items() if letter not in along]
    call.work(2 * positions(rest), *along.values())
    return output
