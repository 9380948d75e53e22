"""Stores a model's architecture, weights and optimizer and restores them; never writes files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy.typing as npt

from sgdap import _keras
from sgdap._keras.optimizers import optimizers_of
from sgdap.model.copying import without_build_config
from sgdap.model.program import OperationCall, Program, config_of
from sgdap.model.tracing import trace
from sgdap.surgery.adopt import adopt
from sgdap.surgery.prepare import prepare


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The architecture and state of a model at one moment.

    Attributes:
        configs: The config of every layer, by path.
        operations: The form of every operation that is not a layer, by path.
        variables: The values of all variables of each layer, by path.
        others: The values of the model's variables that are in no layer of its graph.
        optimizer: The values of the optimizer's variables; None without an optimizer.
        optimizers: The values of the variables of each optimizer that the model holds besides
            the one of `compile`.
    """

    configs: Mapping[str, Mapping[str, Any]]
    operations: Mapping[str, OperationCall]
    variables: Mapping[str, list[npt.NDArray[Any]]]
    others: list[npt.NDArray[Any]]
    optimizer: list[npt.NDArray[Any]] | None
    optimizers: list[list[npt.NDArray[Any]]]


def take_snapshot(model: Any, program: Program | None = None) -> Snapshot:
    """Copies a model's architecture, weights and optimizer state to host memory.

    Args:
        model: The model.
        program: The model's present calls; None: they are traced.
    """
    program = program or trace(model)
    layers = program.layers()
    optimizer = getattr(model, "optimizer", None)
    return Snapshot(
        configs={p: x.get_config() for p, x in layers.items() if isinstance(x, keras.Layer)},
        operations=_written(program),
        variables={
            path: [v.numpy() for v in _keras.layer_variables(layer)]
            for path, layer in layers.items()
            if isinstance(layer, keras.Layer)
        },
        others=[v.numpy() for v in _others(program)],
        optimizer=[v.numpy() for v in optimizer.variables]
        if optimizer is not None and optimizer.built
        else None,
        optimizers=[[v.numpy() for v in other.variables] for other in _held_beside(model)],
    )


def _held_beside(model: Any) -> list[Any]:
    """The optimizers of a model, except the one of `compile`."""
    return [o for o in optimizers_of(model) if o is not getattr(model, "optimizer", None)]


def restore_snapshot(
    model: Any, snapshot: Snapshot, *, counters: bool = False, program: Program | None = None
) -> None:
    """Restores a model to a snapshot, in place.

    Args:
        model: The model that the snapshot was taken of, or one made in the same way.
        snapshot: The snapshot to restore.
        counters: Whether to restore the optimizer's counters (iterations, learning rate) too, not
            only its slots. Otherwise they keep their present values.
        program: The model's present calls; None: they are traced.

    Raises:
        ValueError: The snapshot is of another model or optimizer. Nothing was changed.
    """
    program = program or trace(model)
    layers = program.layers()
    optimizer = getattr(model, "optimizer", None)
    if snapshot.optimizer is not None and optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    _check_fits(program, snapshot)
    configs = {
        path: config
        for path, config in snapshot.configs.items()
        if without_build_config(layers[path].get_config()) != without_build_config(config)
    }
    now = _written(program)
    operations = {
        path: written
        for path, written in snapshot.operations.items()
        if not written.same_as(now[path])
    }
    values = {
        (path, number): value
        for path, saved in snapshot.variables.items()
        for number, value in _changed(_keras.layer_variables(layers[path]), saved)
    }
    held = _others(program)
    others = [(held[number], value) for number, value in _changed(held, snapshot.others)]
    # A further optimizer of the model that is not built yet starts with fresh state.
    beside = zip(_held_beside(model), snapshot.optimizers, strict=False)
    states = [(held, state) for held, state in beside if len(held.variables) == len(state)]
    if snapshot.optimizer is not None:
        states.append((optimizer, snapshot.optimizer))
    slots = []
    for held_optimizer, state in states:
        wanted = {n: v for n, v in _changed(held_optimizer.variables, state) if v.ndim or counters}
        if wanted:
            slots.append((held_optimizer, [wanted.get(number) for number in range(len(state))]))
    if configs or operations or values or others or slots:
        change = prepare(program, configs, operations, values, {}, others=others, slots=slots)
        adopt(model, change)


def _changed(
    variables: Sequence[Any], saved: Sequence[npt.NDArray[Any]]
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """The indices and saved values of the variables whose value or shape differs now."""
    for number, (variable, value) in enumerate(zip(variables, saved, strict=True)):
        now = variable.numpy()
        if now.shape != value.shape or now.tobytes() != value.tobytes():
            yield number, value


def _check_fits(program: Program, snapshot: Snapshot) -> None:
    layers = {p: x for p, x in program.layers().items() if isinstance(x, keras.Layer)}
    wanted = {path: len(values) for path, values in snapshot.variables.items()}
    found = {path: len(_keras.layer_variables(layer)) for path, layer in layers.items()}
    differing = sorted(p for p in {*wanted, *found} if wanted.get(p) != found.get(p))
    if (
        differing
        or snapshot.operations.keys() != _written(program).keys()
        or [v.shape for v in snapshot.others] != [tuple(v.shape) for v in _others(program)]
    ):
        raise ValueError(
            f"The snapshot is not of model '{program.model.name}'"
            + (f": they differ in {', '.join(differing[:5])}." if differing else ".")
        )
    optimizer = getattr(program.model, "optimizer", None)
    check_slots(program.model, 0 if optimizer is None else len(optimizer.variables), snapshot)


def check_slots(model: Any, slots: int, snapshot: Snapshot) -> None:
    """Raises if a model's optimizer has not as many variables as it had in a snapshot.

    Raises:
        ValueError: It has more or fewer.
    """
    if snapshot.optimizer is not None and len(snapshot.optimizer) != slots:
        raise ValueError(
            f"The snapshot was taken with another optimizer than model '{model.name}' has: "
            f"that one had {len(snapshot.optimizer)} variables, this one has {slots}."
        )


def _others(program: Program) -> list[Any]:
    """The model's variables that are in no layer of its graph."""
    seen = {
        id(v)
        for layer in program.layers().values()
        if isinstance(layer, keras.Layer)
        for v in _keras.layer_variables(layer)
    }
    return [v for v in program.model.variables if id(v) not in seen]


def _written(program: Program) -> dict[str, OperationCall]:
    found: dict[str, OperationCall] = {}
    for call in program.calls:
        operation = call.operation
        config = None if isinstance(operation, keras.Layer) else config_of(operation)
        if config is not None:  # one without never changes
            found.setdefault(call.path, OperationCall.of(call, config))
    return found
