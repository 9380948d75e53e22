"""Finds out by measuring whether compiling the train step with XLA pays for itself."""

from __future__ import annotations

import time
from typing import Any

import keras

from sgdap import _keras
from sgdap.model.tracing import trace


def choose_jit_compile(
    model: Any, inputs: Any, steps: int, compiles: int, *, batch_size: int = 128
) -> tuple[bool, str]:
    """Times gradients of the model on a batch with and without XLA.

    Args:
        model: A compiled model; its weights are not changed.
        inputs: Model inputs; the first batch is used.
        steps: Training steps that are left.
        compiles: How often the step will be compiled for new shapes.
        batch_size: Samples in a batch.

    Returns:
        Whether to use XLA, and why in words. Where the steps left take less than a minute without
        it, nothing is compiled.
    """
    import tensorflow as tf

    from sgdap.execution.data import batches

    if model.run_eagerly:
        return False, "the model runs eagerly"
    program = trace(model)
    batch_size = program.shapes[program.inputs[0].index][0] or batch_size
    x = next(iter(batches(inputs, batch_size, batch_size)))[0]
    x = keras.tree.map_structure(tf.convert_to_tensor, x)

    def gradients() -> Any:
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(model(x, training=False))
            loss = tf.add_n([tf.reduce_sum(tf.cast(y, tf.float32) ** 2) for y in outputs])
        found = tape.gradient(loss, model.trainable_weights)
        return [tf.convert_to_tensor(g) for g in found if g is not None]  # sparse ones too

    with _keras.recurrent_states_kept(model):
        plain = _seconds(tf.function(gradients))[1]
        if plain * steps < 60:
            return False, "the steps left are too few for a compile to pay"
        try:
            first, compiled = _seconds(tf.function(gradients, jit_compile=True))
        except Exception as error:  # an operation that XLA does not know
            return False, f"XLA can't compile this model: {type(error).__name__}"
    gain = (plain - compiled) * steps - first * compiles
    ratio = compiled / plain
    return gain > 0, f"a step with XLA takes {ratio:.2f} times as long, its compile {first:.1f}s"


def _seconds(function: Any, repeats: int = 5) -> tuple[float, float]:
    """Seconds of the first call and the fastest of some more, fewer where they take a second."""
    times: list[float] = []
    while len(times) < 2 or (len(times) <= repeats and sum(times[1:]) < 1):
        began = time.perf_counter()
        for gradient in function():
            gradient.numpy()
        times.append(time.perf_counter() - began)
    return times[0], min(times[1:])
