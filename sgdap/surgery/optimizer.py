"""Carries an optimizer's state over to slim variables; never changes its settings or counters."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap._keras.optimizers import (
    adopt_inner_optimizers,
    as_it_was,
    build_optimizer,
    config_without_learning_rate,
    inner_optimizers,
    is_around_others,
    learning_rate_function,
    optimizer_around,
    optimizer_parts,
    optimizer_variables,
    spares_weight_decay,
)

Index = list["npt.NDArray[np.int64] | None"]


@dataclass(frozen=True, eq=False)
class Replaced:
    """A model variable that changes.

    Attributes:
        old: The variable before the change.
        new: A variable with the new shape and value.
        held: The variable that the model holds afterwards: `new`, or `old` with the attributes
            of `new`.
        stays: The indices that stay along each axis. None stands for all of an axis, an empty
            list for all of every axis.
    """

    old: Any
    new: Any
    held: Any
    stays: Index = field(default_factory=list)


def rebuild_optimizer(
    optimizer: Any,
    replaced: Mapping[int, Replaced],
    values: Sequence[npt.NDArray[Any] | None] | None = None,
    gone: Container[int] = (),
) -> list[tuple[Any, Any]]:
    """Builds a new optimizer with the state of another one, after some model variables changed.

    A slot must be sliced along the axes that it shares with its variable. To find them, the
    optimizer's own `build` gets variables whose sizes are labelled with their origin. So slots
    shaped unlike their variable, such as Adafactor's factored ones, are sliced as well.

    Args:
        optimizer: The optimizer, built or not. It is not changed.
        replaced: The variables that change, by the id of the old one.
        values: New values of the optimizer's variables. None, for one or for all, keeps the old
            value; of a slot, the entries that stay.
        gone: The ids of the model's variables that leave it.

    Returns:
        Pairs of an old optimizer and the new one whose attributes it takes over, one pair for
        each optimizer in a chain of wrappers. Empty if it is not built or nothing changes.

    Raises:
        ValueError: The optimizer can't be made again from its config.
    """
    old_variables = optimizer_variables(optimizer) if optimizer.built else []
    changed = any(id(v) in replaced or id(v) in gone for v in old_variables)
    if values is None and not changed:
        return []
    new = _rebuilt(optimizer, replaced, values, gone)
    pairs = list(zip(optimizer_parts(optimizer), optimizer_parts(new), strict=True))
    adopt_inner_optimizers(optimizer, new)
    return pairs


def optimizer_as_it_was(
    optimizer: Any, attributes: Mapping[int, dict[str, Any]], variables: Mapping[int, Any]
) -> list[tuple[Any, Any]]:
    """Builds an optimizer for the variables that it once had, with empty slots.

    Args:
        optimizer: The optimizer. It is not changed.
        attributes: All attributes that it and those that it wraps had then, by their ids.
        variables: What the variables of then are now, by their ids.

    Returns:
        As `rebuild_optimizer`. The counters, and the learning rate, are those of now.
    """
    then = as_it_was(optimizer, dict(attributes))
    replaced = {
        id(own): Replaced(own, variables[id(own)], variables[id(own)])
        for own in optimizer_variables(then)
    }
    new = _rebuilt(then, replaced, None)
    counters = [[v for v in x.variables if not len(v.shape)] for x in (new, optimizer)]
    for variable, now in zip(*counters, strict=True):
        variable.assign(now)
    pairs = list(zip(optimizer_parts(optimizer), optimizer_parts(new), strict=True))
    adopt_inner_optimizers(optimizer, new)
    return pairs


def copied_optimizer(optimizer: Any, copies: Mapping[int, Any], gone: Container[int] = ()) -> Any:
    """Makes an optimizer with the same settings and state for a copy of a model.

    Args:
        optimizer: The optimizer, built or not. It is not changed.
        copies: The variables of the copy, by the id of the model's. Variables that are not in it
            are updated by both optimizers.
        gone: The ids of the model's variables that the copy lacks.

    Raises:
        ValueError: It can't be made again from its config.
    """
    if not optimizer.built:
        return remade(optimizer)
    old_variables = {id(v): v for v in optimizer_variables(optimizer)}
    replaced = {
        number: Replaced(old, copies[number], copies[number])
        for number, old in old_variables.items()
        if number in copies
    }
    return _rebuilt(optimizer, replaced, None, gone)


def _rebuilt(
    optimizer: Any,
    replaced: Mapping[int, Replaced],
    values: Sequence[npt.NDArray[Any] | None] | None,
    gone: Container[int] = (),
) -> Any:
    """A new optimizer, with new ones inside, in the state of a built one."""
    everything = optimizer_variables(optimizer)
    old_variables = [variable for variable in everything if id(variable) not in gone]
    changes = [replaced.get(id(v), Replaced(v, v, v)) for v in old_variables]
    olds = optimizer_parts(optimizer)
    new = remade(optimizer)
    news = optimizer_parts(new)
    labelled = [_keras.with_labelled_shape(x.new, n) for n, x in enumerate(changes)]
    for old, part in zip(olds, news, strict=True):
        spared = [
            after
            for before, after in zip(old_variables, labelled, strict=True)
            if spares_weight_decay(old, before)
        ]
        if spared:  # not stored in the config
            part.exclude_from_weight_decay(spared)
    origins: dict[int, Sequence[int]] = {}
    with _recorded_shapes(news, origins):
        held = [change.held for change in changes]
        build_optimizer(new, optimizer, labelled, old_variables, held)
    before, after = optimizer.variables, new.variables
    if len(old_variables) < len(everything):
        before = _without_slots_of(optimizer, everything, gone)
    if len(before) != len(after):
        raise ValueError(
            f"Optimizer {type(optimizer).__name__} has {len(before)} variables, but one made from "
            f"its config has {len(after)}. Let its get_config return all that its variables "
            "depend on."
        )
    indices = [change.stays for change in changes]
    for slot, new_slot, value in zip(before, after, values or [None] * len(after), strict=True):
        if value is None:
            _carry_over(slot, new_slot, origins.get(id(new_slot), ()), indices)
        else:
            new_slot.assign(value)
    return new


def remade(optimizer: Any) -> Any:
    """An unbuilt optimizer of the same class and settings as another one."""
    inner = [remade(part) for part in inner_optimizers(optimizer)]
    try:
        new = (
            optimizer_around(optimizer, inner)
            if is_around_others(optimizer)
            else _from_config(optimizer)
        )
    except Exception as error:
        raise ValueError(
            f"Optimizer {type(optimizer).__name__} can't be made again from its config: {error} "
            "Implement `get_config` in its class so that "
            f"{type(optimizer).__name__}.from_config(optimizer.get_config()) gives one like it."
        ) from error
    for name, value in vars(optimizer).items():  # not in its config, or set later
        if not name.startswith("_") and name != "built" and _is_setting(value):
            setattr(new, name, value)
    return new


def _from_config(optimizer: Any) -> Any:
    rate = learning_rate_function(optimizer)
    if rate is None:
        return type(optimizer).from_config(optimizer.get_config())
    config = config_without_learning_rate(optimizer)
    return type(optimizer).from_config({**config, "learning_rate": rate})


def _is_setting(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _without_slots_of(optimizer: Any, variables: Sequence[Any], gone: Container[int]) -> list[Any]:
    """An optimizer's variables, but for the slots of model variables that leave.

    Whose a slot is, another optimizer tells that is built for variables like these: by the sizes
    that it asks for, or else by the variable that its loop over them has come to.
    """
    other = remade(optimizer)
    labelled = _Watched(_keras.with_labelled_shape(v, n) for n, v in enumerate(variables))
    labelled.made = lambda: [id(variable) for variable in other.variables]
    origins: dict[int, Sequence[int]] = {}
    with _recorded_shapes(optimizer_parts(other), origins):
        build_optimizer(other, optimizer, labelled, list(variables), list(variables))
    leaving = {n for n, variable in enumerate(variables) if id(variable) in gone}
    kept = []
    for slot, twin in zip(optimizer.variables, other.variables, strict=True):
        sizes = origins.get(id(twin), ())
        owners = {size.variable for size in sizes if isinstance(size, _keras.LabelledSize)}
        owners = owners or {n for n, own in labelled.slots.items() if id(twin) in own}
        if not owners or not owners <= leaving:
            kept.append(slot)
    return kept


class _Watched(list[Any]):
    """A list that notes what is made while a loop over it has come to each entry."""

    made: Callable[[], list[int]]

    def __init__(self, entries: Iterable[Any]) -> None:
        super().__init__(entries)
        self.slots: dict[int, set[int]] = {}

    def __iter__(self) -> Iterator[Any]:
        for number in range(len(self)):
            before = set(self.made())
            yield self[number]
            self.slots.setdefault(number, set()).update(set(self.made()) - before)


@contextlib.contextmanager
def _recorded_shapes(parts: Sequence[Any], origins: dict[int, Sequence[int]]) -> Iterator[None]:
    """Within the context, records the labelled shape of each slot that the optimizers add."""

    def recording(add: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(shape: Any, *args: Any, **kwargs: Any) -> Any:
            slot = add(tuple(int(size) for size in shape), *args, **kwargs)
            origins[id(slot)] = tuple(shape)
            return slot

        return recorded

    for part in parts:
        part.add_variable = recording(part.add_variable)
    try:
        yield
    finally:
        for part in parts:
            del part.add_variable


def _carry_over(slot: Any, new_slot: Any, origin: Sequence[int], indices: Sequence[Index]) -> None:
    value = slot.numpy()
    for axis, size in enumerate(origin):
        if isinstance(size, _keras.LabelledSize) and indices[size.variable]:
            stays = indices[size.variable][size.axis]
            if stays is not None:
                value = np.take(value, stays, axis)
    if value.shape == tuple(new_slot.shape):
        new_slot.assign(value)
    elif any(indices):  # else another architecture comes back, with the slots it had then
        warnings.warn(
            f"The optimizer's variable '{slot.path}' starts anew with the slim model: its shape "
            f"{value.shape} must become {tuple(new_slot.shape)}, and it is not known which of its "
            "entries belong to the channels that stay. Create it with add_variable or "
            "add_variable_from_reference in the optimizer's build.",
            stacklevel=2,
        )
