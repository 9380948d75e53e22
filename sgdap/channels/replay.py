"""Checks that a `call` of the user's own follows its layers when these become slim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.facts import Axis, Rewrite
from sgdap.channels.labels import Channels, Ledger, Settled, Symbol
from sgdap.channels.rewriting import Written, rewritten
from sgdap.model.own_call import saves_by_its_graph
from sgdap.model.program import Code, Program, Ref
from sgdap.model.trace import replayed

Mask = npt.NDArray[np.bool_]


def rewritten_operations(
    program: Program, rewrites: Sequence[Rewrite], kept: Mask
) -> dict[str, Written]:
    """Returns how operations that are no layers are written after a removal, by path.

    Args:
        program: The model's calls.
        rewrites: Which operations follow the channels.
        kept: Which channels stay.

    Returns:
        Those that are written otherwise than before.
    """
    operations = {}
    for entry in rewrites:
        call = program.calls[entry.call]
        before = Written(call.operation.get_config(), call.args, call.kwargs)
        inputs, outputs = (
            [[None if c is None else kept[c] for c in symbol.axes] for symbol in symbols]
            for symbols in (entry.inputs, entry.outputs)
        )
        if all(m is None or m.all() for masks in (*inputs, *outputs) for m in masks):
            continue
        after = rewritten(call.operation, before, inputs, outputs)
        if after is not before:
            operations[entry.path] = after
    return operations


def what_code_does_not_follow(
    program: Program,
    rewrites: Sequence[Rewrite],
    axes: Sequence[Axis],
    symbols: Mapping[int, Symbol],
    ledger: Ledger,
) -> list[tuple[Channels, str]]:
    """Runs every `call` of the user's own again as if half of the channels were gone.

    Where it computes its sizes from the shapes of its tensors, it calls the same operations with
    the sizes that surgery would give them. Where it writes a size as a number, it does not, and
    the channels there must stay.

    Args:
        program: The model's calls.
        rewrites: Which operations follow the channels, in classes.
        axes: Every axis of a variable that has channels, in classes.
        symbols: The channels of each tensor.
        ledger: What ties and protects them.

    Returns:
        Channels that must stay, and why.
    """
    if not program.codes:
        return []
    settled = ledger.settle()
    by_configs = saves_by_its_graph(program.model)
    for side in (False, True):
        kept = _half(settled, symbols, side)
        slim = [
            shape
            if number not in symbols
            else tuple(
                size if c is None else int(kept[settled.classes[c]].sum())
                for size, c in zip(shape, symbols[number].axes, strict=True)
            )
            for number, shape in enumerate(program.shapes)
        ]
        operations = rewritten_operations(program, rewrites, kept)
        for code in program.codes:
            found = _first_difference(program, code, slim, operations)
            made_anew = code.path and by_configs and found is None
            if made_anew and not _is_rebuilt(program, code, slim, axes, kept):
                name = type(code.layer).__name__
                remedy = "register a rule with sgdap.register_rule"
                found = -1, f"config of '{code.path}' (a {name}) makes none for fewer; {remedy}"
            if found is None:
                continue
            place, reason = found
            refs = program.calls[place].inputs if place >= 0 else _refs(code)
            labelled = _removable(refs, symbols, settled)
            if not labelled:
                refs = [r for c in program.calls[code.start : code.stop] for r in c.inputs]
                labelled = _removable(refs, symbols, settled)
            return [(channels, reason) for channels in labelled]
    return []


def _removable(refs: Any, symbols: Mapping[int, Symbol], settled: Settled) -> list[Channels]:
    found = [channels for ref in refs for channels in symbols[ref.index].all_channels()]
    return [channels for channels in found if settled.removable[settled.classes[channels]].any()]


def _refs(code: Code) -> list[Any]:
    leaves = keras.tree.flatten((code.args, dict(code.kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, Ref)]


def _half(settled: Settled, symbols: Mapping[int, Symbol], side: bool) -> Mask:
    """A choice of classes that stay: about half, at least one along each axis.

    What stays on one side leaves on the other, so no axis stays whole on both.
    """
    half = np.random.default_rng(0).random(len(settled.removable)) < 0.5
    kept: Mask = ~settled.removable | (half == side)
    for symbol in symbols.values():
        for channels in symbol.all_channels():
            if not kept[settled.classes[channels]].any():
                kept[settled.classes[channels[0]]] = True
    return kept


def _first_difference(
    program: Program, code: Code, slim: Sequence[Any], operations: Mapping[str, Written]
) -> tuple[int, str] | None:
    """The number of the first call that a second run makes otherwise, and a reason for people."""
    calls, shapes = replayed(program, code, slim)
    name = code.path or program.model.name
    for number in range(code.start, code.stop):
        call = program.calls[number]
        again = calls[number - code.start] if number - code.start < len(calls) else None
        same = again is not None and type(again.operation) is type(call.operation)
        in_code = call.node is None and not isinstance(call.operation, keras.Layer)
        if again is not None and same and in_code:
            now = Written(again.operation.get_config(), again.args, again.kwargs)
            before = Written(call.operation.get_config(), call.args, call.kwargs)
            same = now.same_as(operations.get(call.path, before))
        if again is not None and same:
            same = all(shapes[ref.index] == slim[ref.index] for ref in call.outputs)
        if not same:
            line = code.lines[number - code.start]
            return number, (
                f"the `call` of '{name}' does not follow their number at {line}; compute sizes "
                "from the shapes of tensors"
            )
    return None


def _is_rebuilt(
    program: Program, code: Code, slim: Sequence[Any], axes: Sequence[Axis], kept: Mask
) -> bool:
    """Whether a layer's config makes one for slim inputs, with weights of the right shapes."""

    def tensor(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        return keras.KerasTensor(slim[leaf.index], dtype=program.dtypes[leaf.index])

    args, kwargs = keras.tree.map_structure(tensor, (code.args, dict(code.kwargs)))
    try:
        new = type(code.layer).from_config(code.layer.get_config())
        new(*args, **kwargs)
    except Exception:  # a config that holds the old widths, or none at all
        return False
    before, after = (_keras.layer_variables(layer) for layer in (code.layer, new))
    layers = program.layers()
    shapes = {id(v): list(v.shape) for v in before}
    for axis in axes:
        variable = _keras.layer_variables(layers[axis.path])[axis.variable]
        if id(variable) in shapes:
            shapes[id(variable)][axis.axis] = int(kept[axis.channels].sum())
    return [shapes[id(v)] for v in before] == [list(v.shape) for v in after]
