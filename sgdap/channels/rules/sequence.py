"""Embedding and Masking: layers of sequences."""

from __future__ import annotations

from typing import Any

from keras import layers

from sgdap.channels.labels import Symbol, positions
from sgdap.channels.registry import register_rule
from sgdap.channels.rule_call import RuleCall


@register_rule(layers.Embedding, layers.ReversibleEmbedding)
def embedding(layer: Any, call: RuleCall) -> Symbol:
    """Columns of the table are channels; it, or one like it, read backwards scores every row."""
    channels = call.new_channels(layer.output_dim)
    call.weight(layer.embeddings, None, channels)
    if not getattr(layer, "tie_weights", True):
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
