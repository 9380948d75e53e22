"""Traces a function over batches once for each shape of a sample, however many a batch holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from sgdap.model.program import Shape


def traced_for_any_batch(shapes: Sequence[Shape], step: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a step over a batch.

    Args:
        shapes: Symbolic shapes of the batch's tensors, of which the first axis counts.
        step: A function of the flat list of these tensors and of other (nested) tensors, whose
            shapes never change.

    Returns:
        The same function, traced with the batch axis left open where the model leaves it open; it
        runs eagerly where all of TensorFlow's functions do.
    """
    compiled = tf.function(step, autograph=False)
    traced: dict[Any, Any] = {}

    def run(x: list[Any], *others: Any) -> Any:
        if tf.config.functions_run_eagerly():
            return compiled(x, *others)
        specs = [
            tf.TensorSpec([*shape[:1], *leaf.shape[1:]], leaf.dtype)
            for shape, leaf in zip(shapes, x, strict=True)
        ]
        key = tuple((tuple(spec.shape), spec.dtype) for spec in specs)
        if key not in traced:
            rest = keras.tree.map_structure(tf.TensorSpec.from_tensor, others)
            traced[key] = compiled.get_concrete_function(specs, *rest)
        return traced[key](x, *others)

    return run
