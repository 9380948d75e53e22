"""Holds weights of a model at zero in every train step, and watches the gradients of all others.

It never chooses which weights, and leaves a plain model behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap import _keras
from sgdap._keras.optimizers import (
    inner_optimizers,
    keeps_weights_apart,
    moving_averages,
    optimizer_parts,
    optimizer_variables,
    optimizers_of,
)
from sgdap.model.kernels import not_zero
from sgdap.surgery.train_step import put_around_train_step, take_from_train_step
from sgdap.training.replicas import assign_add, on_each_device
from sgdap.weights.kernels import Kernel

Masks = Mapping[str, npt.NDArray[np.bool_]]

Watch = Callable[[Any, Any], Any]
"""What is watched of a weight in a train step, from its value and its gradient."""


class Masking:
    """Masks weights of a model in each step of its `fit`, under any optimizer.

    After each step the weights are set to zero, and their moving averages too, so momentum from
    before they left can't bring them back. Where an optimizer lets weights act on each other, the
    gradients of masked weights are zero before it sees them, so that its clipping, norms and
    factored slots are those of a model without these weights.
    The masks are variables of TensorFlow, on the devices of the model and no part of it. To change
    them compiles nothing anew.

    Args:
        model: The compiled model.
        kernels: The variables with masks. At first, all their weights stay.
        watch: What to sum up over the steps; None: nothing.
    """

    def __init__(self, model: Any, kernels: Sequence[Kernel], watch: Watch | None = None) -> None:
        self._model, self._watch = model, watch
        self._own: list[tuple[Any, Any, Any]] = []
        self._running = 0
        with _keras.scope_of(model):
            self._steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.follow(kernels)

    @property
    def masks(self) -> dict[str, npt.NDArray[np.bool_]]:
        """The masks by path, True for weights that stay."""
        return {path: mask.numpy() != 0 for path, mask in self._masks.items()}

    def follow(self, kernels: Sequence[Kernel]) -> None:
        """Begins anew with the variables that the kernels have now; all their weights stay.

        Keras must make the train function anew, as it does when a model's variables are others.
        """
        self._kernels = kernels
        with _keras.scope_of(self._model):
            self._masks = {
                k.path: tf.Variable(tf.ones(k.shape, k.variable.dtype), trainable=False)
                for k in kernels
            }
            self._sums = {
                k.path: tf.Variable(tf.zeros(k.shape), trainable=False)
                for k in kernels
                if self._watch is not None
            }

    def hold_zeros(self) -> None:
        """Masks the weights that are zero now, but for variables that are zero as a whole."""
        for kernel in self._kernels:
            mask = self._masks[kernel.path]
            mask.assign(not_zero(kernel.variable).astype(mask.dtype.as_numpy_dtype))

    def install(self) -> None:
        """Begins to hold the masks in the model's train step."""
        put_around_train_step(self._model, self._masked)

    def remove(self) -> None:
        """Gives the model its own train step back. The weights stay as they are."""
        take_from_train_step(self._model, self._masked)

    def set(self, masks: Masks) -> None:
        """Sets other masks, and the weights that leave to zero.

        Args:
            masks: The masks by path, True for weights that stay.
        """
        for path, mask in masks.items():
            self._masks[path].assign(mask.astype(self._masks[path].dtype.as_numpy_dtype))
        self.zero()

    def zero(self) -> None:
        """Sets all masked weights, and their moving averages, to zero."""
        for variable, path in self._held():
            variable.assign(_times(self._masks[path].numpy(), variable.numpy()))

    # What is watched

    def means(self) -> dict[str, npt.NDArray[np.float64]]:
        """The mean over the steps of what is watched, by path; 0 before the first step."""
        steps = max(int(self._steps.numpy()), 1)
        return {path: sums.numpy().astype(float) / steps for path, sums in self._sums.items()}

    def forget(self) -> None:
        """Begins to watch anew."""
        for variable in (*self._sums.values(), self._steps):
            variable.assign(tf.zeros_like(variable))

    def state(self) -> dict[str, Any] | None:
        """What was watched so far; None if nothing is."""
        if self._watch is None:
            return None
        return {
            "steps": int(self._steps.numpy()),
            "sums": {path: sums.numpy() for path, sums in self._sums.items()},
        }

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from what another one has watched."""
        if state is not None:
            self._steps.assign(state["steps"])
            for path, sums in state["sums"].items():
                self._sums[path].assign(sums)

    # The train step

    def _masked(self, step: Callable[[Any], Any], data: Any) -> Any:
        with self._seeing_gradients():
            logs = step(data)
        held = self._held()  # an optimizer may have been built in the step
        on_each_device(_set_to_zero, [v.value for v, _ in held], [self._masks[p] for _, p in held])
        if self._watch is not None:
            on_each_device(assign_add, [self._steps], [tf.ones((), tf.int64)])
        return logs

    def _held(self) -> list[tuple[Any, str]]:
        """The variables and moving averages that are masked, and the path of their mask."""
        paths = {id(kernel.variable): kernel.path for kernel in self._kernels}
        averages = [
            (average, paths[id(variable)])
            for optimizer in optimizers_of(self._model)
            for part in optimizer_parts(optimizer)
            for variable, average in moving_averages(part)
            if id(variable) in paths
        ]
        return [*((kernel.variable, kernel.path) for kernel in self._kernels), *averages]

    @contextmanager
    def _seeing_gradients(self) -> Iterator[None]:
        """Within, the optimizers of the model get masked gradients.

        Replicas are traced in threads of their own, one inside the step of another.
        """
        if not self._running:
            self._own = [
                (part, vars(part).get("apply"), self._around(part, part.apply))
                for optimizer in optimizers_of(self._model)
                for part in optimizer_parts(optimizer)
                if not inner_optimizers(part)
            ]
        self._running += 1
        try:
            for part, _, around in self._own:
                part.apply = around
            yield
        finally:
            self._running -= 1
            if not self._running:
                for part, held, _ in self._own:
                    del part.apply
                    if held is not None:
                        part.apply = held

    def _around(self, optimizer: Any, apply: Callable[..., Any]) -> Callable[..., Any]:
        """What stands in the place of an optimizer's `apply`."""
        paths = {id(kernel.variable): kernel.path for kernel in self._kernels}

        def around(grads: Any, trainable_variables: Any = None) -> Any:
            grads = list(grads)
            given = trainable_variables
            variables = optimizer_variables(optimizer) if given is None else list(given)
            found = [
                (number, paths[id(variable)])
                for number, variable in enumerate(variables)
                if id(variable) in paths and grads[number] is not None
            ]
            if self._watch is not None and found:
                self._note([(variables[i], path, grads[i]) for i, path in found], optimizer)
            for number, path in [] if keeps_weights_apart(optimizer) else found:
                grads[number] = _masked_gradient(grads[number], self._masks[path])
            return apply(grads, variables if given is not None else None)

        return around

    def _note(self, found: Sequence[tuple[Any, str, Any]], optimizer: Any) -> None:
        """Adds what is watched of some variables to the sums."""
        assert self._watch is not None
        gradients = [tf.convert_to_tensor(gradient) for _, _, gradient in found]
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        scale = optimizer.loss_scale_factor or 1.0
        watched = [
            tf.cast(self._watch(tf.convert_to_tensor(v.value), gradient / scale), tf.float32)
            for (v, _, _), gradient in zip(found, gradients, strict=True)
        ]
        on_each_device(assign_add, [self._sums[path] for _, path, _ in found], watched)


def _masked_gradient(gradient: Any, mask: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):  # of some rows
        rows = _times(tf.gather(mask, gradient.indices), gradient.values)
        return tf.IndexedSlices(rows, gradient.indices, gradient.dense_shape)
    return _times(mask, gradient)


def _times(mask: Any, value: Any) -> Any:
    """0 where the mask is 0; a plain product would keep NaN and -0 there."""
    return tf.math.multiply_no_nan(value, tf.cast(mask, value.dtype))


def _set_to_zero(variable: Any, mask: Any) -> None:
    variable.assign(_times(mask, variable))
