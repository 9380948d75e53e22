"""Finds the layers whose products are the logits of a model's predictions; runs nothing."""

from __future__ import annotations

from typing import Any

import keras

from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.execution.losses import KnownLoss, activation_of, is_activation, model_loss

_ACTIVATIONS = {"categorical": "softmax", "bernoulli": "sigmoid"}


def heads(graph: ChannelGraph) -> dict[str, str]:
    """The layers that make logits, and of what: `"categorical"` or `"bernoulli"` predictions.

    Their loss is a cross-entropy, of the logits or of what a softmax, its logarithm or a sigmoid
    makes of them, in the same layer or in one behind it. The classes lie on the last axis, and
    nothing else reads what they make.

    Args:
        graph: The model's channels.

    Returns:
        The kind of each layer, by its path.
    """
    found: dict[str, str] = {}
    for loss in model_loss(graph).known:
        place = _head(graph, loss)
        if place is not None:
            found.setdefault(place.path, loss.kind)
    return found


def _head(graph: ChannelGraph, loss: KnownLoss) -> Place | None:
    program = graph.program
    activation = _ACTIVATIONS.get(loss.kind)
    ref = program.outputs[loss.output]
    rank = len(program.shapes[ref.index])
    if (
        activation is None
        or loss.gamma
        or loss.alpha is not None
        or loss.axis not in (-1, rank - 1)
    ):
        return None
    applied, readers = loss.logits, 0
    for number, call in reversed(list(enumerate(program.calls))):
        if ref not in call.outputs:
            continue
        if sum(ref in other.inputs for other in program.calls) > readers:
            return None
        if loss.logits and _is_last(call.operation, "log_softmax", rank):
            pass  # as a loss of logits does itself
        elif not applied and _is_last(call.operation, activation, rank):
            applied = True
        elif getattr(call.operation, "activation", None) is not keras.activations.linear:
            return None
        own = [place for place in graph.places if place.call == number and place.shows_outputs]
        if own:
            once = [place.path for place in graph.places].count(own[0].path) == 1
            whole = len(own) == 1 and not own[0].patches.channels_first and own[0].refittable
            return own[0] if applied and once and whole else None
        if not is_activation(call.operation):
            return None
        (ref,) = call.inputs
        readers = 1
    return None


def _is_last(operation: Any, activation: str, rank: int) -> bool:
    """Whether an operation ends in an activation, along the last axis."""
    name, axis = activation_of(operation)
    wrapped = isinstance(operation, keras.layers.Wrapper)
    return name == activation and axis in (-1, rank - 1) and not wrapped
