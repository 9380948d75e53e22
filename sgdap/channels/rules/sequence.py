"""Embedding, Masking and EinsumDense: layers of sequences."""

from __future__ import annotations

import string
from typing import Any

from keras import layers

from sgdap.channels.labels import Symbol, positions
from sgdap.channels.patches import Patches
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall
from sgdap.channels.rules.activation import is_elementwise


@register_rule(layers.Embedding)
def embedding(layer: Any, call: RuleCall) -> Symbol:
    """Columns of the table are channels."""
    call.keep(call.input, f"'{layer.name}' takes them for numbers of rows")
    channels = call.new_channels(layer.output_dim)
    call.weight(layer.embeddings, None, channels)
    call.resize("output_dim", channels)
    return call.output().with_axis(-1, channels)


@register_rule(layers.ReversibleEmbedding)
def reversible_embedding(layer: Any, call: RuleCall) -> Symbol:
    """The same table, or one like it, read backwards makes a score for every row."""
    channels = call.new_channels(layer.output_dim)
    call.weight(layer.embeddings, None, channels)
    if not layer.tie_weights:
        call.weight(layer.reverse_embeddings, channels, None)
    call.resize("output_dim", channels)
    if not call.argument("reverse", 1):
        call.keep(call.input, f"'{layer.name}' takes them for numbers of rows")
        return call.output().with_axis(-1, channels)
    call.keep_positions(-1)
    call.tie(channels, call.along(call.input, -1))
    rows = call.fixed(layer.input_dim)
    call.work(2 * positions(call.input.shape[1:-1]), channels, rows)
    return call.output()


@register_rule(layers.Masking)
def masking(layer: Any, call: RuleCall) -> Symbol:
    """A step is masked when all its channels have one value, so each of them counts."""
    call.keep(call.input, f"'{layer.name}' looks at all of them to mask a step")
    return call.input


@register_rule(layers.EinsumDense)
def einsum_dense(layer: Any, call: RuleCall) -> Symbol:
    """A kernel's axes that the input has too are read, those that the output has are made."""
    read, rest = layer.equation.replace(" ", "").split(",")
    kernel, made = rest.split("->")
    x = call.input
    if "..." in made and not made.startswith("..."):
        call.keep(
            x, f"'{layer.name}' has an ellipsis inside its equation; write a letter for each axis"
        )
        return call.output()
    given = len(layer.partial_output_shape)
    before = len(call.output_shape) - given if made.startswith("...") else 1
    spare = [letter for letter in string.ascii_letters if letter not in layer.equation]
    dots = "".join(spare[: x.rank - len(read.replace("...", ""))])
    read, made = read.replace("...", dots), made.replace("...", dots)
    inputs = dict(zip(read, x.axes, strict=True))
    output = call.output()
    labels: dict[str, Any] = {}
    for position, letter in enumerate(kernel):
        size = int(layer.kernel.shape[position])
        if letter in read:
            axis = read.index(letter)
            known = inputs[letter] is not None or letter not in made
            labels[letter] = call.along(x, axis) if known else None
        else:
            labels[letter] = call.new_channels(size, letter)
    for axis, letter in enumerate(made):
        channels = labels.get(letter, inputs.get(letter))
        if channels is not None:
            output = output.with_axis(axis, channels)
            place = axis - before
            if 0 <= place < given and layer.partial_output_shape[place] is not None:
                call.resize(("output_shape", place), channels)
    call.weight(layer.kernel, *(labels[letter] for letter in kernel))
    if layer.bias is not None:
        first = min(made.index(letter) for letter in layer.bias_axes)
        of_bias = [
            output.axes[axis] if made[axis] in layer.bias_axes else None
            for axis in range(first, len(made))
        ]
        call.weight(layer.bias, *of_bias)
    shared = [size for letter, size in zip(read, x.shape, strict=True) if letter not in kernel]
    call.work(
        2 * positions(shared[1:]),
        *(
            labels[letter] if labels[letter] is not None else call.fixed(int(size))
            for letter, size in zip(kernel, layer.kernel.shape, strict=True)
        ),
    )
    contracted = [letter for letter in kernel if letter in read and letter not in made]
    if len(contracted) == 1 and len(kernel) == 2 and kernel[0] == contracted[0] == read[-1]:
        features, units = labels[kernel[0]], labels[kernel[1]]
        if made[-1] == kernel[1]:
            call.linear(layer.kernel, layer.bias, Patches(), features, units)
    if not all(is_elementwise(layer.activation, len(c)) for c in output.all_channels()):
        call.keep(output, f"the activation of '{layer.name}' mixes the channels")
    return output
