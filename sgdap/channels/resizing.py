"""The configs of layers after a removal, and what is wrong where none can be made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.channels.facts import Resize
from sgdap.model.copying import made_like

LET_THE_RULE = (
    "Let its rule (see sgdap.register_rule) tell the channels along each axis of each of its "
    "variables with call.weight, and each entry of its config that counts them with call.resize."
)


def new_entries(
    layer: Any, resizes: Iterable[Resize], kept: npt.NDArray[np.bool_], *, shrunk: bool
) -> dict[str, Any]:
    """The entries of a layer's config that count channels that leave.

    Args:
        layer: The layer.
        resizes: The entries of its config that count channels.
        kept: Which channels stay.
        shrunk: Whether a variable of the layer shrinks.

    Raises:
        ValueError: Its rule names an entry that its config does not have, or it has no config.
    """
    entries: dict[str, Any] = {}
    for resize in resizes:
        count = int(kept[resize.channels].sum())
        if count == len(resize.channels) and not shrunk:
            continue
        name, *way = [resize.key] if isinstance(resize.key, str) else resize.key
        config = entries if name in entries else _config(layer, resize.path)
        try:
            whole = config[str(name)]
            if count == len(resize.channels) and _entry(whole, way) is not None:
                continue
            new = _replaced(whole, way, count)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"The rule of '{resize.path}' (of class {type(layer).__name__}) must give "
                f"call.resize an entry of the layer's config. Received: {shown(resize.key)}"
            ) from error
        entries[str(name)] = new
    return entries


def _entry(whole: Any, way: Sequence[str | int]) -> Any:
    for step in way:
        whole = whole[step]
    return whole


def _replaced(whole: Any, way: Sequence[str | int], count: int) -> Any:
    """A copy of a nested config with `count` at the end of the way into it."""
    if not way:
        return count
    first, *rest = way
    if isinstance(whole, Mapping):
        return {**whole, first: _replaced(whole[first], rest, count)}
    new = list(whole)
    new[int(first)] = _replaced(whole[int(first)], rest, count)
    return new if isinstance(whole, list) else tuple(new)


def _config(layer: Any, path: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = layer.get_config()
    except Exception as error:
        raise _not_from_config(layer, path, error) from error
    return config


def resized(layer: Any, path: str, entries: Mapping[str, Any]) -> Any:
    """Makes a layer like another one but for some entries of its config; it is not built.

    Raises:
        ValueError: It can't be made.
    """
    try:
        return made_like(layer, entries)
    except Exception as error:
        raise _not_from_config(layer, path, error) from error


def called(layer: Any, path: str, args: Any, kwargs: Any) -> Any:
    """What a resized layer makes of slim tensors; its first call builds it.

    Raises:
        ValueError: It can't be called on them.
    """
    try:
        return layer(*args, **kwargs)
    except Exception as error:
        why = str(error) or repr(error)
        raise ValueError(f"{_not_slim(layer, path)}{why} {LET_THE_RULE}") from error


def check_variables(path: str, old: Any, new: Any, shapes: Mapping[int, Sequence[int]]) -> None:
    """Raises if a resized layer has other variables than its rule tells.

    Args:
        path: The layer's path.
        old: The layer.
        new: The resized one, built.
        shapes: What its rule leaves of the variables that change, by number.

    Raises:
        ValueError: It has others.
    """
    before, after = _keras.layer_variables(old), _keras.layer_variables(new)
    if len(before) != len(after):
        raise ValueError(
            f"{_not_slim(old, path)}it has {len(after)} variables then and {len(before)} now. "
            "Let its get_config return all that its variables depend on."
        )
    for number, (mine, theirs) in enumerate(zip(before, after, strict=True)):
        stays = tuple(shapes.get(number, mine.shape))
        if stays != tuple(theirs.shape):
            raise ValueError(
                f"{_not_slim(old, path)}its '{mine.name}' is of shape {tuple(theirs.shape)} then, "
                f"and by its rule {stays} stays of it. {LET_THE_RULE}"
            )


def _not_slim(layer: Any, path: str) -> str:
    return f"Layer '{path}' (of class {type(layer).__name__}) can't be rebuilt for fewer channels: "


def _not_from_config(layer: Any, path: str, error: Exception) -> ValueError:
    return ValueError(
        f"Layer '{path}' (of class {type(layer).__name__}) can't be rebuilt from its config: "
        f"{error} Implement `get_config` (and `from_config`) in its class so that "
        f"{type(layer).__name__}.from_config(layer.get_config()) gives a layer like it."
    )
