"""Recipes: lists of stages as YAML, read and written; nothing in them is run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgdap.compression.order import check_order, stage_of
from sgdap.compression.stages import Stage

SHIPPED = Path(__file__).parent / "recipes"
"""The recipes that come with sgdap."""


def load_recipe(recipe: str | os.PathLike[str]) -> list[Stage]:
    """Reads the stages of a recipe.

    A recipe is a YAML list of stages, each a name with its arguments:

        - prune: {flops: 0.3}
        - quantize: {scheme: int8}
        - export: {path: small.tflite, quantize: int8}

    Args:
        recipe: The path of a YAML file, or the name of a recipe that comes with sgdap.

    Returns:
        The stages, for `sgdap.compress`.

    Raises:
        FileNotFoundError: There is no such file or name.
        ValueError: The file is no recipe; the line is named.

    Example:
        >>> sgdap.load_recipe("mobile-int8")[0]
        Prune(flops=0.1, params=0.025)
    """
    path = Path(recipe)
    own = SHIPPED / f"{str(recipe).replace(':', '-')}.yaml"
    if not path.exists():
        if not own.exists():
            names = ", ".join(name.replace("sparse-2-4", "sparse-2:4") for name in _names())
            raise FileNotFoundError(
                f"There is no recipe {str(recipe)!r}: no such file, and none that comes with sgdap "
                f"({names})."
            )
        path = own
    return _read(path.read_text(), str(recipe))


def save_recipe(stages: Sequence[Stage], path: str | os.PathLike[str]) -> None:
    """Writes stages as a recipe.

    Args:
        stages: The stages.
        path: The file.
    """
    import yaml

    listed = [{stage.kind: stage.get_config()} for stage in stages]
    Path(path).write_text(yaml.safe_dump(listed, sort_keys=False))


def stages_of(listed: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """The stages of a list that JSON or YAML holds.

    Raises:
        ValueError: There is no such stage, or an argument has no meaning.
    """
    return [stage_of(name, arguments or {}) for own in listed for name, arguments in own.items()]


def _names() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _read(text: str, name: str) -> list[Stage]:
    import yaml

    try:
        root = yaml.compose(text, yaml.SafeLoader)
        listed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ValueError(f"{name}{where}: this is no YAML: {problem}.") from error
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{name}, line 1: a recipe is a list: '- prune: {{flops: 0.5}}'.")
    stages: list[Stage] = []
    for node, entry in zip(root.value, listed, strict=True):
        line = node.start_mark.line + 1
        try:
            stages.append(_stage(entry))
            check_order(stages)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}, line {line}: {error}") from error
    return stages


def _stage(entry: Any) -> Stage:
    if isinstance(entry, str):
        return stage_of(entry, {})
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(
            f"a stage is a name with its arguments: '- prune: {{flops: 0.5}}'. Received: {entry!r}"
        )
    ((kind, arguments),) = entry.items()
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ValueError(f"'{kind}' has arguments with names: '{kind}: {{…}}'.")
    return stage_of(str(kind), arguments)
