"""Keras' own symbolic graphs of a program's model, beside the program; changes neither."""

from __future__ import annotations

from typing import Any

import keras

from sgdap import _keras
from sgdap.model.program import Call, Program, Ref, Unrolled, leaves_of, refs_of

Pairs = tuple[list[tuple[keras.KerasTensor, Ref]], list[tuple[Any, Call]]]


def symbolic_graph(program: Program) -> Pairs:
    """Finds what a program's tensors and calls are in the graphs of its functional models.

    A model that is called twice has one graph and two sets of calls, so a symbolic tensor may come
    with several tensors of the program.

    Args:
        program: The calls of a model.

    Returns:
        Keras' symbolic tensors and the `Ref` that each is, and Keras' nodes and the `Call` that
        each is.
    """
    parts: dict[Any, list[Call | Unrolled]] = {}
    for call in program.calls:
        parts.setdefault((id(call.operation), call.inputs), []).append(call)
    for model in program.unrolled:
        parts.setdefault((id(model.layer), model.taken), []).append(model)
    tensors: list[tuple[keras.KerasTensor, Ref]] = []
    nodes: list[tuple[Any, Call]] = []
    for model in program.unrolled:
        graph = _keras.functional_of(model.layer)
        if graph is None:
            continue
        pairs: list[tuple[Any, Any]] = list(zip(graph.inputs, model.inputs, strict=True))
        known = {id(tensor): leaf for tensor, leaf in pairs}
        for node in _keras.nodes_of(graph):
            given = refs_of([known.get(id(tensor)) for tensor in node.input_tensors])
            same = parts.get((id(node.operation), given))
            part = same.pop(0) if same else None
            if isinstance(part, Call):
                nodes.append((node, part))
            # A conversion that a functional copy needs makes no other tensor to the program.
            leaves = given if part is None else leaves_of(part.made)
            made = list(zip(node.outputs, leaves, strict=False))
            known.update((id(tensor), leaf) for tensor, leaf in made)
            pairs += made
        tensors += [(tensor, leaf) for tensor, leaf in pairs if isinstance(leaf, Ref)]
    return tensors, nodes
