"""What is private to Keras' optimizers: what they wrap, and which variables they update."""

from __future__ import annotations

from typing import Any

import keras

from sgdap._keras import flatten_layers, with_attributes


def optimizers_of(model: Any) -> list[Any]:
    """Returns the optimizers that a model and those in it hold, that of its `compile` first."""
    held = [getattr(model, "optimizer", None)]
    for part in (x for x in flatten_layers(model) if isinstance(x, keras.Model)):
        for value in vars(part).values():
            held += value if isinstance(value, (list, tuple)) else [value]
            held += value.values() if isinstance(value, dict) else []
    found = {id(o): o for o in held if isinstance(o, keras.optimizers.Optimizer)}
    inner = {id(part) for o in found.values() for part in optimizer_parts(o)[1:]}
    return [o for o in found.values() if id(o) not in inner]


def optimizer_parts(optimizer: Any) -> tuple[Any, ...]:
    """Returns the optimizer and those that it wraps, outermost first."""
    return (optimizer, *(p for x in inner_optimizers(optimizer) for p in optimizer_parts(x)))


def inner_optimizers(optimizer: Any) -> list[Any]:
    """Returns the optimizers that one wraps (loss scaling) or shares its variables out to."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return [optimizer.inner_optimizer]
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return list(optimizer.optimizers)
    return []


def is_around_others(optimizer: Any) -> bool:
    """Whether an optimizer wraps others; a MultiOptimizer may learn of them in `build` only."""
    around = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
    return isinstance(optimizer, around)


class _SharedOut:
    """Stands for a MultiOptimizer's map from variables to optimizers."""

    def __init__(self, optimizers: list[Any]) -> None:
        self.optimizers = optimizers
        self.by_variable: dict[int, Any] = {}

    def values(self) -> list[Any]:
        return self.optimizers

    def __call__(self, variable: Any) -> Any:
        return self.by_variable[id(variable)]


def optimizer_around(optimizer: Any, inner: list[Any]) -> Any:
    """Makes an optimizer like one that wraps others, around others."""
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return type(optimizer)(
            _SharedOut(inner),
            loss_scale_factor=optimizer.loss_scale_factor,
            name=optimizer.name,
        )
    return type(optimizer)(
        inner[0],
        initial_scale=optimizer.initial_scale,
        dynamic_growth_steps=optimizer.dynamic_growth_steps,
        name=optimizer.name,
    )


def build_optimizer(
    new: Any, old: Any, stand_ins: list[Any], old_variables: list[Any], held: list[Any]
) -> None:
    """Builds an optimizer for stand-ins of variables, then lets it hold the variables themselves.

    It shares them out to inner optimizers as `old` shares out the `old_variables`.
    """
    if isinstance(new, keras.optimizers.MultiOptimizer):
        for before, after in zip(old_variables, stand_ins, strict=True):
            number = old._var_to_optimizer_idx[old._var_key(before)]
            new._optimizer_map.by_variable[id(after)] = new.optimizers[number]
    new.build(stand_ins)
    by_id = {id(stand_in): variable for stand_in, variable in zip(stand_ins, held, strict=True)}
    for part in optimizer_parts(new):
        variables = [by_id[id(stand_in)] for stand_in in part._trainable_variables]
        object.__setattr__(part, "_trainable_variables", variables)


def adopt_inner_optimizers(old: Any, new: Any) -> None:
    """Lets an optimizer hold the inner optimizer objects of the one whose place it takes."""
    if isinstance(new, keras.optimizers.MultiOptimizer):
        new._inner_optimizers = list(old.optimizers)
        new._optimizer_map = old._optimizer_map
    elif isinstance(new, keras.optimizers.LossScaleOptimizer):
        new.inner_optimizer = old.inner_optimizer


def as_it_was(optimizer: Any, attributes: dict[int, dict[str, Any]]) -> Any:
    """Returns a stand-in for an optimizer, and for those that it wraps, with earlier attributes.

    Args:
        optimizer: The optimizer.
        attributes: All attributes that it and those that it wraps had, by their ids.
    """
    own = dict(attributes[id(optimizer)])
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        own["inner_optimizer"] = as_it_was(optimizer.inner_optimizer, attributes)
    elif isinstance(optimizer, keras.optimizers.MultiOptimizer):
        own["_inner_optimizers"] = [as_it_was(x, attributes) for x in optimizer.optimizers]
    return with_attributes(optimizer, own)


def learning_rate_function(optimizer: Any) -> Any | None:
    """Returns an optimizer's learning rate schedule or function; None where it is a number."""
    rate = optimizer._learning_rate
    return rate if callable(rate) and not isinstance(rate, keras.Variable) else None


def config_without_learning_rate(optimizer: Any) -> dict[str, Any]:
    """Returns an optimizer's config with some number as its learning rate.

    A user's function or schedule need not have a config.
    """
    return dict(
        with_attributes(optimizer, {**vars(optimizer), "_learning_rate": None}).get_config()
    )


def optimizer_variables(optimizer: Any) -> list[Any]:
    """Returns the model variables that a built optimizer updates, in its order."""
    return list(optimizer._trainable_variables)


def moving_averages(optimizer: Any) -> list[tuple[Any, Any]]:
    """Returns the model variables whose moving averages an optimizer keeps, and these averages."""
    averages = getattr(optimizer, "_model_variables_moving_average", None) or []
    pairs = zip(optimizer_variables(optimizer), averages, strict=True) if averages else ()
    return [(variable, average) for variable, average in pairs if average is not None]


def spares_weight_decay(optimizer: Any, variable: Any) -> bool:
    """Whether an optimizer was told to exclude a model variable from weight decay."""
    asked = {**vars(optimizer), "_exclude_from_weight_decay_cache": {}}  # it notes what it is asked
    return not with_attributes(optimizer, asked)._use_weight_decay(variable)


_APART = (
    *(keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.AdamW),
    *(keras.optimizers.Adamax, keras.optimizers.Nadam, keras.optimizers.RMSprop),
    *(keras.optimizers.Adagrad, keras.optimizers.Adadelta, keras.optimizers.Lion),
    keras.optimizers.Ftrl,
)


def keeps_weights_apart(optimizer: Any) -> bool:
    """Whether what an optimizer does to a weight depends on the gradients of no other weight.

    That is known of Keras' own optimizers only. Limits for norms of gradients tie weights together.
    """
    limits = optimizer.clipnorm, optimizer.global_clipnorm
    return type(optimizer) in _APART and limits == (None, None)
