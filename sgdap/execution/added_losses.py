"""What errors count in the losses that layers add to the model's with `add_loss`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from sgdap import _keras
from sgdap.execution.curvature import STEP, drawn_loss, drawn_squared, secant_curvature
from sgdap.execution.losses import KnownLoss
from sgdap.model.program import Call, Program, Ref, fill, inference_arguments, leaves_of


class DrawnLoss:
    """Draws what errors of a model count while it runs: its outputs' losses, and those it adds.

    Args:
        program: The model's calls.
        losses: What errors of its outputs count.
        seed: Two integers (int32 tensor). Each term draws for itself, so that their products cancel
            out.
    """

    def __init__(self, program: Program, losses: Sequence[KnownLoss], seed: Any) -> None:
        self._program, self._losses, self._seed = program, losses, seed
        self._of_losses = [program.calls[number] for number in program.operations_of_losses()]
        self._read: dict[Ref, Any] = {}
        self._added: list[Any] = []

    def see(self, call: Call, inputs: list[Any]) -> None:
        """Takes note of a call that was just made, and of the tensors that it took, flattened."""
        if call in self._of_losses:
            self._read.update(zip(call.inputs, inputs, strict=True))
        else:
            self._add(drawn_added_loss, call, inputs)

    def total(self, predictions: Sequence[Any]) -> Any:
        """A scalar whose gradient has the curvature of all terms, when all calls were seen.

        Args:
            predictions: The model's outputs, flattened.
        """
        self._add(drawn_losses_of_operations, self._program, self._read)
        drawn = [
            drawn_loss(loss, predictions[loss.output], self._seed_of(number))
            for number, loss in enumerate(self._losses)
        ]
        return tf.add_n([*drawn, *self._added])

    def _add(self, draw: Callable[..., Any], *what: Any) -> None:
        own = draw(*what, self._seed_of(len(self._losses) + len(self._added)))
        self._added.extend([] if own is None else [own])

    def _seed_of(self, number: int) -> Any:
        fold = tf.random.experimental.stateless_fold_in
        return fold(self._seed, number) if number else self._seed


def drawn_added_loss(call: Call, inputs: list[Any], seed: Any) -> Any | None:
    """Draws what a call has just added to the loss, as a squared error of what it read.

    The curvature is measured for each entry of the last axis, over steps of `STEP` standard
    deviations in the batch. It is that of the batch, as in training on batches of this size.

    Args:
        call: A call that was just made.
        inputs: The tensors that it took, flattened.
        seed: Two integers.

    Returns:
        A scalar whose gradient g at the inputs has the curvature as `E[g gᵀ]`, summed over the
        batch; None where the call added nothing.
    """
    if not isinstance(call.operation, keras.layers.Layer):
        return None
    if not _keras.added_losses(call.operation):
        return None
    return _drawn(lambda taken: _added(call, taken), inputs, seed)


def drawn_losses_of_operations(
    program: Program, values: Mapping[Ref, Any], seed: Any
) -> Any | None:
    """Draws the losses that operations in the user's own code make, as `drawn_added_loss` does.

    Args:
        program: The model's calls.
        values: The tensors that the `operations_of_losses` took.
        seed: Two integers.

    Returns:
        A scalar as that of `drawn_added_loss`; None where operations make no loss.
    """
    calls = [program.calls[number] for number in program.operations_of_losses()]
    made = {ref for call in calls for ref in call.outputs}
    read = [ref for ref in values if ref not in made]

    def added(taken: list[Any]) -> Any:
        now = {ref.index: tensor for ref, tensor in zip(read, taken, strict=True)}
        for call in calls:
            args, kwargs = fill(call, now)
            results = leaves_of(call.operation(*args, **kwargs))
            now.update(zip((ref.index for ref in call.outputs), results, strict=True))
        return _sum([now[ref.index] for ref in program.losses if ref in made])

    return _drawn(added, [values[ref] for ref in read], seed)


def _drawn(function: Callable[[list[Any]], Any], inputs: list[Any], seed: Any) -> Any | None:
    """Draws a function's squared errors from its curvature at each of its inputs."""
    drawn = []
    for number, x in enumerate(inputs):
        if not x.dtype.is_floating:
            continue
        fixed = [tf.stop_gradient(own) for own in inputs]
        own_seed = tf.random.experimental.stateless_fold_in(seed, number)

        def added(moved: Any, number: int = number, fixed: list[Any] = fixed) -> Any:
            taken = [*fixed[:number], tf.cast(moved, fixed[number].dtype), *fixed[number + 1 :]]
            return function(taken)

        at = tf.cast(fixed[number], tf.float32)
        curvature = secant_curvature(added, at, _step(at), own_seed)
        weight = tf.reduce_mean(_entries(curvature), 0) / 2
        weight = tf.where(tf.math.is_finite(weight), tf.maximum(weight, 0), 0)
        weight = tf.stop_gradient(weight)
        drawn.append(drawn_squared(_entries(tf.cast(x, tf.float32)), own_seed, weight))
    return tf.add_n(drawn) if drawn else None


def _added(call: Call, inputs: list[Any]) -> Any:
    values = dict(zip((ref.index for ref in call.inputs), inputs, strict=True))
    args, kwargs = inference_arguments(call, values)
    call.operation(*args, **kwargs)
    return _sum(_keras.added_losses(call.operation))


def _sum(terms: list[Any]) -> Any:
    return tf.add_n([tf.reduce_sum(tf.cast(own, tf.float32)) for own in terms])


def _entries(x: Any) -> Any:
    return tf.reshape(x, [-1, x.shape[-1] if x.shape.rank > 1 else 1])


def _step(x: Any) -> Any:
    """`STEP` standard deviations of each entry, of all where one never changes."""
    rows = _entries(x)
    variance, square = tf.math.reduce_variance(rows, 0), tf.reduce_mean(rows**2)
    power = tf.reduce_mean(variance)
    power = tf.where(power > 1e-12 * square, power, tf.where(square > 0, square, 1.0))
    step = STEP * tf.sqrt(tf.where(variance > 1e-12 * power, variance, power))
    return step if x.shape.rank > 1 else step[0]
