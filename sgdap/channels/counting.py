"""Counts a model's work on inputs of known sizes where it leaves sizes open; changes no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sgdap.channels.facts import Work, settled_facts
from sgdap.channels.grouping import stated
from sgdap.channels.groups import ChannelGraph
from sgdap.model.program import Shape
from sgdap.model.tracing import trace


def counted_on(graph: ChannelGraph, shapes: Sequence[Shape]) -> ChannelGraph:
    """Counts a model's work on inputs of given sizes, where it leaves sizes open.

    The rules are asked once more, of a model that is called on tensors of these sizes. Channels,
    and the model itself, stay as they are.

    Args:
        graph: The model's channels.
        shapes: The shape of each input; the batch axis does not count.

    Returns:
        The same channels with their work on such inputs. `graph` itself where no size is open, and
        where the model can't be followed on these sizes as it was on open ones.
    """
    sized = [
        (own[0], *shape[1:]) for own, shape in zip(graph.program.input_shapes, shapes, strict=True)
    ]
    if sized == [*graph.counted_shapes]:
        return graph
    try:
        program = trace(graph.program.model, sized)
    except Exception:  # a layer or `call` of the user's own may raise anything on other sizes
        return graph
    statements, _ = stated(program)
    work = settled_facts(statements.work, statements.ledger.settle())
    if list(map(_kind, work)) != list(map(_kind, graph.work)):
        return graph
    pairs = zip(graph.work, work, strict=True)
    told = tuple(replace(old, factor=new.factor) for old, new in pairs)
    return replace(graph, counted=program, work=told)


def _kind(work: Work) -> tuple[str, list[int]]:
    return work.path, [len(channels) for channels in work.axes]
