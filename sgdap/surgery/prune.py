"""Removes channels from a model; never decides which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.facts import Resize
from sgdap.channels.groups import ChannelGraph, ChannelGroup
from sgdap.channels.resizing import new_entries
from sgdap.channels.rewriting import rewritten_operations
from sgdap.channels.slices import sliced, variable_of, variable_slices
from sgdap.planning.widths import WidthRules
from sgdap.surgery.adopt import Change, adopt
from sgdap.surgery.optimizer import remade
from sgdap.surgery.prepare import Updates, prepare

Mask = npt.NDArray[np.bool_]


def prune_in_place(
    graph: ChannelGraph,
    kept: Mask,
    updates: Updates | None = None,
    optimizers: Sequence[Any] = (),
) -> None:
    """Makes a model slim; the model, its layers and its optimizer stay the same objects.

    An error or an interruption leaves the model as it was.

    Args:
        graph: The model's channels. It describes the model before the change, so make a new one
            afterwards.
        kept: A mask of the model's channels, True for those that stay, `(graph.count,)`.
        updates: New values for some variables of the slim model (the reconstruction). All other
            variables are sliced.
        optimizers: Optimizers that follow besides those that the model holds.

    Raises:
        ValueError: A layer can't be rebuilt from its config.
    """
    adopt(graph.program.model, pruned(graph, kept, updates, optimizers))


def pruned(
    graph: ChannelGraph,
    kept: Mask,
    updates: Updates | None = None,
    optimizers: Sequence[Any] = (),
) -> Change:
    """Prepares the removal of channels from a model, without touching the model.

    Args:
        graph: The model's channels.
        kept: A mask of the model's channels, True for those that stay, `(graph.count,)`.
        updates: New values for some variables of the slim model. All other variables are sliced.
        optimizers: Optimizers that follow besides those that the model holds.

    Returns:
        The prepared change.

    Raises:
        ValueError: A layer can't be rebuilt from its config.
    """
    slices = variable_slices(graph, kept)
    values = {
        key: sliced(variable_of(graph.program, key).numpy(), index) for key, index in slices.items()
    }
    values.update(updates or {})
    for scale in graph.scales:
        key = (scale.path, scale.variable)
        factor = kept[scale.channels].mean() ** scale.power
        if factor != 1:
            values[key] = values[key] * np.asarray(factor, values[key].dtype)
    configs = _new_entries(graph, kept, {path for path, _ in slices})
    operations = rewritten_operations(graph, kept)
    return prepare(graph.program, configs, operations, values, slices, optimizers=optimizers)


def check_can_be_rebuilt(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], rules: WidthRules
) -> None:
    """Checks that a model's layers and optimizer can be rebuilt, by preparing one step of pruning.

    Args:
        graph: The model's channels.
        groups: The groups that may shrink.
        rules: The widths that these groups may have.

    Raises:
        ValueError: A layer that shrinks, or the optimizer, can't be rebuilt.
    """
    pruned(graph, _one_slimmer(graph, groups, rules))
    model = graph.program.model
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        with _keras.scope_of(model):
            remade(optimizer)


def _one_slimmer(graph: ChannelGraph, groups: Sequence[ChannelGroup], rules: WidthRules) -> Mask:
    """A mask of the channels that stay if every group shrinks to its next allowed width."""
    kept = np.ones(graph.count, bool)
    for group in groups:
        removable = group.channels[group.removable]
        widths = [w for w in rules.allowed(group) if group.size - len(removable) <= w < group.size]
        if widths:
            kept[removable[len(removable) - group.size + widths[0] :]] = False
    for axis in graph.axes:
        if not kept[axis.channels].any():
            kept[axis.channels] = True
    return kept


def _new_entries(graph: ChannelGraph, kept: Mask, shrunk: set[str]) -> dict[str, dict[str, Any]]:
    """The new values of the config entries, such as `units`, that count removed channels."""
    of_layers: dict[str, list[Resize]] = {}
    for resize in graph.resizes:
        of_layers.setdefault(resize.path, []).append(resize)
    layers = graph.program.layers()
    entries = {
        path: new_entries(layers[path], resizes, kept, shrunk=path in shrunk)
        for path, resizes in of_layers.items()
    }
    return {path: changed for path, changed in entries.items() if changed}
