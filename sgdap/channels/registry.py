"""The registry of rules, one per layer class; it knows no rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import keras

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.channels.checks import checked_outputs
from sgdap.channels.labels import Symbol
from sgdap.model.leaves import add_leaves, leaf_class
from sgdap.model.user_code import user_line

if TYPE_CHECKING:
    from sgdap.channels.rule_call import RuleCall

Rule = Callable[[Any, "RuleCall"], "Symbol | Sequence[Symbol]"]
_Decorated = TypeVar("_Decorated", bound=Rule)

_RULES: dict[type, Rule] = {}
_DEFAULT: list[Rule] = []


@overload
def register_rule(*layer_classes: type) -> Callable[[_Decorated], _Decorated]: ...


@overload
def register_rule(*layer_classes: type, like: type) -> None: ...


def register_rule(
    *layer_classes: type, like: type | None = None
) -> Callable[[_Decorated], _Decorated] | None:
    """Registers the rule of one or several layer (or `keras.Operation`) classes.

    A rule is a function `(layer, call) -> Symbol` that tells, through the methods of
    `sgdap.channels.RuleCall`, which axes of the layer's weights carry which channels, and returns
    the channels of the layer's output. A rule holds for a subclass too, as long as that keeps
    `call` and `build`. Registering a class again replaces its rule. FLOPs that a rule does not say
    by `call.work` are counted from the layer's TensorFlow graph and taken not to shrink.

    Args:
        *layer_classes: The classes that the rule is for.
        like: A class whose rule holds for these classes too, in place of a function.
            `keras.layers.BatchNormalization` suits layers with weights of one number for each
            channel, whatever their names, along `axis`, or the last axis if they have no such
            attribute; `keras.layers.GroupNormalization` those that also have `groups`. Rules of
            other layers ask for the attributes of these.

    Returns:
        A decorator that returns the rule unchanged; with `like`, None.

    Raises:
        TypeError: An argument is no class of layers or operations, there is none, or the rule is
            no function.
        ValueError: There is no rule for `like`.

    Example:
        >>> @sgdap.register_rule(keras.layers.GaussianNoise)
        ... def noise(layer, call):
        ...     return call.input  # the channels of the output are those of the input

        >>> class Scale(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.factors = self.add_weight(shape=(shape[-1],))
        ...     def call(self, x):
        ...         return x * self.factors
        >>> sgdap.register_rule(Scale, like=keras.layers.BatchNormalization)
    """
    for layer_class in layer_classes or (None,):
        if not isinstance(layer_class, type) or not issubclass(layer_class, keras.Operation):
            raise TypeError(
                "register_rule takes layer classes: @sgdap.register_rule(MyLayer). "
                f"Received: {shown(layer_class)}"
            )

    def decorate(rule: _Decorated) -> _Decorated:
        if not callable(rule):
            raise TypeError(
                f"A rule must be a function (layer, call). Received: {shown(rule)}. Write "
                "@sgdap.register_rule(MyLayer) above the function."
            )
        add_leaves(*layer_classes)
        for layer_class in layer_classes:
            _RULES[layer_class] = rule
        return rule

    if like is None:
        return decorate
    if not isinstance(like, type) or like not in _RULES:
        raise ValueError(
            "like must be a class that has a rule, for example keras.layers.BatchNormalization. "
            f"Received: {shown(like)}"
        )
    decorate(_rule_like(like, _RULES[like]))
    return None


def _rule_like(like: type, rule: Rule) -> Rule:
    """The rule of one class, for others; where it does not fit them, the error says so."""

    def of_another(layer: Any, call: RuleCall) -> Symbol | Sequence[Symbol]:
        try:
            return rule(layer, call)
        except Exception as error:
            raise ValueError(
                f"{call.title}, taken from {like.__name__}, does not fit: "
                f"{str(error).rstrip('.')}. Write one of its own with "
                f"@sgdap.register_rule({type(layer).__name__})."
            ) from error

    return of_another


def register_default(rule: _Decorated) -> _Decorated:
    """Registers the rule for operations, and layers without weights, that have no other one."""
    _DEFAULT[:] = [rule]
    return rule


def find_rule(operation: Any) -> Rule | None:
    """Returns the rule of a layer, or None where there is none that holds for it."""
    registered = leaf_class(operation)
    if registered is not None:
        return _RULES[registered]
    if isinstance(operation, keras.Layer):
        holds = operation.built and not operation.weights
    else:
        holds = not any(base in _RULES for base in type(operation).__mro__)
    return _DEFAULT[0] if holds else None


def apply_rule(operation: Any, call: RuleCall) -> list[Symbol]:
    """Returns the channels of a call's outputs, as the rule of its layer says.

    Where there is no rule, or the layer's variables are not what its rule speaks of (LoRA,
    quantization), the channels of the inputs stay, and the reason is noted.
    """
    rule, changed = find_rule(operation), _unlike_its_config(operation)
    if rule is None:
        return call.keep_all(without_rule(operation, call.untraced))
    if changed is not None:
        return call.keep_all(changed)
    try:
        return checked_outputs(call.title, rule(operation, call), call.output_shapes)
    except Exception as error:
        if call.title in str(error):
            raise
        if getattr(rule, "__module__", "").startswith("sgdap."):
            error.add_note(call.title)
            raise
        raise ValueError(
            f"{call.title}, {getattr(rule, '__qualname__', rule)}, stopped at "
            f"{user_line(error.__traceback__)} with {type(error).__name__}: "
            f"{str(error).rstrip('.')}. Correct it, or let it return call.keep_all(reason)."
        ) from error


def without_rule(operation: Any, untraced: str) -> str:
    """The reason why channels stay that meet a layer without a rule."""
    why = f" ({untraced})" if untraced else ""
    return (
        f"no rule for {type(operation).__name__}{why}; it keeps all that it reads and makes, "
        "unless you register one with sgdap.register_rule"
    )


def _unlike_its_config(operation: Any) -> str | None:
    """The reason why a layer has other variables than its class makes, or None."""
    if not isinstance(operation, keras.Layer):
        return None
    for layer in _keras.flatten_layers(operation):
        if getattr(layer, "lora_enabled", False):
            return f"'{layer.name}' has LoRA enabled; prune first, then enable it"
        if layer.quantization_mode is not None:
            mode = layer.quantization_mode
            return f"'{layer.name}' is quantized to {mode}; prune first, then quantize"
    return None
