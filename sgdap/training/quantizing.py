"""Holds kernels on their lattices in the train step, while full numbers move behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap import _keras
from sgdap.model.kernels import not_zero
from sgdap.quantization.base import Scalar
from sgdap.quantization.kernels import QuantizedKernel
from sgdap.quantization.lattice import Lattice
from sgdap.surgery.train_step import put_around_train_step, take_from_train_step
from sgdap.training.replicas import assign, assign_add, on_each_device

Array = npt.NDArray[np.float64]


class Quantizing:
    """Trains a model whose kernels lie on lattices, in each step of its `fit`.

    Between two steps a kernel holds the level that is nearest to its full number, which is kept
    beside the model. In a step gradients are those of the levels; what the optimizer adds to a
    level is added to the full number, as if rounding had the derivative 1, and the kernel takes the
    nearest level again. With noise, full numbers stay in the model, and each step sees them with
    the noise that rounding would make: normal numbers of a twelfth of the step's square.

    Args:
        model: The compiled model.
        kernels: The kernels; weights that are zero now stay zero where 0 is a level.
        noise: Whether noise takes the place of rounding.
        seed: Seed of the noise.
    """

    def __init__(
        self, model: Any, kernels: Sequence[QuantizedKernel], noise: bool = False, seed: int = 0
    ) -> None:
        self._model, self._kernels = model, kernels
        self._noise, self._seed = noise, seed
        with _keras.scope_of(model):
            self._full = {k.path: _beside(k.variable) for k in kernels}
            self._steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._zeros = {k.path: ~not_zero(k.variable) for k in kernels}
        self._held: dict[str, _Held] = {}
        self.refit()

    @property
    def full(self) -> Mapping[str, npt.NDArray[Any]]:
        """The full numbers behind the kernels, by path."""
        return {path: variable.numpy() for path, variable in self._full.items()}

    def refit(self) -> None:
        """Gives each kernel the lattice that suits its full numbers now.

        Kernels that somebody else has set since the last step, as a callback that restores weights
        does, are taken as they are.
        """
        for kernel in self._kernels:
            value, full = kernel.variable.numpy(), self._full[kernel.path]
            held = self._held.get(kernel.path)
            if self._noise or held is None or not held.holds(value):
                full.assign(value)
            scheme = kernel.scheme
            assert isinstance(scheme, Scalar)
            lattice = scheme.lattice(kernel.matrix(full.numpy().astype(np.float64)))
            if held is None:
                with _keras.scope_of(self._model):
                    held = _Held(kernel, lattice, self._zeros[kernel.path])
                self._held[kernel.path] = held
            held.set(lattice)
            if not self._noise:
                held.value = held.nearest(tf.constant(full.numpy())).numpy()
                kernel.variable.assign(held.value)

    def note(self) -> None:
        """Remembers what the kernels hold after the steps of an epoch."""
        for kernel in self._kernels:
            self._held[kernel.path].value = kernel.variable.numpy()

    def finish(self) -> None:
        """Puts kernels that somebody else has set on the lattice that suits them."""
        for kernel in () if self._noise else self._kernels:
            value = kernel.variable.numpy()
            if not self._held[kernel.path].holds(value):
                matrix = kernel.matrix(value.astype(np.float64))
                made = kernel.whole(kernel.scheme.quantize(matrix).dequantize())
                kernel.variable.assign(np.where(self._held[kernel.path].zeros, 0, made))

    def install(self) -> None:
        """Begins to hold the kernels in the model's train step."""
        put_around_train_step(self._model, self._quantized)

    def remove(self) -> None:
        """Gives the model its own train step back. The weights stay as they are."""
        take_from_train_step(self._model, self._quantized)

    def _quantized(self, step: Callable[[Any], Any], data: Any) -> Any:
        kernels = self._kernels
        variables = [kernel.variable.value for kernel in kernels]
        full = [self._full[kernel.path] for kernel in kernels]
        if self._noise:
            on_each_device(assign, full, [tf.identity(v) for v in variables])
            on_each_device(assign, variables, [self._noisy(kernel) for kernel in kernels])
        seen = [tf.identity(variable) for variable in variables]
        logs = step(data)
        moved = [tf.convert_to_tensor(v) - s for v, s in zip(variables, seen, strict=True)]
        new = [tf.convert_to_tensor(f) + m for f, m in zip(full, moved, strict=True)]
        if self._noise:
            on_each_device(assign, variables, new)
            on_each_device(assign_add, [self._steps], [tf.ones((), tf.int64)])
        else:
            on_each_device(assign, full, new)
            held = [self._held[kernel.path] for kernel in kernels]
            levels = [own.nearest(value) for own, value in zip(held, new, strict=True)]
            on_each_device(assign, variables, levels)
        return logs

    def _noisy(self, kernel: QuantizedKernel) -> Any:
        value = tf.convert_to_tensor(kernel.variable.value)
        seeds = tf.stack([tf.cast(self._seed, tf.int64), tf.convert_to_tensor(self._steps)])
        seeds += tf.constant([0, 1_000_003], tf.int64) * self._kernels.index(kernel)
        drawn = tf.random.stateless_normal(value.shape, seeds, dtype=tf.float64)
        return value + tf.cast(drawn * self._held[kernel.path].deviation, value.dtype)


class _Held:
    """The lattice of a kernel as TensorFlow reads it; its numbers may change without compiling.

    Args:
        kernel: The kernel.
        lattice: Its lattice.
        zeros: The weights that stay zero where 0 is a level.

    Attributes:
        value: What the kernel holds.
        zeros: The weights that stay zero.
    """

    def __init__(
        self, kernel: QuantizedKernel, lattice: Lattice, zeros: npt.NDArray[np.bool_]
    ) -> None:
        self._common = lattice.base.ndim == 1
        self._units = tf.constant(kernel.whole(lattice.units), tf.int32)
        self._base, self._scale, self._zero = (
            tf.Variable(own, dtype=tf.float64, trainable=False)
            for own in (lattice.base, lattice.scale, lattice.zero)
        )
        self._deviation = tf.Variable(np.zeros(len(lattice.scale)), trainable=False)
        self.zeros = zeros if lattice.zeros() is not None else np.zeros_like(zeros)
        self.value: npt.NDArray[Any] | None = None

    def holds(self, value: npt.NDArray[Any]) -> bool:
        """Whether a kernel's value is the one that was noted."""
        return self.value is not None and np.array_equal(value, self.value)

    def set(self, lattice: Lattice) -> None:
        """Takes the numbers of another lattice of the same scheme."""
        for own, new in zip(
            (self._base, self._scale, self._zero),
            (lattice.base, lattice.scale, lattice.zero),
            strict=True,
        ):
            own.assign(new)
        base = np.broadcast_to(lattice.base, (len(lattice.scale), lattice.base.shape[-1]))
        steps = np.diff(base, axis=1)
        self._deviation.assign(lattice.scale * np.sqrt((steps**2).mean(axis=1) / 12))

    @property
    def deviation(self) -> Any:
        """The standard deviation of what rounding changes, in the kernel's shape, float64."""
        return tf.gather(tf.convert_to_tensor(self._deviation), self._units)

    def nearest(self, value: Any) -> Any:
        """The nearest levels of full numbers, as `Lattice.nearest` finds them, to the bit."""
        base, scale, zero = map(tf.convert_to_tensor, (self._base, self._scale, self._zero))
        own, zeros = tf.gather(scale, self._units), tf.gather(zero, self._units)
        apart = tf.cast(value, tf.float64) / tf.where(own > 0, own, tf.ones_like(own)) + zeros
        middles = (base[..., 1:] + base[..., :-1]) / 2
        if self._common:
            flat = tf.searchsorted(middles, tf.reshape(apart, [-1]), side="right")
            found = tf.gather(base, tf.reshape(flat, tf.shape(apart)))
        else:
            codes = tf.zeros_like(self._units)
            for level in range(middles.shape[1]):
                above = apart >= tf.gather(middles[:, level], self._units)
                codes += tf.cast(above, codes.dtype)
            found = tf.gather_nd(base, tf.stack([self._units, codes], axis=-1))
        made = tf.cast(own * (found - zeros), value.dtype)
        return tf.where(self.zeros, tf.zeros_like(made), made)


def _beside(variable: Any) -> Any:
    return tf.Variable(tf.convert_to_tensor(variable.value), trainable=False)
