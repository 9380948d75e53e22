"""Takes units out of a model in place; never decides which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from sgdap import _keras
from sgdap._keras.graphs import graph_entries
from sgdap._keras.optimizers import optimizers_of
from sgdap.channels.groups import ChannelGraph
from sgdap.depth.shallower import Bypass, Shallower, shallower
from sgdap.model.program import Program
from sgdap.surgery.adopt import Change, adopt
from sgdap.surgery.optimizer import Replaced, optimizer_as_it_was, rebuild_optimizer


def check_in_place(graph: ChannelGraph) -> None:
    """Raises if units can't leave a model in place.

    Args:
        graph: The model's channels.

    Raises:
        ValueError: They can't; the error says why, and what to do.
    """
    program = graph.program
    inside = {part.path: part.layer for part in program.unrolled if part.path}
    held = [x for x in _keras.flatten_layers(program.model) if isinstance(x, keras.Model)]
    inside |= {x.name: x for x in held if x is not program.model and x is not program.functional}
    why = ""
    if program.functional is None:
        why = "its class has a `call` of its own"
    elif inside:
        path, layer = next(iter(inside.items()))
        is_model = isinstance(layer, keras.Model)
        what = "is a model" if is_model else "has a `call` of your own, which is looked into"
        why = f"'{path}' inside it {what}"
    if why:
        raise ValueError(
            f"Layers of '{program.model.name}' can't leave it as a whole in place: {why}. Use the "
            "copy that sgdap.apply(model, plan) makes, or prune sgdap.functional(model)."
        )


@dataclass(frozen=True, eq=False)
class WayBack:
    """How a model was wired before units left it in place.

    Attributes:
        layers: All its layers.
        variables: Their variables.
        insides: The objects that took over new insides, and all attributes that they had.
        entries: Other objects, and the attributes that changed.
    """

    layers: tuple[Any, ...]
    variables: tuple[tuple[Any, ...], ...]
    insides: tuple[tuple[Any, dict[str, Any]], ...]
    entries: tuple[tuple[Any, dict[str, Any]], ...]

    @classmethod
    def of(cls, program: Program, change: Change) -> WayBack:
        """The way back from a change of the model that has these calls; it is not adopted yet."""
        found = program.layers().values()
        layers = tuple(x for x in found if isinstance(x, keras.Layer))
        variables = tuple(tuple(_keras.layer_variables(layer)) for layer in layers)
        insides = tuple((old, dict(vars(old))) for old, _ in change.insides)
        entries = tuple(
            (changed, {name: vars(changed)[name] for name in given if name in vars(changed)})
            for changed, given in change.entries
        )
        return cls(layers, variables, insides, entries)

    def go(self, model: Any) -> None:
        """Brings the units back. The model must have the widths that it had without them then.

        The weights of what comes back, and the optimizer's slots, are empty: restore a snapshot
        that was taken before the units left.

        Args:
            model: The model.
        """
        then = {id(old): attributes for old, attributes in self.insides}
        of_layers = [(old, own) for old, own in self.insides if isinstance(old, keras.Layer)]
        now: dict[int, Any] = {}
        for layer, variables in zip(self.layers, self.variables, strict=True):
            known = then.get(id(layer))
            stands_in = layer if known is None else _keras.with_attributes(layer, known)
            present = _keras.layer_variables(stands_in)
            now |= {id(old): new for old, new in zip(variables, present, strict=True)}
        optimizers = [
            pair
            for optimizer in optimizers_of(model)
            if id(optimizer) in then
            for pair in optimizer_as_it_was(optimizer, then, now)
        ]
        adopt(model, Change(tuple(optimizers), entries=(*of_layers, *self.entries)))


def bypass_in_place(
    graph: ChannelGraph, bypasses: Sequence[Bypass], optimizers: Sequence[Any] = ()
) -> WayBack:
    """Takes units out of a model; the model, the layers that stay and its optimizer stay the same.

    An error or an interruption leaves the model as it was.

    Args:
        graph: The model's channels. It describes the model before the change, so make a new one
            afterwards.
        bypasses: The units that leave.
        optimizers: Optimizers that follow besides those that the model holds.

    Returns:
        The way back.

    Raises:
        ValueError: It can't be done in place, or a layer or an optimizer can't be made from its
            config.
    """
    check_in_place(graph)
    return take_over(graph.program, shallower(graph, bypasses), optimizers)


def take_over(program: Program, made: Shallower, optimizers: Sequence[Any] = ()) -> WayBack:
    """Gives a model the graph of its shallower copy; see `bypass_in_place` and `bypassed`."""
    change = bypassed(program, made, optimizers)
    back = WayBack.of(program, change)
    adopt(program.model, change)
    return back


def bypassed(program: Program, made: Shallower, optimizers: Sequence[Any] = ()) -> Change:
    """Prepares that a model takes over the graph of its shallower copy, without touching the model.

    Args:
        program: The model's calls.
        made: The copy, which is of no use afterwards.
        optimizers: Optimizers that follow besides those that the model holds.

    Returns:
        The prepared change.
    """
    model, layers = program.model, program.layers()
    copies = {operation.name: operation for operation in made.model.operations}
    same = {id(copies[name]): layers[path] for path, name in made.paths.items()}
    for own, other in zip(program.functional.inputs, made.model.inputs, strict=True):
        same[id(_keras.history(other)[0])] = _keras.history(own)[0]  # type: ignore[index]
    insides: list[tuple[Any, Any]] = []
    replaced: dict[int, Replaced] = {}
    for path, name in made.paths.items():
        old, new = layers[path], copies[name]
        if not isinstance(old, keras.Layer):
            insides += [(old, new)] if path in made.rebuilt else []
            continue
        pairs = list(zip(*map(_keras.layer_variables, (old, new)), strict=True))
        same_weights = all(np.array_equal(before.numpy(), after.numpy()) for before, after in pairs)
        if same_weights and path not in made.rebuilt:
            continue
        _keras.copy_trainable(old, new)
        for before, after in pairs:
            _keras.keep_variable_path(before, after)
            replaced[id(before)] = Replaced(before, after, after)
        insides.append((old, new))
    gone = [
        variable
        for path, layer in layers.items()
        if path not in made.paths and isinstance(layer, keras.Layer)
        for variable in _keras.layer_variables(layer)
    ]
    stay = {
        id(variable)
        for path in made.paths
        if isinstance(layers[path], keras.Layer)
        for variable in _keras.layer_variables(layers[path])
    }
    gone = [variable for variable in gone if id(variable) not in stay]
    ids = {id(variable) for variable in gone}
    following = {id(x): x for x in (*optimizers, *optimizers_of(model))}
    with _keras.scope_of(model):
        rebuilt = [
            pair
            for optimizer in following.values()
            for pair in rebuild_optimizer(optimizer, replaced, None, ids)
        ]
    leaving = [variable.value for variable in gone]
    leaving += [own.old.value for own in replaced.values()]
    for old, _ in rebuilt:
        leaving += [variable.value for variable in old.variables if len(variable.shape)]
    return Change(
        insides=(*insides, *rebuilt),
        leaving=tuple(leaving),
        entries=tuple(graph_entries(model, made.model, same)),
    )
