"""Which calls a model makes, as plain data, and a model brought to them; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras

from sgdap import _keras
from sgdap._keras.optimizers import inner_optimizers
from sgdap.depth.shallower import Shallower
from sgdap.model.building import weights_not_drawn
from sgdap.model.copying import copied_operation, copy_state, without_build_config
from sgdap.model.functional import connected, layer_names
from sgdap.model.generators import global_state_kept
from sgdap.model.program import Call, Program, refs_of
from sgdap.model.tracing import trace
from sgdap.surgery.adopt import Change, adopt
from sgdap.surgery.rewire import WayBack, bypassed
from sgdap.surgery.snapshot import Snapshot, check_slots, restore_snapshot


@dataclass(frozen=True, eq=False)
class Wiring:
    """The calls of a model without those that left.

    Attributes:
        calls: Of each call the path, the positional and the keyword arguments, and what it makes; a
            `Ref` in the place of each tensor.
        made: What the model returns, likewise.
    """

    calls: tuple[tuple[str, tuple[Any, ...], Mapping[str, Any], Any], ...]
    made: Any

    @classmethod
    def of(cls, program: Program) -> Wiring:
        """The wiring of a model as it is now."""
        calls = tuple((c.path, c.args, dict(c.kwargs), c.made) for c in program.calls)
        return cls(calls, program.unrolled[-1].made)


def restore_wired(
    program: Program, wiring: Wiring, snapshot: Snapshot, *, counters: bool = False
) -> WayBack | None:
    """Restores a model to a snapshot that was taken when units may have left it, in place.

    The layers and operations that are in the snapshot stay the same objects.

    Args:
        program: The calls of a model that has all that the snapshot has, and more.
        wiring: The wiring of the model when the snapshot was taken.
        snapshot: The snapshot.
        counters: Whether to restore the optimizer's counters too, as in `restore_snapshot`.

    Returns:
        The way back to the calls of `program`; None where nothing had left.

    Raises:
        ValueError: The snapshot is of another model or optimizer. Nothing was changed.
    """
    model = program.model
    if len(wiring.calls) == len(program.calls):
        restore_snapshot(model, snapshot, counters=counters, program=program)
        return None
    optimizer = getattr(model, "optimizer", None)
    if snapshot.optimizer is not None and optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    change = bypassed(program, _copy(program, wiring, snapshot))
    check_slots(model, _slots_after(optimizer, change), snapshot)
    back = WayBack.of(program, change)
    adopt(model, change)
    restore_snapshot(model, snapshot, counters=counters, program=trace(model))
    return back


def _slots_after(optimizer: Any, change: Change) -> int:
    """How many variables an optimizer will have, with those that it wraps."""
    if optimizer is None:
        return 0
    after = next((new for old, new in change.insides if old is optimizer), optimizer)
    # It wraps the optimizers of now, which will take over new insides themselves.
    return len(after.variables) + sum(
        _slots_after(inner, change) - len(inner.variables) for inner in inner_optimizers(optimizer)
    )


def _copy(program: Program, wiring: Wiring, snapshot: Snapshot) -> Shallower:
    """A copy of a model with the calls, widths and weights that it had then."""
    layers = program.layers()
    unknown = [path for path, *_ in wiring.calls if path not in layers]
    if unknown:
        raise ValueError(
            f"The snapshot is not of model '{program.model.name}': it has no '{unknown[0]}'."
        )
    then = _program_then(program, wiring)
    names = layer_names(then)
    changed = {path for path in names if _changed(layers[path], path, snapshot)}
    with _keras.scope_of(program.model), global_state_kept(), weights_not_drawn():
        copies = {}
        for path, name in names.items():
            config = _config_then(path, snapshot) if path in changed else {}
            copies[path] = copied_operation(layers[path], path, {**config, "name": name})
        model = connected(then, {path: [copy] for path, copy in copies.items()})
        for path, values in snapshot.variables.items():
            if path not in changed:
                copy_state(layers[path], copies[path])
                continue
            for variable, value in zip(_keras.layer_variables(copies[path]), values, strict=True):
                variable.assign(value)
    return Shallower(model, names, frozenset(changed))


def _program_then(program: Program, wiring: Wiring) -> Program:
    """The calls of a model as they were then; the program is there to be copied."""
    layers = program.layers()
    calls = tuple(
        Call(layers[path], path, args, kwargs, refs_of(made), made, in_graph=True)
        for path, args, kwargs, made in wiring.calls
    )
    whole = replace(program.unrolled[-1], made=wiring.made, stop=len(calls))
    outputs = refs_of(wiring.made)
    return replace(program, outputs=outputs, losses=(), calls=calls, unrolled=(whole,))


def _changed(operation: Any, path: str, snapshot: Snapshot) -> bool:
    """Whether a layer or operation was made otherwise then."""
    if not isinstance(operation, keras.Layer):
        written = snapshot.operations.get(path)
        return written is not None and not _same(operation.get_config(), written.config)
    shapes = [value.shape for value in snapshot.variables[path]]
    now = [tuple(variable.shape) for variable in _keras.layer_variables(operation)]
    return shapes != now or not _same(operation.get_config(), snapshot.configs[path])


def _same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    one, other = ({**without_build_config(config), "name": None} for config in (first, second))
    return bool(one == other)


def _config_then(path: str, snapshot: Snapshot) -> Mapping[str, Any]:
    if path in snapshot.configs:
        return snapshot.configs[path]
    return snapshot.operations[path].config
