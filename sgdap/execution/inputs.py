"""Batches of data as the flat lists of tensors that a model's graph takes, checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sgdap.channels.counting import counted_on
from sgdap.channels.groups import ChannelGraph
from sgdap.execution.data import batches, first_sample
from sgdap.model.program import Program

BATCH_MOST = 1 << 30
"""Bytes that the tensors of one batch take at most, however much memory there is."""


def affordable_batch(graph: ChannelGraph, memory: int, gradients: bool = True) -> int:
    """How many samples a batch may have so that the tensors of a run fit.

    Args:
        graph: The model's channels.
        memory: Bytes for the tensors of one batch. More than a gigabyte is not used: larger
            batches are no faster.
        gradients: Whether gradients are taken: all tensors are there at once then, and as many
            gradients. Else a tensor goes when the last call has read it, so half of them count.

    Returns:
        The number of samples, at least 1.
    """
    numbers = sum(math.prod(n or 1 for n in shape[1:]) for shape in graph.counted.shapes)
    there = 2 * numbers if gradients else numbers / 2
    return max(int(min(memory, BATCH_MOST) / (4 * max(there, 1))), 1)


def check_calibration_data(graph: ChannelGraph, data: Any) -> None:
    """Raises if a model can't take the first batch of calibration data.

    Args:
        graph: The model's channels.
        data: Inputs as `collect_statistics` takes them, no iterator that can be read only once.

    Raises:
        ValueError: There is no sample, or it is not finite or of another shape than the model's
            inputs.
        TypeError: `data` is of an unknown kind.
    """
    for x, _, _ in batches(data, 32, 32):
        checked_inputs(graph.program, x)


def counted_on_data(graph: ChannelGraph, data: Any) -> ChannelGraph:
    """Counts a model's work on inputs of the size of the data's first batch.

    Args:
        graph: The model's channels.
        data: Inputs as `collect_statistics` takes them, no iterator that can be read only once.

    Returns:
        The same channels; see `counted_on`.

    Raises:
        ValueError: There is no sample, or it does not fit the model or is not finite.
        TypeError: `data` is of an unknown kind.
    """
    if not graph.open_inputs:
        return graph
    inputs = checked_inputs(graph.program, first_sample(data))
    return counted_on(graph, [tuple(tensor.shape) for tensor in inputs])


def input_batches(
    graph: ChannelGraph, data: Any, batch_size: int, samples: int | None, most: int
) -> Iterator[tuple[int, list[Any]]]:
    """Reads data in batches that a model takes, without their targets; see `labelled_batches`."""
    for number, inputs, _ in labelled_batches(graph, data, batch_size, samples, most):
        yield number, inputs


def labelled_batches(
    graph: ChannelGraph, data: Any, batch_size: int, samples: int | None, most: int
) -> Iterator[tuple[int, list[Any], Any]]:
    """Reads data in batches that a model takes.

    Args:
        graph: The model's channels.
        data: Inputs as `collect_statistics` takes them.
        batch_size: Samples in a batch, where `data` does not come in batches. A model built for a
            batch size of its own gets that, and what does not fill a batch is left out.
        samples: Stop after this many samples; None takes all.
        most: Batches of more samples are cut into several.

    Yields:
        The number of each batch, its flat list of input tensors, and its targets as they are given,
        or None.

    Raises:
        ValueError: Inputs do not fit the model or are not finite.
        TypeError: `data` is of an unknown kind.
    """
    fixed = graph.program.shapes[graph.program.inputs[0].index][0]
    size = fixed or min(batch_size, most)
    found = batches(data, size, samples, None if fixed else most)
    for number, (x, y, _) in enumerate(found):
        inputs = checked_inputs(graph.program, x)
        if fixed in (None, int(inputs[0].shape[0])):
            yield number, inputs, y


def checked_inputs(program: Program, x: Any) -> list[Any]:
    """Returns one batch of inputs as the flat list of tensors that a model's graph takes.

    Args:
        program: The calls of the model.
        x: The inputs, as `fit` takes them.

    Raises:
        ValueError: The inputs do not fit the model or are not finite.
    """
    x = keras.tree.map_structure(tf.convert_to_tensor, x)
    expected = [program.shapes[ref.index] for ref in program.inputs]
    received = [tuple(leaf.shape) for leaf in keras.tree.flatten(x)]
    try:
        flat = program.flat_inputs(x)
        shapes = [tuple(leaf.shape) for leaf in flat]
    except Exception:  # what Keras raises depends on the model's and the data's structure
        shapes = []
    if isinstance(x, (list, tuple)) and len(received) != len(expected):
        shapes = []  # Keras would drop those that are too many
    if len(shapes) != len(expected) or any(
        len(shape) != len(wanted)
        or any(w not in (None, s) for s, w in zip(shape[1:], wanted[1:], strict=True))
        for shape, wanted in zip(shapes, expected, strict=True)
    ):
        leaves = {leaf.dtype.name for leaf in keras.tree.flatten(x)}
        taken = {program.dtypes[ref.index] for ref in program.inputs}
        if "string" in leaves - taken:
            raise ValueError(
                f"The calibration data are strings, and model '{program.model.name}' is read as "
                f"one of {', '.join(sorted(taken))}: Keras does not tell what a `call` of your own "
                "takes. Build it as a functional model, keras.Model(inputs, outputs) with "
                "keras.Input(shape, dtype='string'), or leave TextVectorization and the like to "
                "the data."
            )
        kind = f"a {type(x).__name__}" if isinstance(x, (dict, list, tuple)) else "one tensor"
        kind += f" of {', '.join(sorted(leaves))}"
        single = len(received) == len(expected) and all(
            len(shape) == len(wanted) - 1 for shape, wanted in zip(received, expected, strict=True)
        )
        raise ValueError(
            f"The calibration data do not fit model '{program.model.name}', which takes "
            f"{_listed(expected)}. Received: {_listed(received)}, as {kind}. Pass inputs as for "
            "fit; a tuple is read as (inputs, targets), a list as one of several inputs."
            + (" Samples must come in batches: dataset.batch(32), or x[None]." if single else "")
        )
    for leaf in flat:
        if leaf.dtype.is_floating and not np.isfinite(leaf.numpy()).all():
            raise ValueError(
                "The calibration data are not finite: they hold NaN or infinity. Take these "
                "samples out or fill in the missing values, as for training."
            )
    return flat


def _listed(shapes: Sequence[Any]) -> str:
    names = ", ".join(map(str, shapes))
    return f"an input of shape {names}" if len(shapes) == 1 else f"inputs of shapes {names}"
