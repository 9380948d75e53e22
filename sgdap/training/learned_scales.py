"""Learns the scales of lattices with the weights that lie on them; assigns no weight."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from sgdap import _keras
from sgdap._keras.optimizers import optimizer_parts, optimizer_variables, optimizers_of
from sgdap.distillation.instead import Instead
from sgdap.quantization.kernels import QuantizedKernel
from sgdap.quantization.lattice import DIGITS
from sgdap.quantization.schemes import Affine, Binary, Ternary
from sgdap.training.replicas import assign, on_each_device

FASTEST = 1e-3
"""The most that a step changes a scale by, as a share of it."""

_FIRST, _SECOND, _LEAST = 0.9, 0.999, 1e-12
"""The decays and the epsilon of Adam, the last as small as gradients of scales are."""


def check_can_be_learned(kernels: Sequence[QuantizedKernel]) -> None:
    """Raises if a lattice has no scale to be learned.

    Raises:
        ValueError: It is one of levels, of powers of two, or with a zero point.
    """
    for kernel in kernels:
        scheme = kernel.scheme
        learned = isinstance(scheme, (Affine, Binary, Ternary)) and scheme.adapts
        if not learned or (isinstance(scheme, Affine) and not scheme.symmetric):
            raise ValueError(
                "learned_scales=True is for symmetric integers, binary and ternary weights whose "
                f"scales may be any number. Received: {scheme} for '{kernel.path}'. Give "
                f"that layer another scheme by overrides, or leave learned_scales out."
            )


def scale_gradient(gradient: Any, value: Any, scale: Any, base: Any, units: Any) -> Any:
    """The derivative of a loss by the scales of lattices (Esser et al. 2020, arXiv 1902.08153).

    A level `s q(w / s)` has the derivative `q(w / s) − w / s` by s, as if rounding had the
    derivative 1, and `q(w / s)` where w is beyond the outer levels (equation 3). The sum over a
    unit is divided by `√(N Q)`, N its weights and Q its outer level (section 2.2).

    Args:
        gradient: The derivative by the levels, in the shape of the kernel.
        value: The full numbers w, likewise.
        scale: `(units,)`.
        base: The levels q for the scale 1, ascending, `(levels,)`.
        units: The unit of each weight, in the shape of the kernel.

    Returns:
        `(units,)`, in the type of `scale`.
    """
    count = tf.shape(scale)[0]
    apart = tf.cast(value, scale.dtype) / tf.gather(tf.where(scale > 0, scale, 1.0), units)
    middles = (base[1:] + base[:-1]) / 2
    codes = tf.searchsorted(middles, tf.reshape(apart, [-1]), side="right")
    level = tf.gather(base, tf.reshape(codes, tf.shape(apart)))
    within = (apart >= base[0]) & (apart <= base[-1])
    each = tf.cast(gradient, scale.dtype) * tf.where(within, level - apart, level)
    flat, of = tf.reshape(each, [-1]), tf.reshape(units, [-1])
    size = tf.math.unsorted_segment_sum(tf.ones_like(flat), of, count)
    total = tf.math.unsorted_segment_sum(flat, of, count)
    return total / tf.sqrt(tf.maximum(size, 1.0) * base[-1])


class LearnedScales:
    """Moves the scales of lattices downhill, in each step of a `fit`, by Adam in their logarithm.

    A step changes a scale by a share of it, at most as large as the learning rate of the optimizer
    that moves its weights, and not above `FASTEST`; no scale changes its sign. So neither
    the unit of the loss nor the division in `scale_gradient` matters.

    Args:
        model: The compiled model.
        kernels: The kernels.
        full: The variables with the full numbers behind them, by path.
        held: By path, the variables of their scales, `(units,)`, and of their levels for the scale
            1, the unit of each weight, and the weights that stay zero.
    """

    def __init__(
        self,
        model: Any,
        kernels: Sequence[QuantizedKernel],
        full: Mapping[str, Any],
        held: Mapping[str, tuple[Any, Any, Any, Any]],
    ) -> None:
        self._full, self._held = full, held
        self._paths = {id(kernel.variable): kernel.path for kernel in kernels}
        with _keras.scope_of(model):
            self._steps = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self._own = {
                path: tuple(tf.Variable(value, trainable=False) for value in values)
                for path, values in (
                    (path, (scale.numpy(), *np.zeros((2, *scale.shape))))
                    for path, (scale, *_) in held.items()
                )
            }
        self._here = threading.local()
        self._instead = Instead(
            [(own, "apply", partial(self._applied, own)) for own in optimizers_of(model)]
        )

    def begin(self, path: str) -> None:
        """Takes the scales of a kernel as they are now."""
        self._own[path][0].assign(self._held[path][0])

    def state(self) -> dict[str, Any]:
        """The scales before rounding, and what Adam remembers of them, for a backup."""
        own = {path: [held.numpy() for held in variables] for path, variables in self._own.items()}
        return {"steps": float(self._steps.numpy()), "own": own}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from the state of another one."""
        self._steps.assign(state["steps"])
        for path, values in state["own"].items():
            for variable, value in zip(self._own[path], values, strict=True):
                variable.assign(value)

    @contextmanager
    def seeing(self) -> Iterator[None]:
        """Within, the gradients that optimizers get are kept."""
        self._here.found = {}
        with self._instead.running():
            yield

    def _applied(
        self, optimizer: Any, apply: Callable[..., Any], /, grads: Any, *args: Any, **kwargs: Any
    ) -> Any:
        grads = list(grads)
        given = args[0] if args else kwargs.get("trainable_variables")
        variables = optimizer_variables(optimizer) if given is None else list(given)
        rate = optimizer_parts(optimizer)[-1].learning_rate
        for variable, gradient in zip(variables, grads, strict=True):
            path = self._paths.get(id(variable))
            if path is not None and gradient is not None:
                own = tf.convert_to_tensor(gradient) / _scale_of(optimizer, gradient.dtype)
                self._here.found[path] = own, tf.cast(rate, tf.float64)
        if args:
            return apply(grads, variables, *args[1:], **kwargs)
        return apply(grads, **kwargs)

    def move(self) -> None:
        """Moves the scales by the gradients that were kept in a step."""
        found, self._here.found = self._here.found, {}
        if not found:
            return
        replica, steps = tf.distribute.get_replica_context(), tf.convert_to_tensor(self._steps) + 1
        changed, values = [self._steps], [steps]
        for path, (gradient, rate) in found.items():
            variable, base, units, zeros = self._held[path]
            zero = tf.convert_to_tensor(zeros)
            gradient = tf.where(zero, tf.zeros_like(gradient), gradient)
            full, free, first, second = map(
                tf.convert_to_tensor, (self._full[path], *self._own[path])
            )
            scale = tf.convert_to_tensor(variable)
            slope = scale_gradient(gradient, full, scale, tf.convert_to_tensor(base), units)
            if replica.num_replicas_in_sync > 1:
                slope = replica.all_reduce(tf.distribute.ReduceOp.SUM, slope)
            slope = tf.where(tf.math.is_finite(slope), slope * scale, 0.0)
            first = _FIRST * first + (1 - _FIRST) * slope
            second = _SECOND * second + (1 - _SECOND) * slope**2
            mean, square = first / (1 - _FIRST**steps), second / (1 - _SECOND**steps)
            free *= tf.exp(-tf.minimum(rate, FASTEST) * mean / (tf.sqrt(square) + _LEAST))
            changed += [variable, *self._own[path]]
            values += [_stored(free), free, first, second]
        on_each_device(assign, changed, values)


def _scale_of(optimizer: Any, dtype: Any) -> Any:
    """What the loss was multiplied by."""
    return tf.cast(optimizer.scale_loss(tf.ones(())), dtype)


def _stored(scale: Any) -> Any:
    """Scales of float64 with so many significant bits as are stored, rounded."""
    dropped = 53 - DIGITS
    bits = tf.bitcast(scale, tf.int64) + 2 ** (dropped - 1)
    return tf.bitcast(tf.bitwise.bitwise_and(bits, -(2**dropped)), tf.float64)
