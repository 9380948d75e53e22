"""Which variables of a model may have zeros; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sgdap import _keras
from sgdap._arguments import choices_for, is_number, shown
from sgdap.model.kernels import is_kernel
from sgdap.planning.widths import paths_called
from sgdap.sparsity.layouts import Layout, layout_of
from sgdap.sparsity.patterns import Pattern, Unstructured


@dataclass(frozen=True, eq=False)
class Kernel:
    """A variable whose single weights may leave.

    Attributes:
        path: Its name in masks: the path of the layer in the model, then that inside the layer.
        layer: The path of the layer in the model.
        number: Its number among the layer's variables.
        variable: The variable.
        layout: How it is seen as matrices, `(groups, reduction, outputs)`.
        pattern: The pattern of its zeros; a bias, which sums over nothing, has none.
        share: The share of zeros that the user set for it; None: that of all.
    """

    path: str
    layer: str
    number: int
    variable: Any
    layout: Layout
    pattern: Pattern
    share: float | None = None

    @property
    def key(self) -> tuple[str, int]:
        """The path of the layer and the number of the variable."""
        return self.layer, self.number

    @property
    def shape(self) -> tuple[int, ...]:
        """The variable's shape."""
        return tuple(int(n) for n in self.variable.shape)


def chosen_kernels(
    model_layers: Mapping[str, Any],
    pattern: Pattern,
    *,
    layers: Sequence[str] | None = None,
    overrides: Mapping[str, float] | None = None,
    biases: bool = False,
) -> tuple[Kernel, ...]:
    """Finds the kernels of a model that may have zeros.

    Args:
        model_layers: The model's layers by path, as `Program.layers` gives them.
        pattern: The pattern that the zeros will have.
        layers: Names or patterns (`"conv*"`) of layers, or of variables in them (`"*/kernel"`);
            None: all.
        overrides: A dict from such names to the share of zeros there, in place of that of all; 0
            leaves a layer as it is. The first matching entry holds.
        biases: Whether biases may have zeros too; they have no pattern.

    Returns:
        The kernels in the order of the layers; those that stay as they are left out.

    Raises:
        TypeError: `layers` or `overrides` are of the wrong type.
        ValueError: A name matches nothing that has a kernel, nothing is chosen, a layer is
            quantized or has LoRA enabled, or the pattern does not fit a kernel.
    """
    found = list(_kernels(model_layers, pattern, biases))
    known = [kernel.path for kernel in found]
    chosen = set(known) if layers is None else _named(layers, "layers", found, model_layers)
    shares: dict[str, float] = {}
    for name, share in _checked(overrides).items():
        fitting = _named([name], "overrides", found, model_layers)
        if not fitting & chosen:
            raise ValueError(
                f"overrides name '{name}', which layers={shown(layers)} leaves out. Take it out of "
                "overrides, or name it in layers too."
            )
        for path in fitting:
            shares.setdefault(path, float(share))
    made = tuple(
        replace(k, share=shares.get(k.path))
        for k in found
        if k.path in chosen and shares.get(k.path) != 0
    )
    if not made:
        raise ValueError(
            "No weight may leave: there is no kernel, or each is left out. "
            f"{choices_for('', known)}"
        )
    for kernel in made:
        _check_plain(kernel, model_layers[kernel.layer])
        reason = kernel.pattern.misfit(kernel.layout)
        if reason is not None:
            raise ValueError(
                f"pattern='{pattern}' does not fit '{kernel.path}': {reason}. Leave it as it is "
                f"with overrides={{'{kernel.path}': 0}}, or choose others with layers=[…]."
            )
    return made


def moving_layers(
    model_layers: Mapping[str, Any], kernels: Sequence[Kernel], layers: Sequence[str] | None
) -> set[str]:
    """Paths of the layers whose weights may move to make up for zeros.

    They are those that may have zeros. Unless the user named these, layers that have no kernel,
    such as normalisations, follow.

    Args:
        model_layers: The model's layers by path.
        kernels: The kernels that may have zeros.
        layers: The names as the user gave them.
    """
    own = {kernel.layer for kernel in kernels}
    if layers is not None:
        return own
    left_out = {kernel.layer for kernel in _kernels(model_layers, Unstructured(), False)} - own
    with_weights = {path for path, layer in model_layers.items() if getattr(layer, "weights", ())}
    return with_weights - left_out


def _kernels(model_layers: Mapping[str, Any], pattern: Pattern, biases: bool) -> Iterator[Kernel]:
    seen: set[int] = set()
    paths: set[str] = set()
    for path, layer in model_layers.items():
        if not getattr(layer, "weights", ()):
            continue
        owner = _owners(layer)
        for number, variable in enumerate(_keras.layer_variables(layer)):
            chosen = is_kernel(variable) or (biases and variable.name.endswith("bias"))
            if id(variable) in seen or not chosen:
                continue
            seen.add(id(variable))
            title = f"{path}/{variable.path.rpartition(f'{layer.name}/')[2]}"
            title = f"{title}:{number}" if title in paths else title
            paths.add(title)
            layout = layout_of(owner[id(variable)], variable)
            own = pattern if layout.reduction else Unstructured()
            yield Kernel(title, path, number, variable, layout, own)


def _owners(layer: Any) -> dict[int, Any]:
    """The layers that have the variables of a layer, by the variables' ids."""
    return {id(v): own for own in _keras.flatten_layers(layer) for v in own.weights}


def kernels_now(kernels: Sequence[Kernel], model_layers: Mapping[str, Any]) -> tuple[Kernel, ...]:
    """The same kernels after the model's channels changed: the variables that they are now.

    Args:
        kernels: The kernels as they were.
        model_layers: The model's layers by path.
    """
    found = []
    for kernel in kernels:
        layer = model_layers[kernel.layer]
        variable = _keras.layer_variables(layer)[kernel.number]
        layout = layout_of(_owners(layer)[id(variable)], variable)
        found.append(replace(kernel, variable=variable, layout=layout))
    return tuple(found)


def _named(
    names: Sequence[str], argument: str, found: Sequence[Kernel], model_layers: Mapping[str, Any]
) -> set[str]:
    """The paths of the kernels that names mean, of a layer or of a variable."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{argument} must be a list of names or patterns, for example ['conv*']. "
            f"Received: {shown(names)}"
        )
    own = {kernel.path: kernel.layer for kernel in found}
    chosen: set[str] = set()
    for name in names:
        of_layers = set(paths_called(name, list(dict.fromkeys(own.values()))))
        fitting = {path for path, layer in own.items() if layer in of_layers}
        fitting = fitting or set(paths_called(name, list(own)))
        if not fitting:
            without = paths_called(name, list(model_layers))
            raise ValueError(
                f"Layer '{without[0]}', as {argument} says, has no kernel whose weights may leave. "
                f"{choices_for(name, own.values())}"
                if without
                else f"No layer with a kernel is called '{name}', as {argument} says. "
                f"{choices_for(name, own.values())}"
            )
        chosen |= fitting
    return chosen


def _checked(overrides: Any) -> Mapping[str, float]:
    if overrides is None:
        return {}
    if not isinstance(overrides, Mapping):
        raise TypeError(
            "overrides must be a dict of layer names or patterns and the share of zeros there, "
            f"for example {{'stem*': 0.5}}. Received: {shown(overrides)}"
        )
    for name, share in overrides.items():
        if not is_number(share) or not 0 <= share < 1:
            raise ValueError(
                "overrides must give shares of zeros, from 0 up to below 1. "
                f"Received: {{{shown(name)}: {shown(share)}}}"
            )
    return overrides


def _check_plain(kernel: Kernel, layer: Any) -> None:
    for inner in _keras.flatten_layers(layer):
        lora = getattr(inner, "lora_enabled", False)
        mode = getattr(inner, "quantization_mode", None)
        if lora or mode is not None:
            state = "has LoRA enabled" if lora else f"is quantized to {mode}"
            raise ValueError(
                f"Layer '{kernel.layer}' {state}, so its kernel is not what it computes with. Make "
                f"it sparse first, or leave it out with overrides={{'{kernel.layer}': 0}}."
            )
