"""Replaces a model's activations by dynamic range activations; never trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from sgdap.channels.grouping import channel_graph
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.rules.activation import is_elementwise
from sgdap.layers.choice import chosen_layers
from sgdap.layers.dynamic_range import DynamicRangeActivation
from sgdap.model.copying import compile_alike, copied_operation, copy_state
from sgdap.model.functional import functional_with, layer_names
from sgdap.model.program import Program, Ref
from sgdap.model.symbolic_graph import symbolic_graph

ENDING = tuple(
    getattr(keras.layers, name)
    for name in (
        "Dense EinsumDense Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose "
        "DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D"
    ).split()
)
"""Layer classes with an `activation` in their config."""

ALONE = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
"""Layer classes that are an activation without weights."""


def to_dra(model: Any, layers: Sequence[str] | None = None, **arguments: Any) -> Any:
    """Replaces activations of a model by dynamic range activations.

    Growth rates begin at 1 and offsets at 0, so the new model computes the same as the old one.
    An activation layer is replaced by a `DynamicRangeActivation` of the same name. A layer with
    an `activation` becomes linear, and a `DynamicRangeActivation` named `<layer>_dra` follows it.
    If that layer makes an output of the model, losses know the output by its name: so the
    activation takes the layer's name, and the layer becomes `<layer>_linear`. Activations inside
    other layers (recurrent ones, wrappers) and those written as `keras.ops` stay.

    Args:
        model: A built `keras.Model`; it is not changed.
        layers: Names or patterns (`"conv*"`) of the layers whose activations are replaced. None:
            all activations that treat each channel by itself, except linear ones, those whose
            number of channels is not known or differs between calls, and those of the model's
            outputs, whose channels can't be removed.
        **arguments: Arguments of `DynamicRangeActivation`: `growth`, `growth_regularizer`,
            `momentum`, `clip`.

    Returns:
        A new functional `keras.Model`, without the methods of `model`'s class, such as
        `train_step`. If `model` is compiled, it is compiled in the same way, with a new optimizer.

    Raises:
        TypeError: `model` is not a Keras model, `layers` is not a list of names, or an argument is
            not one of `DynamicRangeActivation`.
        ValueError: A name matches no layer with an activation that can be replaced, there is no
            activation to replace, or the model can't be traced or copied.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu", name="a"),
        ...                           keras.layers.Dense(3, "softmax", name="b")])
        >>> [layer.name for layer in sgdap.layers.to_dra(model).layers[1:]]
        ['a', 'a_dra', 'b']
    """
    unknown = set(arguments) - {"growth", "growth_regularizer", "momentum", "clip"}
    if unknown:
        raise TypeError(
            "to_dra takes the arguments growth, growth_regularizer, momentum and clip of "
            f"DynamicRangeActivation. Received: {', '.join(sorted(unknown))}"
        )
    graph = channel_graph(model)
    program = graph.program
    found = _activations(graph)
    names, ends = layer_names(program), _ends(program)
    why_none = (
        "there is none that is a layer or the end of a dense or convolutional one, treats every "
        "channel by itself and is no output."
    )
    chosen = chosen_layers(program, found, ends, layers, why_none)
    tensors, _ = symbolic_graph(program)
    taken = {*names.values(), *(tensor.name for tensor, _ in tensors)}
    replacements: dict[str, list[Any]] = {}
    copies: dict[str, Any] = {}
    for path in chosen:
        layer = program.layers()[path]
        first = last = names[path]
        alone = not isinstance(layer, ENDING)
        if not alone and path in ends:  # losses and metrics know an output by its layer's name
            first = _untaken(f"{last}_linear", taken)
        elif not alone:
            last = _untaken(f"{first}_dra", taken)
        activation = DynamicRangeActivation(
            found[path],
            channel_axis=_channel_axis(graph, path),
            name=last,
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
            activity_regularizer=None if type(layer) in ALONE else layer.activity_regularizer,
            **arguments,
        )
        replacements[path] = [activation]
        if not alone:
            entries = {"name": first, "activation": "linear", "activity_regularizer": None}
            copies[path] = copied_operation(layer, path, entries)
            replacements[path] = [copies[path], activation]
    new = functional_with(program, replacements)
    for path, copy in copies.items():
        copy_state(program.layers()[path], copy)
    if model.compiled:
        compile_alike(new, model)
    return new


def _untaken(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_1"
    taken.add(name)
    return name


def _activations(graph: ChannelGraph) -> dict[str, Any]:
    """The activation of each layer whose activation can be replaced, by path."""
    found: dict[str, Any] = {}
    for path, layer in graph.program.layers().items():
        activation = None
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            continue
        if type(layer) in ENDING or type(layer) is keras.layers.Activation:
            activation = layer.activation
        elif type(layer) in ALONE:
            config = {k: v for k, v in layer.get_config().items() if k != "name"}
            activation = type(layer).from_config(config)
        if activation is None or activation is keras.activations.linear:
            continue
        width = _width(graph, path)
        if width is not None and is_elementwise(activation, width):
            found[path] = activation
    return found


def _made(graph: ChannelGraph, path: str) -> list[Ref]:
    """The output of each call of a layer."""
    return [ref for call in graph.program.calls if call.path == path for ref in call.outputs]


def _channel_axis(graph: ChannelGraph, path: str) -> int:
    """The channel axis of a layer's output; the last axis if no axis has channels."""
    made, *_ = (graph.tensors[ref.index] for ref in _made(graph, path))
    along = [axis for axis in range(1, len(made)) if made[axis] is not None]
    return along[-1] if along and along[-1] < len(made) - 1 else -1


def _width(graph: ChannelGraph, path: str) -> int | None:
    """The number of channels of a layer's output; None if unknown or different between calls."""
    axis = _channel_axis(graph, path)
    widths = set()
    for ref in _made(graph, path):
        channels = graph.tensors[ref.index][axis]
        widths.add(graph.program.shapes[ref.index][axis] if channels is None else len(channels))
    return widths.pop() if len(widths) == 1 else None


def _ends(program: Program) -> set[str]:
    """The layers that make the model's outputs."""
    return {call.path for call in program.calls if {*call.outputs} & {*program.outputs}}
