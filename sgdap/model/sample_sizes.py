"""How much of each tensor of a program belongs to one sample; runs nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

from sgdap.model.leaves import leaf_class
from sgdap.model.open_sizes import output_spec
from sgdap.model.program import Call, Program, Shape, leaves_of, symbolic_fill

Sizes = tuple[float, ...]
"""The size of each axis of a tensor."""


def sizes_of_a_sample(program: Program) -> list[Sizes]:
    """The sizes that tensors have for each sample of a batch.

    An operation may fold other axes into the first one, or move it elsewhere. So each is told
    sizes for a batch of one sample and of two: what grows with the batch belongs to the samples,
    and as much as it grows to each. Other sizes that the model leaves open count as 1.

    Args:
        program: The model's calls.

    Returns:
        The sizes of each tensor, by its number.
    """
    batch = fixed_batch(program)
    if batch is not None:
        return [(*(size / batch for size in _known(s[:1])), *_known(s[1:])) for s in program.shapes]
    one, two = ([_known(shape) for shape in program.shapes] for _ in range(2))
    for ref in program.inputs:
        two[ref.index] = (2, *two[ref.index][1:])
    for call in program.calls:
        before = [_of_outputs(call, program, sizes) for sizes in (one, two)]
        for ref, *both in zip(call.outputs, *before, strict=True):
            axes = list(zip(program.shapes[ref.index], *both, strict=True))
            grows = [known is None and first < second for known, first, second in axes]
            for sizes, own in zip((one, two), both, strict=True):
                whole = zip(sizes[ref.index], own, grows, strict=True)
                sizes[ref.index] = tuple(new if grown else old for old, new, grown in whole)
    return [
        tuple(second - first or first for first, second in zip(*both, strict=True))
        for both in zip(one, two, strict=True)
    ]


def fixed_batch(program: Program) -> int | None:
    """The number of samples of a model that takes no other number; None where it does."""
    return next((s[0] for ref in program.inputs if (s := program.shapes[ref.index])), None)


def repeats(call: Call, program: Program, sizes: Sequence[Sizes]) -> float:
    """How often a call does for one sample what the shapes of its inputs tell.

    A layer does it for each index of the first axis. An operation does it for all axes.

    Args:
        call: The call.
        program: The calls of the model.
        sizes: The sizes that tensors have for each sample.
    """
    begin = 1 if isinstance(call.operation, keras.Layer) else 0
    found = [
        math.prod(sizes[ref.index]) / math.prod(_known(program.shapes[ref.index][begin:]))
        for ref in call.inputs
    ]
    return (found[0] if begin else max(found)) if found else 1.0


def _known(shape: Shape) -> tuple[int, ...]:
    return tuple(size or 1 for size in shape)


def _of_outputs(call: Call, program: Program, sizes: Sequence[Sizes]) -> list[Sizes]:
    """The sizes of a call's outputs for those of its inputs."""
    if leaf_class(call.operation) is None or not isinstance(call.operation, keras.Layer):
        arguments = symbolic_fill(call, sizes, program.dtypes)
        try:
            specs = leaves_of(output_spec(call.operation, *arguments))
            made = [tuple(spec.shape) for spec in specs]
            if [len(s) for s in made] == [len(program.shapes[r.index]) for r in call.outputs]:
                return [_known(shape) for shape in made]
        except Exception:  # it takes no tensors of these sizes
            pass
    # A layer makes as many rows as it is given.
    rows = next((sizes[ref.index][:1] for ref in call.inputs), ())
    return [(*rows, *sizes[ref.index][1:])[: len(sizes[ref.index])] for ref in call.outputs]
