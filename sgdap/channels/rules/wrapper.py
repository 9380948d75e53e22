"""Layers around a layer: they let the rule of the inner layer speak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import layers

from sgdap import _keras
from sgdap.channels.labels import Symbol
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.model.symbolic_graph import symbolic_graph
from sgdap.model.tracing import trace


@register_rule(layers.SpectralNormalization)
def spectral_normalization(layer: Any, call: RuleCall) -> list[Symbol]:
    """Divides the kernel by its norm in training; its vector lies along the kernel's last axis."""
    made = call.inside("layer", "layer", call.inputs, call.output_shapes)
    channels = call.along_weight(layer.kernel, -1)
    call.weight(layer.vector_u, None, channels)
    return made


@register_rule(layers.TimeDistributed)
def time_distributed(layer: Any, call: RuleCall) -> list[Symbol]:
    """The inner layer at every step; it sees no axis of steps."""
    x = call.input
    call.keep_along(x, 1, f"'{layer.name}' works along their axis")
    call.keep_masks([x])
    step = Symbol((x.shape[0], *x.shape[2:]), (None, *x.axes[2:]))
    shapes = [(shape[0], *shape[2:]) for shape in call.output_shapes]
    made = call.inside("layer", "layer", [step], shapes, each_step=True)
    return [
        Symbol((y.shape[0], shape[1], *y.shape[1:]), (None, None, *y.axes[1:]))
        for y, shape in zip(made, call.output_shapes, strict=True)
    ]


@register_rule(_keras.functional_class(), keras.Sequential)
def model_inside(model: Any, call: RuleCall) -> list[Symbol]:
    """A model inside a wrapper: the rules of its layers, one after another.

    Elsewhere models are unrolled before any rule speaks.
    """
    program = trace(model)
    if len(call.inputs) != len(program.inputs):
        return call.keep_all(f"'{model.name}' is given a mask")
    ways = dict(_ways(model, model.get_config()))
    symbols = {ref.index: x for ref, x in zip(program.inputs, call.inputs, strict=True)}
    for inner in program.calls:
        if id(inner.operation) not in ways:
            return call.keep_all(
                f"'{inner.path}' is not in the config of '{model.name}', from which a slim one "
                "would be made"
            )
        symbols |= dict(
            zip(
                [ref.index for ref in inner.outputs],
                call.inside_model(
                    inner,
                    ways[id(inner.operation)],
                    [symbols[ref.index] for ref in inner.inputs],
                    [program.shapes[ref.index] for ref in inner.outputs],
                    [program.dtypes[ref.index] for ref in inner.inputs],
                ),
                strict=True,
            )
        )
    tensors, _ = symbolic_graph(program)
    for tensor, ref in tensors:
        record = _keras.history(tensor)
        if record is not None and isinstance(record[0], layers.InputLayer):
            for axis, channels in enumerate(symbols[ref.index].axes):
                if channels is not None:
                    call.resize((*ways[id(record[0])], "batch_shape", axis), channels)
    return [symbols[ref.index] for ref in program.outputs]


def _ways(
    model: Any, config: Mapping[str, Any], way: tuple[str | int, ...] = ()
) -> Iterator[tuple[int, tuple[str | int, ...]]]:
    """For each layer in a model its id, and the names and positions that lead to its config."""
    functional = _keras.functional_of(model)
    assert functional is not None
    inside = {operation.name: operation for operation in functional.operations}
    for number, entry in enumerate(config.get("layers", ())):
        operation, place = inside[entry["config"]["name"]], (*way, "layers", number, "config")
        yield id(operation), place
        if isinstance(operation, keras.Model):
            yield from _ways(operation, entry["config"], place)
