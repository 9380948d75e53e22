"""The variables of a model that are kernels, as matrices; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sgdap import _keras
from sgdap._arguments import choices_for, shown
from sgdap.model.kernels import is_kernel
from sgdap.planning.widths import paths_called
from sgdap.weights.layouts import Layout, layout_of

K = TypeVar("K", bound="Kernel")


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel of a model.

    Attributes:
        path: Its name: the path of the layer in the model, then that inside the layer.
        layer: The path of the layer in the model.
        number: Its number among the layer's variables.
        variable: The variable.
        layout: How it is seen as matrices, `(groups, reduction, outputs)`.
    """

    path: str
    layer: str
    number: int
    variable: Any
    layout: Layout

    @property
    def key(self) -> tuple[str, int]:
        """The path of the layer and the number of the variable."""
        return self.layer, self.number

    @property
    def shape(self) -> tuple[int, ...]:
        """The variable's shape."""
        return tuple(int(n) for n in self.variable.shape)


def kernels_of(model_layers: Mapping[str, Any], biases: bool = False) -> list[Kernel]:
    """All kernels of a model, in the order of the layers; a shared one once.

    Args:
        model_layers: The model's layers by path, as `Program.layers` gives them.
        biases: Whether biases count as kernels too.
    """
    return list(_kernels(model_layers, biases))


def _kernels(model_layers: Mapping[str, Any], biases: bool) -> Iterator[Kernel]:
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
            yield Kernel(title, path, number, variable, layout_of(owner[id(variable)], variable))


def chosen_of(
    found: Sequence[Kernel],
    model_layers: Mapping[str, Any],
    layers: Sequence[str] | None,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """The kernels that a user names, and what he set for them.

    Args:
        found: The kernels that there are.
        model_layers: The model's layers by path.
        layers: Names or patterns (`"conv*"`) of layers, or of variables in them (`"*/kernel"`);
            None: all.
        overrides: A dict from such names to anything. The first matching entry holds.

    Returns:
        What was set for each chosen kernel, by its path; kernels without are in `layers` only.

    Raises:
        TypeError: `layers` is no list of names.
        ValueError: A name matches nothing that has a kernel, or `layers` leaves it out.
    """
    chosen = {k.path for k in found}
    if layers is not None:
        chosen = _named(layers, "layers", found, model_layers)
    own: dict[str, Any] = {}
    for name, value in overrides.items():
        fitting = _named([name], "overrides", found, model_layers)
        if not fitting & chosen:
            raise ValueError(
                f"overrides name '{name}', which layers={shown(layers)} leaves out. Take it out of "
                "overrides, or name it in layers too."
            )
        for path in fitting:
            own.setdefault(path, value)
    return {k.path: own.get(k.path, COMMON) for k in found if k.path in chosen}


COMMON: Any = object()
"""What `chosen_of` says of a kernel that no override names."""


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
                f"Layer '{without[0]}', as {argument} says, has no kernel. "
                f"{choices_for(name, own.values())}"
                if without
                else f"No layer with a kernel is called '{name}', as {argument} says. "
                f"{choices_for(name, own.values())}"
            )
        chosen |= fitting
    return chosen


def check_plain(kernel: Kernel, layer: Any, without: str) -> None:
    """Raises if a layer does not compute with its kernel as it is.

    Args:
        kernel: The kernel.
        layer: The layer of its path.
        without: The argument that leaves the layer as it is.
    """
    for inner in _keras.flatten_layers(layer):
        lora = getattr(inner, "lora_enabled", False)
        mode = getattr(inner, "quantization_mode", None)
        if lora or mode is not None:
            state = "has LoRA enabled" if lora else f"is quantized to {mode}"
            raise ValueError(
                f"Layer '{kernel.layer}' {state}, so its kernel is not what it computes with. "
                f"Compress it before that, or leave it out with {without}."
            )


def moving_layers(
    model_layers: Mapping[str, Any], kernels: Sequence[Kernel], layers: Sequence[str] | None
) -> set[str]:
    """Paths of the layers whose weights may move to make up for what others lose.

    They are those of the kernels. Unless the user named these, layers that have no kernel, such as
    normalisations, follow.

    Args:
        model_layers: The model's layers by path.
        kernels: The kernels that are compressed.
        layers: The names as the user gave them.
    """
    own = {kernel.layer for kernel in kernels}
    if layers is not None:
        return own
    left_out = {kernel.layer for kernel in kernels_of(model_layers)} - own
    with_weights = {path for path, layer in model_layers.items() if getattr(layer, "weights", ())}
    return with_weights - left_out


def kernels_now(kernels: Sequence[K], model_layers: Mapping[str, Any]) -> tuple[K, ...]:
    """The same kernels after channels or layers left: the variables that they are now.

    Args:
        kernels: The kernels as they were.
        model_layers: The model's layers by path. Kernels of layers that left as a whole are left
            out.
    """
    found = []
    for kernel in kernels:
        if kernel.layer not in model_layers:
            continue
        layer = model_layers[kernel.layer]
        variable = _keras.layer_variables(layer)[kernel.number]
        layout = layout_of(_owners(layer)[id(variable)], variable)
        found.append(replace(kernel, variable=variable, layout=layout))
    return tuple(found)


def _owners(layer: Any) -> dict[int, Any]:
    """The layers that have the variables of a layer, by the variables' ids."""
    return {id(v): own for own in _keras.flatten_layers(layer) for v in own.weights}
