"""Compiles a model of one package like one of the other, where all of it has an equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from sgdap.bridge.configs import instance
from sgdap.bridge.sides import NotConvertibleError, Sides


def compile_alike(model: Any, made: Any, sides: Sides) -> None:
    """Compiles a model like the one that it was made of, with a new optimizer.

    Where an optimizer, a loss or a metric has no equal, it stays as it is, not compiled.

    Args:
        model: The given model.
        made: The new one.
        sides: Where it comes from and goes.
    """
    config = _config_of(model)
    if config is None:
        return
    try:
        arguments = {
            "optimizer": _optimizer(config["optimizer"], made, sides),
            "loss": _each(config.get("loss"), "losses", sides),
            "metrics": _each(config.get("metrics"), "metrics", sides),
            "weighted_metrics": _each(config.get("weighted_metrics"), "metrics", sides),
        }
    except NotConvertibleError:
        return
    made.compile(**arguments, loss_weights=config.get("loss_weights"))


def _optimizer(value: Any, made: Any, sides: Sides) -> Any:
    """The optimizer of the other package, which scales the loss where layers have 16 bits."""
    if isinstance(value, Mapping) and value["class_name"].startswith("LossScaleOptimizer"):
        value = value["config"]["inner_optimizer"]
    optimizer = sides.target.optimizers.get(instance(value, "optimizers", sides))
    if not any(layer.compute_dtype == "float16" for layer in _layers_of(made)):
        return optimizer
    scaling = sides.target.optimizers if sides.target is keras else sides.target.mixed_precision
    return scaling.LossScaleOptimizer(optimizer)


def _layers_of(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers_of(layer)


def _config_of(model: Any) -> Mapping[str, Any] | None:
    """What a model was compiled with, serialised; None where it was not, or can't tell."""
    if getattr(model, "optimizer", None) is None:
        return None
    config = model.get_compile_config()
    return config if config and config.get("optimizer") else None


def _each(value: Any, module: str, sides: Sides) -> Any:
    """Losses or metrics of the other package, in the structure that they were given in."""
    if isinstance(value, (list, tuple)):
        return [_each(entry, module, sides) for entry in value]
    if isinstance(value, Mapping) and "class_name" not in value:
        return {key: _each(entry, module, sides) for key, entry in value.items()}
    return None if value is None else instance(value, module, sides)
