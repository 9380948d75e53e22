"""Measures whether compiling the train step with XLA saves time; never changes the model."""

from __future__ import annotations

import time
from typing import Any

import keras

from sgdap.model.program import Program


def choose_jit_compile(
    program: Program, inputs: Any, steps: int, compiles: int, *, batch_size: int = 128
) -> tuple[bool, str]:
    """Decides whether to use XLA, by timing the model's gradients on a batch with and without it.

    Args:
        program: The calls of a compiled model. Its weights are not changed.
        inputs: Model inputs, of which the first batch is used.
        steps: The number of training steps that are left.
        compiles: How often the step will be compiled for new shapes.
        batch_size: The number of samples in a batch.

    Returns:
        Whether to use XLA, and the reason in words. If the remaining steps take less than a minute
        without XLA, XLA is not tried.
    """
    import tensorflow as tf

    from sgdap.execution.data import batches

    model = program.model
    if model.run_eagerly:
        return False, "the model runs eagerly"
    batch_size = program.shapes[program.inputs[0].index][0] or batch_size
    x = next(iter(batches(inputs, batch_size, batch_size)))[0]
    x = keras.tree.map_structure(tf.convert_to_tensor, x)

    def gradients() -> Any:
        with tf.GradientTape() as tape:
            with keras.StatelessScope():  # no variable of the model changes
                outputs = keras.tree.flatten(model(x, training=False))
            loss = tf.add_n([tf.reduce_sum(tf.cast(y, tf.float32) ** 2) for y in outputs])
        found = tape.gradient(loss, model.trainable_weights)
        return [tf.convert_to_tensor(g) for g in found if g is not None]  # sparse ones too

    traced = tf.function(gradients).get_concrete_function()  # that a step is traced is no mistake
    plain = _seconds(traced, enough=60 / max(steps, 1))[1]
    if plain * steps < 60:
        return False, "the steps left are too few for a compile to pay"
    try:
        first, compiled = _seconds(tf.function(gradients, jit_compile=True))
    except Exception as error:  # XLA does not support some operation
        return False, f"XLA can't compile this model: {type(error).__name__}"
    gain = (plain - compiled) * steps - first * compiles
    ratio = compiled / plain
    return gain > 0, f"a step with XLA takes {ratio:.2f} times as long, its compile {first:.1f}s"


def _seconds(function: Any, repeats: int = 5, enough: float = 0.0) -> tuple[float, float]:
    """Seconds of the first call and of the fastest later one; slow functions are called less.

    Args:
        function: The function.
        repeats: The most later calls.
        enough: The seconds of a call, be it the first one, after which there is no other.
    """
    times: list[float] = []
    while len(times) < 2 or (len(times) <= repeats and sum(times[1:]) < 1):
        began = time.perf_counter()
        for gradient in function():
            gradient.numpy()
        times.append(time.perf_counter() - began)
        if times[-1] < enough:
            break
    return times[0], min(times[1:] or times)
