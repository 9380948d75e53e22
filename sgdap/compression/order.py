"""Stages by their names, and which may follow each other; carries none out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgdap._arguments import shown
from sgdap.compression.stages import (
    Depth,
    Distill,
    Export,
    Grow,
    Pack,
    Prune,
    Quantize,
    Sparsify,
    Stage,
)

KINDS: dict[str, type[Stage]] = {
    cls.kind: cls for cls in (Grow, Depth, Prune, Sparsify, Distill, Quantize, Export, Pack)
}
"""The stages by their names in a recipe."""

_TOO_LATE = {
    "grow": ("sparsify", "quantize"),
    "depth": ("sparsify", "quantize"),
    "prune": ("sparsify", "quantize"),
    "sparsify": ("quantize",),
    "distill": ("quantize",),
    "quantize": ("quantize",),
}
"""The stages that a stage must not follow, as it would undo them."""


def check_order(stages: Sequence[Stage]) -> None:
    """Raises if stages can't follow each other.

    Raises:
        TypeError: One is no stage.
        ValueError: There is none, one would undo another, or two write the same file.
    """
    if isinstance(stages, (Stage, str)) or not isinstance(stages, Sequence):
        raise TypeError(
            "stages must be a list, such as [sgdap.Prune(flops=0.5), sgdap.Quantize('int8')]. "
            f"Received: {shown(stages)}"
        )
    for stage in stages:
        if type(stage) not in KINDS.values():
            raise TypeError(
                "A stage is sgdap.Grow, Depth, Prune, Sparsify, Distill, Quantize, Export or Pack. "
                f"Received: {shown(stage)} (of type {type(stage).__name__})"
            )
    if not stages:
        raise ValueError("There is no stage. Pass one at least, or a budget alone.")
    for number, stage in enumerate(stages):
        for before in stages[:number]:
            if before.kind in _TOO_LATE.get(stage.kind, ()):
                what, other = type(stage).__name__, type(before).__name__
                remedy = "Quantize once" if what == other else f"Put {what} before {other}"
                raise ValueError(
                    f"{what} after {other} would undo it: it moves the weights. {remedy}."
                )
    paths = [getattr(stage, "path", None) for stage in stages]
    for path in filter(None, paths):
        if paths.count(path) > 1:
            raise ValueError(f"Two stages write {path}. Give each a path of its own.")


def reads_growth(stages: Sequence[Stage]) -> bool:
    """Whether a stage prunes by growth rates."""
    return any(isinstance(own, Prune) and own.guidance == "growth" for own in stages)


def stage_of(kind: str, arguments: Mapping[str, Any]) -> Stage:
    """The stage of a name with arguments, as a recipe has them.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The name or an argument is unknown or has no meaning.
    """
    if kind not in KINDS:
        raise ValueError(f"No stage is called '{kind}'. There are: {', '.join(KINDS)}.")
    known = {field for cls in KINDS[kind].__mro__ for field in vars(cls).get("__annotations__", ())}
    known -= {"kind", "trains", "budget"}
    for name in arguments:
        if name not in known:
            raise ValueError(f"'{kind}' takes no '{name}'. It takes: {', '.join(sorted(known))}.")
    return KINDS[kind](**arguments)
