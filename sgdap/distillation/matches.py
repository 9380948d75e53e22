"""Which inner layers of a student are compared with which of its teacher; it runs no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from sgdap import _keras
from sgdap._arguments import choices_for, shown
from sgdap.model.program import Call, Program, Shape

MOST_CHANNELS = 2048
"""The most channels of a layer that is chosen without being named: an adapter solves equations of
as many unknowns."""


@dataclass(frozen=True, eq=False)
class Match:
    """A layer of a student and the one of its teacher whose features it is compared with.

    Attributes:
        student: The path of the student's layer.
        teacher: The path of the teacher's layer.
        layers: Both layers.
        axis: The axis of the channels in what they make.
    """

    student: str
    teacher: str
    layers: tuple[Any, Any]
    axis: int


def matches_of(student: Program, teacher: Program, asked: Any) -> tuple[Match, ...]:
    """Finds the layers whose features are compared.

    Chosen are, of all layers that both models have under the same name and whose features differ in
    their channels at most, the last one of each size of the other axes: in a convolutional network
    the end of each resolution, in a transformer the last block. Outputs, layers that draw random
    numbers and those before the first weights are left out.

    Args:
        student: The calls of the student.
        teacher: The calls of the teacher.
        asked: True: they are chosen; else names of layers, which both models have, or a dict from
            names of the student's layers to those of the teacher's.

    Raises:
        ValueError: A layer is not there or is called several times, features can't be compared, or
            there is nothing to choose from.
    """
    if asked is True:
        return _chosen(student, teacher)
    pairs = asked.items() if isinstance(asked, Mapping) else [(name, name) for name in asked]
    return tuple(_named(student, teacher, *pair) for pair in pairs)


def _chosen(student: Program, teacher: Program) -> tuple[Match, ...]:
    mine, theirs = (_single_calls(program) for program in (student, teacher))
    first = next(
        (n for n, call in enumerate(student.calls) if getattr(call.operation, "weights", ())), 0
    )
    found: dict[Shape, Match] = {}
    for call in student.calls[first:]:
        other = theirs.get(call.path)
        if mine.get(call.path) is not call or other is None or call.outputs[0] in student.outputs:
            continue
        if getattr(call.operation, "seed_generator", None) is not None:
            continue
        shapes = _shapes(student, call, teacher, other)
        axis = _channel_axis(*shapes, call.operation)
        if axis is not None and all((own[axis] or 0) <= MOST_CHANNELS for own in shapes):
            place = tuple(n for i, n in enumerate(shapes[0]) if i != axis)
            found[place] = Match(call.path, call.path, (call.operation, other.operation), axis)
    if not found:
        raise ValueError(
            "features=True finds no inner layers to compare: student and teacher have none of the "
            "same name whose outputs differ in their channels only. Name them: "
            "features={'layer of the student': 'layer of the teacher'}."
        )
    return tuple(found.values())


def _named(student: Program, teacher: Program, mine: str, theirs: str) -> Match:
    sides = (("student", student, mine), ("teacher", teacher, theirs))
    calls = [_call_named(*side) for side in sides]
    shapes = _shapes(student, calls[0], teacher, calls[1])
    axis = _channel_axis(*shapes, calls[0].operation)
    if axis is None:
        raise ValueError(
            "Layers whose features are compared may differ in their channels only. Received: "
            f"'{mine}' of the student, which makes {shapes[0]}, and '{theirs}' of the teacher, "
            f"which makes {shapes[1]}. Name others in features."
        )
    return Match(calls[0].path, calls[1].path, (calls[0].operation, calls[1].operation), axis)


def _call_named(side: str, program: Program, name: str) -> Call:
    layers = [call for call in program.calls if isinstance(call.operation, keras.Layer)]
    found = [call for call in layers if name in (call.path, call.operation.name)]
    if not found:
        known = choices_for(name, (call.path for call in layers))
        raise ValueError(f"features names '{name}', and the {side} has no such layer. {known}")
    if len(found) > 1:
        paths = ", ".join(sorted({call.path for call in found}))
        raise ValueError(
            f"features names '{name}', which the {side} calls {len(found)} times ({paths}), so its "
            "features are not one tensor. Name another layer, one in a model inside by its path."
        )
    if len(found[0].outputs) != 1:
        raise ValueError(
            f"features names '{name}', and this layer of the {side} makes {len(found[0].outputs)} "
            "tensors. Name one that makes a single tensor."
        )
    return found[0]


def _single_calls(program: Program) -> dict[str, Call]:
    """The layers that are called once and make one tensor, by path."""
    times = Counter(call.path for call in program.calls)
    return {
        call.path: call
        for call in program.calls
        if isinstance(call.operation, keras.Layer)
        and times[call.path] == 1
        and len(call.outputs) == 1
        and keras.backend.is_float_dtype(program.dtypes[call.outputs[0].index])
    }


def _shapes(student: Program, mine: Call, teacher: Program, other: Call) -> tuple[Shape, Shape]:
    return student.shapes[mine.outputs[0].index], teacher.shapes[other.outputs[0].index]


def _channel_axis(mine: Shape, theirs: Shape, layer: Any) -> int | None:
    """The axis of a layer's channels; None where shapes differ in others too, or have none."""
    rank = len(mine)
    if rank != len(theirs) or rank < 2:
        return None
    norms = keras.layers.BatchNormalization, keras.layers.GroupNormalization
    axis = layer.axis if isinstance(layer, norms) else -1
    if getattr(layer, "data_format", "") == "channels_first" and rank > 2:
        axis = 1
    axis %= rank
    alike = all(
        i == axis or a == b or None in (a, b)
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True))
    )
    return axis if alike and axis and None not in (mine[axis], theirs[axis]) else None


def checked_features(given: Any) -> Any:
    """The argument `features` as `matches_of` takes it; None where there are none.

    A `keras.distillation.FeatureDistillation` is taken for the layers that it names.

    Raises:
        TypeError: It is of another kind.
        ValueError: It names nothing, or Keras' loss is another one.
    """
    if given is None or given is False or given is True:
        return given or None
    if isinstance(given, Mapping):
        named = dict(given)
    else:
        single = isinstance(given, (str, keras.distillation.DistillationLoss))
        parts = [given] if single else given
        if not isinstance(parts, Sequence):
            parts = [None]
        named = dict(_layers_of_keras(part) if _is_keras(part) else (part, part) for part in parts)
    if not all(isinstance(name, str) for pair in named.items() for name in pair):
        raise TypeError(
            "features must be True, names of layers, a dict from layers of the student to those of "
            "the teacher, keras.distillation.FeatureDistillation objects, or None. Received: "
            f"features={shown(given)}"
        )
    if not named:
        raise ValueError("features names no layer. Pass True to have them chosen, or None.")
    return named


def _is_keras(part: Any) -> bool:
    return isinstance(part, keras.distillation.DistillationLoss)


def _layers_of_keras(loss: Any) -> tuple[str, str]:
    """The layers of Keras' own loss, where it is a squared error of inner layers."""
    names = getattr(loss, "student_layer_name", None), getattr(loss, "teacher_layer_name", None)
    error = getattr(loss, "loss", None)
    function = _keras.loss_function(error)[0] or error
    squared = function is keras.losses.mean_squared_error
    if type(loss) is keras.distillation.FeatureDistillation and squared and all(names):
        return str(names[0]), str(names[1])
    raise ValueError(
        "Of keras.distillation, features takes a FeatureDistillation with loss='mse' that names a "
        "layer of the student and one of the teacher: features are compared by their squared "
        "error, through an adapter, and outputs are compared anyway. Received: "
        f"{type(loss).__name__}, loss={shown(error)}, student_layer_name={names[0]!r}, "
        f"teacher_layer_name={names[1]!r}"
    )
