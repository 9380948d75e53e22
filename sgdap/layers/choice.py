"""The layers whose activations a user wants replaced; changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sgdap._arguments import choices_for, shown
from sgdap.model.program import Program
from sgdap.planning.widths import paths_called


def chosen_layers(
    program: Program,
    found: Mapping[str, Any],
    ends: Collection[str],
    layers: Sequence[str] | None,
    why_none: str,
) -> list[str]:
    """The paths of the layers that are chosen.

    Args:
        program: The calls of the model.
        found: The layers with an activation that can be replaced, by path.
        ends: Paths of those that make outputs, which stay unless they are named.
        layers: Names or patterns (`"block*"`); None: all but those of outputs.
        why_none: What is said where none can be replaced, after a colon.

    Raises:
        TypeError: `layers` is no list of names.
        ValueError: There is nothing to replace, or a name matches no such layer.
    """
    if layers is None:
        chosen = [path for path in found if path not in ends]
        if not chosen:
            raise ValueError(
                f"Model '{program.model.name}' has no activation to replace: {why_none}"
            )
        return chosen
    if isinstance(layers, str) or not isinstance(layers, Iterable) or not [*layers]:
        raise TypeError(
            "layers must be a list of layer names or patterns, for example ['block*'], or None for "
            f"all. Received: {shown(layers)}"
        )
    chosen = []
    for pattern in map(str, layers):
        fitting = paths_called(pattern, list(found))
        if not fitting:
            raise ValueError(
                f"No layer of model '{program.model.name}' with an activation that can be replaced "
                f"is called {pattern!r}. {choices_for(pattern, found)}"
            )
        chosen += [path for path in fitting if path not in chosen]
    return chosen
