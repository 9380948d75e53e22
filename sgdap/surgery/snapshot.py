"""Remembers a model's architecture, weights and optimizer, and brings them back in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy.typing as npt

from sgdap import _keras
from sgdap.graph.rewriting import Written
from sgdap.graph.trace import Program, trace
from sgdap.surgery.rebuild import rebuild, without_build_config


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A model at one moment.

    Attributes:
        configs: The config of every layer by path.
        operations: How operations that are no layers are written, by path.
        variables: The values of all variables of each layer, by path.
        optimizer: The values of the optimizer's variables, or None where it has none.
    """

    configs: Mapping[str, Mapping[str, Any]]
    operations: Mapping[str, Written]
    variables: Mapping[str, list[npt.NDArray[Any]]]
    optimizer: list[npt.NDArray[Any]] | None


def take_snapshot(model: Any) -> Snapshot:
    """Copies a model's architecture, weights and optimizer state to host memory."""
    program = trace(model)
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
        optimizer=[v.numpy() for v in optimizer.variables]
        if optimizer is not None and optimizer.built
        else None,
    )


def restore_snapshot(model: Any, snapshot: Snapshot) -> None:
    """Brings a model back to a snapshot, in place.

    The optimizer's slots come back too; its counters (iterations, learning rate) go on.

    Args:
        model: The model that the snapshot was taken of.
        snapshot: What to go back to.
    """
    program = trace(model)
    layers = program.layers()
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
    if configs or operations:
        values = {
            (path, number): value
            for path, variables in snapshot.variables.items()
            for number, value in enumerate(variables)
        }
        changed = {
            key: value
            for key, value in values.items()
            if _keras.layer_variables(layers[key[0]])[key[1]].shape != value.shape
        }
        rebuild(program, configs, operations, changed, {})
    for path, variables in snapshot.variables.items():
        for variable, value in zip(_keras.layer_variables(layers[path]), variables, strict=True):
            variable.assign(value)
    if snapshot.optimizer is not None:
        for slot, value in zip(model.optimizer.variables, snapshot.optimizer, strict=True):
            if value.ndim:
                slot.assign(value)


def _written(program: Program) -> dict[str, Written]:
    found: dict[str, Written] = {}
    for call in program.calls:
        operation = call.operation
        if not isinstance(operation, keras.Layer) and _has_config(operation):
            found.setdefault(call.path, Written(operation.get_config(), call.args, call.kwargs))
    return found


def _has_config(operation: Any) -> bool:
    """Whether an operation can say what it was made with; one that can't never changes."""
    try:
        operation.get_config()
    except NotImplementedError:
        return False
    return True
