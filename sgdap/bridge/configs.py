"""Arguments of layers and other objects of one package as those of the other; makes no model."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

from sgdap._arguments import shown
from sgdap.bridge.sides import NotConvertibleError, Sides

_WITHOUT_EFFECT = frozenset(
    "autocast batch_input_shape build_config dynamic fn force_generator fused "
    "implementation input_length is_legacy_optimizer jit_compile key_shape lora_alpha lora_rank "
    "query_shape registered_name rng_type robust_masking seed softmax_robust_masking trainable "
    "use_cudnn value_shape weights".split()
)
"""Entries of configs that say how something is computed or was built, or that stand elsewhere."""

_OF_ALL = ("activity_regularizer", "name", "dtype")
"""What all layers take."""

_RENAMED = {"alpha": "negative_slope", "negative_slope": "alpha"}
"""What the one package calls by another name than the other, where it knows no such argument."""

_CATEGORIES = ("initializer", "regularizer", "constraint")


def arguments_of(cls: type) -> dict[str, Any]:
    """The arguments that a class takes, those of its bases too, with their defaults."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = [*inspect.signature(vars(base)["__init__"]).parameters.values()][1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def translated(config: Mapping[str, Any], source: type, target: type) -> dict[str, Any]:
    """The entries of a config that a class of the other package takes.

    What it does not take is left out where it has no effect, or where it is the default of the
    class that the config is of.

    Args:
        config: The config.
        source: The class that it is of.
        target: The class of the other package.

    Raises:
        NotConvertibleError: An entry matters and the other class does not take it.
    """
    taken, defaults = arguments_of(target), arguments_of(source)
    made: dict[str, Any] = {}
    for key, value in config.items():
        name = key if key in taken else _RENAMED.get(key, key)
        if key == "trainable" or (key.endswith("initializer") and name not in taken):
            continue  # flags are set later, and weights copied
        if name in taken:
            made[name] = value
        elif key in _OF_ALL or (key == "zero_output_for_mask" and value):
            made[key] = value
        elif key not in _WITHOUT_EFFECT and not _is_default(key, value, defaults):
            raise NotConvertibleError(f"there is no {key}={shown(value)}")
    return made


def _is_default(key: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    if key == "data_format":
        return bool(value == "channels_last")
    if not value and not defaults.get(key):
        return True
    value = tuple(value) if isinstance(value, list) else value
    return type(value) is type(defaults.get(key)) and bool(value == defaults[key])


def dtype_name(dtype: Any) -> str | None:
    """The name of the dtype policy that stands in a config."""
    if isinstance(dtype, Mapping):
        if dtype["class_name"] not in ("DTypePolicy", "Policy", "FloatDTypePolicy"):
            raise NotConvertibleError(f"there is no dtype policy {dtype['class_name']}")
        dtype = dtype["config"]["name"]
    return None if dtype is None else str(getattr(dtype, "name", dtype))


def category_of(key: str) -> str | None:
    """The kind of object that an entry of a layer's config holds, or None."""
    return next((kind for kind in _CATEGORIES if key.endswith(kind)), None)


def other_object(value: Any, key: str, sides: Sides) -> Any:
    """An initializer, regularizer or constraint of the other package.

    Args:
        value: The entry of a config, as it is serialised.
        key: Its name.
        sides: Where it comes from and goes.

    Returns:
        The object. None in the place of an initializer that there is not: weights are copied.

    Raises:
        NotConvertibleError: There is no such object.
    """
    kind = category_of(key)
    if value is None or kind is None:
        return value
    module = f"{kind}s"
    try:
        return instance(value, module, sides)
    except NotConvertibleError:
        if kind == "initializer":
            return None
        raise


def instance(value: Any, module: str, sides: Sides) -> Any:
    """Makes an object of the other package from a serialised one.

    Args:
        value: A name, or a dict with `class_name` and `config`; what is nested in it is made too.
        module: Where both packages have it: `"losses"`, `"optimizers.schedules"`.
        sides: Where it comes from and goes.

    Raises:
        NotConvertibleError: There is no such object.
    """
    name, config = _told(value)
    packages = (sides.source, sides.target)
    if config is None and name in _OF_COMPILE.get(module, ()):
        return name
    source, target = (_member(package, module, name) for package in packages)
    own = isinstance(value, Mapping) and str(value.get("module")).split(".")[0] not in _KERAS
    if source is None or target is None or own:
        raise NotConvertibleError(f"there is no {name} in {sides.target_name}'s {module}")
    if config is None:
        return name
    if not inspect.isclass(source) or not inspect.isclass(target):
        raise NotConvertibleError(f"{name} is no class in both packages")
    untold = {*arguments_of(source)} - {*config} - {"axis", "dtype", "fn", "name", "reduction"}
    if module in _OF_COMPILE and untold:
        raise NotConvertibleError(f"{name} does not tell its {', '.join(sorted(untold))}")
    entries = translated(config, source, target)
    if entries.get("reduction") == "auto":
        entries["reduction"] = "sum_over_batch_size"
    for key, entry in entries.items():
        if key == "dtype":
            entries[key] = dtype_name(entry)
        elif isinstance(entry, Mapping) and "class_name" in entry:
            inner = "optimizers.schedules" if key == "learning_rate" else module
            entries[key] = instance(entry, inner, sides)
    return target(**entries)


_KERAS = ("keras", "builtins", "None")
"""The packages that serialised objects of either Keras say that they are of."""

_OF_COMPILE = {"losses": (), "metrics": ("accuracy", "acc", "crossentropy", "ce")}
"""Names that `compile` knows by itself."""


def _told(value: Any) -> tuple[str, Mapping[str, Any] | None]:
    """The name of a serialised object and its config; None for what has none."""
    if isinstance(value, str):
        return value, None
    if not isinstance(value, Mapping) or "class_name" not in value:
        raise NotConvertibleError(f"{shown(value)} is of a class of its own")
    if value["class_name"] == "function":
        return str(value["config"]), None
    return str(value["class_name"]), value.get("config") or {}


def _member(package: Any, module: str, name: str) -> Any:
    """What a package has by a name, aliases such as `"mse"` too; None where it has nothing."""
    for part in module.split("."):
        package = getattr(package, part)
    found = getattr(package, name, None)
    if found is None and hasattr(package, "get"):
        with contextlib.suppress(Exception):  # each module has errors of its own
            found = package.get(name)
    return found
