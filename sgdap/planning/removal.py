"""Plans of what leaves, given as a mask or by the numbers of channels; it chooses no channel."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap._arguments import choices_for, shown
from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.planning.cost import cost_model
from sgdap.planning.plan import GroupPlan, Plan, model_fingerprint, reconstruction_fingerprint
from sgdap.planning.widths import paths_called
from sgdap.planning.work import work_notes

Mask = npt.NDArray[np.bool_]
Curves = Mapping[str, npt.NDArray[np.float64]]


def plan_from_mask(
    graph: ChannelGraph,
    kept: Mask,
    *,
    guidance: str = "",
    errors: Curves | None = None,
    samples: int = 0,
    weights: Mapping[tuple[str, int], npt.NDArray[np.float32]] | None = None,
    notes: Iterable[str] = (),
) -> Plan:
    """Makes the plan that leaves the channels of a mask.

    Args:
        graph: The model's channels.
        kept: A mask of the model's channels, True for those that stay, `(channels,)`.
        guidance: The name of the criterion that chose them; empty where there is none.
        errors: Of groups by name the expected loss with 0, 1, … channels removed; None: not known.
        samples: The number of calibration samples that were used.
        weights: The reconstruction, by path and number of the variable.
        notes: What the plan says beside what FLOPs are not counted.
    """
    model = cost_model(graph)
    before, after = (model.cost(model.lengths(mask)) for mask in (np.ones_like(kept), kept))
    groups = []
    for group in graph.groups:
        stays = kept[group.channels]
        removed = int((~stays).sum())
        curve = tuple(map(float, (errors or {}).get(group.name, ())))
        error = curve[removed] if curve else 0.0 if not removed else None
        numbers = tuple(int(i) for i in np.flatnonzero(stays))
        note = "; ".join(group.reasons)
        groups.append(
            GroupPlan(group.name, group.producers, group.size, numbers, error, note, curve)
        )
    return Plan(
        model=model_fingerprint(graph),
        guidance=guidance,
        groups=tuple(groups),
        unknown=graph.kept,
        params=(round(before[0]), round(after[0])),
        flops=(round(before[1]), round(after[1])),
        samples=samples,
        weights={f"{path}:{number}": v for (path, number), v in (weights or {}).items()},
        fitted_to=reconstruction_fingerprint(graph, kept) if weights else "",
        notes=(*work_notes(graph), *notes),
        open_inputs=tuple(map(str, graph.open_inputs)),
    )


def plan_removal(model: Any, channels: Mapping[str, Iterable[int]]) -> Plan:
    """Plans to remove channels that you name, without data.

    Args:
        model: A built `keras.Sequential` or functional `keras.Model`; it is not changed.
        channels: The numbers of the channels to remove, from 0, by the layer that makes them:
            `{"conv1": [3, 7]}`. Names as in `layers` of `sgdap.plan`: patterns, ends of paths, and
            a wrapper's name for the layer in it, of a `Bidirectional` for both directions.
            Channels of other layers that are tied to these leave with them.

    Returns:
        The `Plan`: print it for what it saves, hand it to `sgdap.apply`. It expects no loss and
        refits nothing.

    Raises:
        TypeError: `model` is no Keras model, or `channels` no dict of lists of numbers.
        ValueError: The model is not built, a layer is unknown, a channel is named twice, does not
            exist or can't leave, or none would be left.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, name="hidden"),
        ...                           keras.layers.Dense(3, name="logits")])
        >>> sgdap.plan_removal(model, {"hidden": [0, 5]}).widths
        {'hidden': 4, 'logits': 3}
    """
    graph = channel_graph(model)
    return plan_from_mask(graph, mask_without(graph, channels))


def mask_without(graph: ChannelGraph, channels: Mapping[str, Iterable[int]]) -> Mask:
    """A mask of a model's channels, True for all but those that are named, `(channels,)`.

    Args:
        graph: The model's channels.
        channels: Numbers of channels by name or pattern of the layers that make them.

    Raises:
        TypeError: `channels` is no dict of lists of numbers.
        ValueError: A layer is unknown, a channel is named twice, does not exist or can't leave, or
            none would be left.
    """
    if not isinstance(channels, Mapping):
        raise TypeError(
            "The channels to remove must be a dict of layer names and channel numbers, for example "
            f"{{'conv1': [3, 7]}}. Received: {shown(channels)}"
        )
    kept = np.ones(graph.count, bool)
    removable = np.ones(graph.count, bool)
    for group in graph.groups:
        removable[group.channels] = group.removable
    for name, given in channels.items():
        for path in _producers(graph, name):
            made = graph.made[path]
            numbers = _numbers(path, given, len(made))
            stay = [number for number in numbers if not removable[made[number]]]
            if stay:
                raise ValueError(
                    f"Channels {stay} of '{path}' can't be removed: "
                    f"{'; '.join(graph.group(path).reasons)}. Leave them out."
                )
            kept[made[numbers]] = False
    lines = [*graph.made.items(), *((axis.path, axis.channels) for axis in graph.axes)]
    empty = dict.fromkeys(path for path, line in lines if not kept[line].any())
    if empty:
        raise ValueError(
            f"No channel of {', '.join(map(repr, empty))} would be left. Keep at least one."
        )
    return kept


def _producers(graph: ChannelGraph, name: str) -> list[str]:
    """The paths of the layers that a name or pattern means."""
    if not isinstance(name, str):
        raise TypeError(f"The name of a layer must be a text. Received: {shown(name)}")
    found = paths_called(name, list(graph.made))
    if not found:
        raise ValueError(
            f"No layer that makes channels is called '{name}'. {choices_for(name, graph.made)}"
        )
    if not set(name) & set("*?[") and not _are_the_same([graph.made[path] for path in found]):
        patterns = (f"{name}*", f"*{name}", f"*{name}*")
        all_of_them = [p for p in patterns if paths_called(p, list(graph.made)) == found]
        all_meant = f", or mean all with '{all_of_them[0]}'" if all_of_them else ""
        raise ValueError(
            f"Several layers are called '{name}' or stand in it: {', '.join(found)}. Give the path "
            f"of one of them{all_meant}."
        )
    return found


def _are_the_same(lines: Sequence[npt.NDArray[np.int64]]) -> bool:
    """Whether layers make the same channels, as both directions of a Bidirectional do."""
    return all(np.array_equal(line, lines[0]) for line in lines)


def _numbers(path: str, given: Any, size: int) -> list[int]:
    """The numbers of a layer's channels, checked."""
    must = f"The channels of '{path}' to remove must be a list of numbers from 0 to {size - 1}"
    try:
        numbers = [operator.index(number) for number in given]
    except TypeError as error:
        raise TypeError(f"{must}. Received: {shown(given)}") from error
    if any(isinstance(number, bool) for number in given):
        raise TypeError(f"{must}, not a mask. Received: {shown(given)}")
    if any(not 0 <= number < size for number in numbers) or len({*numbers}) < len(numbers):
        raise ValueError(f"{must}, each once. Received: {shown(given)}")
    return numbers
