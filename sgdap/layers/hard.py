"""Puts piecewise linear activations in the place of smooth ones, in a copy of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from sgdap._arguments import check_choice
from sgdap._table import table_text, terminal_width
from sgdap.distillation.finish import Answers, distill
from sgdap.distillation.teaching import checked_terms
from sgdap.distillation.terms import divergence
from sgdap.execution.backend import check_backend
from sgdap.execution.data import joined
from sgdap.layers.choice import chosen_layers
from sgdap.model.copying import compile_alike, copied_operation, copy_state
from sgdap.model.functional import functional_with, layer_names
from sgdap.model.generators import global_state_kept
from sgdap.model.program import Program, Ref
from sgdap.model.tracing import trace

_HARD = {
    "silu": "hard_silu",
    "swish": "hard_silu",
    "gelu": "hard_silu",
    "sigmoid": "hard_sigmoid",
}
"""The piecewise linear kin of smooth activations, by their names in Keras."""

_KEYS = ("activation", "recurrent_activation")

_INSIDE = ("layer", "backward_layer", "cell", "cells")
"""Entries of the configs of Keras' wrappers and recurrent layers that hold other layers."""

_OPERATIONS = {"Silu": "silu", "Gelu": "gelu", "Sigmoid": "sigmoid", "Relu": "relu"}
"""Classes of operations of `keras.ops` that are an activation, and their names."""

_KEEPS_VALUES = (
    *(keras.layers.Reshape, keras.layers.Flatten, keras.layers.Permute, keras.layers.RepeatVector),
    *(keras.layers.Dropout, keras.layers.Identity, keras.layers.Concatenate),
    *(keras.layers.Cropping1D, keras.layers.Cropping2D, keras.layers.Cropping3D),
)
"""Layers through which probabilities pass as they are."""


@dataclass(frozen=True)
class Hardening:
    """What was replaced in a model, and what that cost.

    Attributes:
        replaced: The activations that each layer had and has, by its path: `"silu → hard_silu"`.
        divergence: How far the outputs are from those of the given model, on the data, before and
            after the refit, as in `sgdap.distill` at temperature 1: the Kullback-Leibler divergence
            of outputs that are probabilities, the mean squared error of others. None without data.
        loss: What the model's `evaluate` gives as its loss: of the given model, before and after
            the refit. None without targets or a compiled loss.
    """

    replaced: Mapping[str, str]
    divergence: tuple[float, float] | None = None
    loss: tuple[float, float, float] | None = None

    def __str__(self) -> str:
        """A table of the layers, and lines that tell the cost."""
        rows = [([[path]], [change], "") for path, change in self.replaced.items()]
        lines = []
        if self.divergence is not None:
            first, last = self.divergence
            told = f"{first:.3g}, after the refit {last:.3g}"
            lines.append(f"Divergence from the given model: {told}.")
        if self.loss is not None:
            own, first, last = self.loss
            told = f"{own:.4g}, with hard activations {first:.4g}, refitted {last:.4g}"
            lines.append(f"Loss: {told}.")
        title = "Activations replaced"
        return table_text(title, ["layer"], ["activation"], "", rows, lines, terminal_width(100))


def to_hard(
    model: Any,
    data: Any = None,
    *,
    layers: Sequence[str] | None = None,
    relu6: bool = False,
    return_report: bool = False,
    verbose: int = 0,
) -> Any:
    """Puts hard activations in the place of smooth ones, and refits the model to them.

    Integers have no exponential: runtimes compute `silu` or `sigmoid` by tables, or as floats
    between integers. The hard ones (Howard and others 2019, "Searching for MobileNetV3", section
    5.2) are sums, products and a clip, and their outputs lie in known ranges:

    * `silu` (`swish`) and `gelu` become `hard_silu(x) = x · hard_sigmoid(x)`,
    * `sigmoid`, in gates and in recurrent layers, becomes `hard_sigmoid(x) = relu6(x + 3) / 6`,
    * with `relu6=True`, `relu` becomes `relu6`, whose range is known.

    They stand in layers, in layers inside wrappers and recurrent ones, or are operations of
    `keras.ops`. What makes the probabilities of an output stays, unless `layers` names it.

    With `data`, all weights that are trainable are refitted by `sgdap.distill`: the given model
    teaches, and samples held back judge, so that the refit never takes the new model further from
    it there. `gelu` is further from its kin than `silu`: always refit where there is one.

    Args:
        model: A built `keras.Model`; it is not changed.
        data: Inputs, or `(x, y)`, in any form that `sgdap.distill` takes. Targets are used for the
            report only. None: nothing is refitted.
        layers: Names or patterns (`"block*"`) of the layers whose activations are replaced. None:
            all but those of outputs.
        relu6: Whether `relu` is replaced too.
        return_report: Whether the `Hardening` is returned beside the model.
        verbose: 1 prints the report.

    Returns:
        A new functional `keras.Model`, compiled as `model` is; with `return_report` a pair of it
        and the report.

    Raises:
        RuntimeError: There are data, and Keras uses another backend than TensorFlow.
        TypeError: `model` is no Keras model, or `layers` is not a list of names.
        ValueError: There is nothing to replace, a name matches no layer with such an activation,
            the model can't be traced or copied, or the data do not fit it.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "silu", name="a"),
        ...                           keras.layers.Dense(3, "softmax", name="b")])
        >>> hard, report = sgdap.layers.to_hard(model, return_report=True)
        >>> hard.get_layer("a").activation is keras.activations.hard_silu, dict(report.replaced)
        (True, {'a': 'silu → hard_silu'})
    """
    check_choice("verbose", verbose, (0, 1, False, True))
    if data is not None:
        check_backend("sgdap.layers.to_hard")
    program = trace(model)
    hard = _HARD | ({"relu": "relu6"} if relu6 else {})
    found = {
        path: change
        for path, operation in program.layers().items()
        if (change := _change(operation, hard)) is not None
    }
    why_none = "no silu, gelu or sigmoid (nor relu, with relu6=True) of a layer that is no output."
    chosen = chosen_layers(program, found, _ends(program), layers, why_none)
    names = layer_names(program)
    replacements: dict[str, list[Any]] = {}
    for path in chosen:
        layer, (entries, _) = program.layers()[path], found[path]
        if isinstance(layer, keras.Layer):
            replacements[path] = [copied_operation(layer, path, {**entries, "name": names[path]})]
        else:
            replacements[path] = [keras.layers.Activation(name=names[path], **entries)]
    new = functional_with(program, replacements)
    for path, (copy, *_) in replacements.items():
        if isinstance(program.layers()[path], keras.Layer):
            copy_state(program.layers()[path], copy)
    if model.compiled:
        compile_alike(new, model)
    report = _refitted(model, new, data, {path: found[path][1] for path in chosen})
    if verbose:
        print(report)
    return (new, report) if return_report else new


def _change(operation: Any, hard: Mapping[str, str]) -> tuple[dict[str, Any], str] | None:
    """The entries of an operation's config that change, and in words; None for nothing."""
    if not type(operation).__module__.startswith("keras."):
        return None
    if not isinstance(operation, keras.Layer):
        name = _OPERATIONS.get(type(operation).__name__, "")
        return ({"activation": hard[name]}, _words({name: hard[name]})) if name in hard else None
    if getattr(operation, "lora_enabled", False) or getattr(operation, "quantization_mode", None):
        return None
    config, made = operation.get_config(), dict[str, str]()
    if isinstance(operation, keras.layers.ReLU) and "relu" in hard:
        plain = (config["max_value"], config["negative_slope"], config["threshold"])
        return ({"max_value": 6.0}, _words({"relu": "relu6"})) if plain == (None, 0, 0) else None
    entries = _hardened(config, hard, made)
    changed = {key: entries[key] for key in entries if entries[key] != config[key]}
    return (changed, _words(made)) if made else None


def _hardened(config: Mapping[str, Any], hard: Mapping[str, str], made: dict[str, str]) -> Any:
    """A config with hard activations, those of layers inside too; writes down what was replaced."""
    new = dict(config)
    for key, value in config.items():
        if key in _KEYS and isinstance(value, str) and value in hard:
            new[key] = made[value] = hard[value]
        elif key in _INSIDE and isinstance(value, list):
            new[key] = [_inside(entry, hard, made) for entry in value]
        elif key in _INSIDE:
            new[key] = _inside(value, hard, made)
    return new


def _inside(entry: Any, hard: Mapping[str, str], made: dict[str, str]) -> Any:
    if not isinstance(entry, Mapping) or not str(entry.get("module")).startswith("keras."):
        return entry
    return {**entry, "config": _hardened(entry["config"], hard, made)}


def _words(made: Mapping[str, str]) -> str:
    return ", ".join(f"{old} → {new}" for old, new in made.items())


def _ends(program: Program) -> set[str]:
    """The layers whose values are the model's outputs, in whatever shape."""
    found: set[str] = set()
    wanted: set[Ref] = set(program.outputs)
    for call in reversed(program.calls):
        if wanted.isdisjoint(call.outputs):
            continue
        found.add(call.path)
        linear = getattr(call.operation, "activation", None) is keras.activations.linear
        alone = isinstance(call.operation, keras.layers.Activation)
        if isinstance(call.operation, _KEEPS_VALUES) or (alone and linear):
            wanted.update(call.inputs)
    return found


def _refitted(model: Any, new: Any, data: Any, replaced: Mapping[str, str]) -> Hardening:
    """Refits a copy with hard activations to the answers of the model, and tells what that cost."""
    if data is None:
        return Hardening(replaced)
    x, y, weights = joined(data)
    _, terms = checked_terms(new, model)
    taught = Answers(model, terms).to(x, 64)

    def apart() -> float:
        with global_state_kept():
            made = keras.tree.flatten(new.predict(x, batch_size=64, verbose=0))
        return float(divergence(terms, taught, made, weights, 1.0))

    def loss(of: Any) -> float:
        logs = of.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
        return float(np.asarray(logs["loss"]))

    known = y is not None and model.compiled and bool(model.loss)
    first = apart()
    losses = (loss(model), loss(new)) if known else None
    distill(new, model, (x,) if weights is None else (x, y, weights))
    told = None if losses is None else (*losses, loss(new))
    return Hardening(replaced, (first, apart()), told)
