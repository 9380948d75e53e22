"""Carries an optimizer's state over to slim variables; its settings and `iterations` stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap import _keras

Index = list["npt.NDArray[np.int64] | None"]


def rebuild_optimizer(optimizer: Any, replaced: Mapping[int, tuple[Any, Index]]) -> Any | None:
    """Builds an optimizer like another one for variables of which some shrank.

    Args:
        optimizer: The optimizer, built or not, or None.
        replaced: For the id of each old variable that was replaced, the new one and the indices
            that stay along each axis.

    Returns:
        The new optimizer, its slots sliced as the variables are; None where there is no built
        optimizer.
    """
    if optimizer is None or not optimizer.built:
        return None
    new = type(optimizer).from_config(optimizer.get_config())
    references: dict[int, Any] = {}
    for part in _keras.optimizer_parts(new):
        _record_references(part, references)
    old_variables = _keras.optimizer_variables(optimizer)
    new_variables = [replaced.get(id(v), (v, []))[0] for v in old_variables]
    origin = {id(n): o for o, n in zip(old_variables, new_variables, strict=True)}
    spared = [n for n in new_variables if _keras.spares_weight_decay(optimizer, origin[id(n)])]
    if spared:  # the config does not tell
        _keras.optimizer_parts(new)[-1].exclude_from_weight_decay(spared)
    new.build(new_variables)
    for part in _keras.optimizer_parts(new):
        del part.add_variable_from_reference
    for before, after in zip(optimizer.variables, new.variables, strict=True):
        value = before.numpy()
        reference = references.get(id(after))
        variable = origin.get(id(reference))
        if variable is not None and id(variable) in replaced:
            value = _sliced_slot(value, tuple(variable.shape), replaced[id(variable)][1])
        if value.shape == tuple(after.shape):
            after.assign(value)
    return new


def _record_references(optimizer: Any, references: dict[int, Any]) -> None:
    """Notes for each slot that the optimizer makes in `build` the variable that it is for."""
    make = optimizer.add_variable_from_reference

    def recorded(reference_variable: Any, *args: Any, **kwargs: Any) -> Any:
        slot = make(reference_variable, *args, **kwargs)
        references[id(slot)] = reference_variable
        return slot

    optimizer.add_variable_from_reference = recorded


def _sliced_slot(value: npt.NDArray[Any], shape: tuple[int, ...], index: Index) -> npt.NDArray[Any]:
    if value.shape != shape:
        return value
    for axis, stays in enumerate(index):
        if stays is not None:
            value = np.take(value, stays, axis)
    return value
