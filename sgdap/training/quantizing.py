"""Holds kernels on their lattices in the train step, while full numbers move behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap import _keras
from sgdap.model.kernels import not_zero
from sgdap.quantization.constellation import Constellation, paired
from sgdap.quantization.kernels import QuantizedKernel
from sgdap.quantization.lattice import Lattice
from sgdap.surgery.train_step import put_around_train_step, take_from_train_step
from sgdap.training.learned_scales import LearnedScales
from sgdap.training.replicas import assign, assign_add, on_each_device

Array = npt.NDArray[np.float64]

Zeros = Mapping[str, npt.NDArray[np.bool_]]
"""By the path of a kernel, True where a weight stays zero."""


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
        learned: Whether scales are learned, and not fitted to the full numbers.
        zeros: By path, the weights that stay zero where 0 is a level; None: those that are zero
            now.
        state: What `state` gave of one that goes on here; None: it begins now.
    """

    def __init__(
        self,
        model: Any,
        kernels: Sequence[QuantizedKernel],
        noise: bool = False,
        seed: int = 0,
        learned: bool = False,
        zeros: Zeros | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._model, self._kernels = model, kernels
        self._noise, self._seed = noise, seed
        with _keras.scope_of(model):
            self._full = {k.path: _beside(k.variable) for k in kernels}
            self._steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._zeros = zeros or {k.path: ~not_zero(k.variable) for k in kernels}
        self._held: dict[str, _Levels | _Points] = {}
        self._scales: LearnedScales | None = None
        if state is None:
            self.refit()
        else:
            self._take_up(state)
        if learned:
            held = {p: own.learned for p, own in self._held.items() if isinstance(own, _Levels)}
            self._scales = LearnedScales(model, kernels, self._full, held)
            if state is not None:
                self._scales.set_state(state["scales"])

    @property
    def full(self) -> Mapping[str, npt.NDArray[Any]]:
        """The full numbers behind the kernels, by path."""
        return {path: variable.numpy() for path, variable in self._full.items()}

    def state(self) -> dict[str, Any]:
        """All that is not in the model, for a backup."""
        return {
            "steps": int(self._steps.numpy()),
            "kernels": {
                kernel.path: {
                    "full": self._full[kernel.path].numpy(),
                    "lattice": [own.numpy() for own in self._held[kernel.path].numbers],
                    "noted": self._held[kernel.path].holds(kernel.variable.numpy()),
                }
                for kernel in self._kernels
            },
            "scales": None if self._scales is None else self._scales.state(),
        }

    def _take_up(self, state: Mapping[str, Any]) -> None:
        """Goes on from the state of another one, whose kernels the model has."""
        self._steps.assign(state["steps"])
        for kernel in self._kernels:
            own = state["kernels"][kernel.path]
            self._full[kernel.path].assign(own["full"])
            held = self._held_of(kernel, kernel.scheme.lattice(self._matrix(kernel)))
            for variable, value in zip(held.numbers, own["lattice"], strict=True):
                variable.assign(value)
            held.value = kernel.variable.numpy() if own["noted"] else None

    def hold(self, zeros: Zeros) -> None:
        """Holds other weights at zero where 0 is a level.

        Args:
            zeros: By path, the weights that stay zero. They are zero in the kernels already.
        """
        for kernel in self._kernels:
            held, full = self._held[kernel.path], self._full[kernel.path]
            held.hold(zeros[kernel.path])
            held_zero = held.zeros.numpy()
            full.assign(np.where(held_zero, 0, full.numpy()))
            if held.value is not None:
                held.value = np.where(held_zero, 0, held.value)

    def _matrix(self, kernel: QuantizedKernel) -> Array:
        return kernel.matrix(self._full[kernel.path].numpy().astype(np.float64))

    def _held_of(
        self, kernel: QuantizedKernel, lattice: Lattice | Constellation
    ) -> _Levels | _Points:
        """The variables of a kernel's lattice, made when they are first needed."""
        if kernel.path not in self._held:
            with _keras.scope_of(self._model):
                self._held[kernel.path] = _held(kernel, lattice, self._zeros[kernel.path])
        return self._held[kernel.path]

    def refit(self) -> None:
        """Gives each kernel the lattice that suits its full numbers now.

        Kernels that somebody else has set since the last step, as a callback that restores weights
        does, are taken as they are.
        """
        for kernel in self._kernels:
            value, full = kernel.variable.numpy(), self._full[kernel.path]
            held = self._held.get(kernel.path)
            if self._scales is not None and held is not None and held.holds(value):
                continue
            if self._noise or held is None or not held.holds(value):
                full.assign(value)
            lattice = kernel.scheme.lattice(self._matrix(kernel))
            held = self._held_of(kernel, lattice)
            held.set(lattice)
            if self._scales is not None:
                self._scales.begin(kernel.path)
            if not self._noise:
                held.value = held.nearest(tf.constant(full.numpy())).numpy()
                kernel.variable.assign(held.value)

    def note(self) -> None:
        """Remembers what the kernels hold after the steps of an epoch."""
        for kernel in self._kernels:
            self._held[kernel.path].value = kernel.variable.numpy()

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
        with self._scales.seeing() if self._scales is not None else nullcontext():
            logs = step(data)
        if self._scales is not None:
            self._scales.move()
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
        held = self._held[kernel.path]
        noise = tf.cast(drawn * held.deviation, value.dtype)
        return value + tf.where(tf.convert_to_tensor(held.zeros), tf.zeros_like(noise), noise)


def _held(
    kernel: QuantizedKernel, lattice: Lattice | Constellation, zeros: npt.NDArray[np.bool_]
) -> _Levels | _Points:
    if isinstance(lattice, Constellation):
        return _Points(kernel, lattice, zeros)
    return _Levels(kernel, lattice, zeros)


class _Held:
    """The lattice of a kernel as TensorFlow reads it; its numbers may change without compiling.

    Args:
        zeros: The weights that stay zero if 0 is a level.
        has_zero: Whether it is.

    Attributes:
        value: What the kernel holds.
        zeros: The variable of the weights that stay zero.
        numbers: The variables of the lattice.
    """

    numbers: tuple[Any, ...]

    def __init__(self, zeros: npt.NDArray[np.bool_], has_zero: bool) -> None:
        self._has_zero = has_zero
        self.zeros = tf.Variable(zeros & has_zero, trainable=False)
        self.value: npt.NDArray[Any] | None = None

    def hold(self, zeros: npt.NDArray[np.bool_]) -> None:
        """Holds other weights at zero, if 0 is a level."""
        self.zeros.assign(zeros & self._has_zero)

    def holds(self, value: npt.NDArray[Any]) -> bool:
        """Whether a kernel's value is the one that was noted."""
        return self.value is not None and np.array_equal(value, self.value)


class _Levels(_Held):
    """Levels that each weight takes by itself.

    Args:
        kernel: The kernel.
        lattice: Its lattice.
        zeros: The weights that stay zero where 0 is a level.
    """

    def __init__(
        self, kernel: QuantizedKernel, lattice: Lattice, zeros: npt.NDArray[np.bool_]
    ) -> None:
        super().__init__(zeros, kernel.scheme.has_zero)
        self._common = lattice.base.ndim == 1
        self._units = tf.constant(kernel.whole(lattice.units), tf.int32)
        self._base, self._scale, self._zero = (
            tf.Variable(own, dtype=tf.float64, trainable=False)
            for own in (lattice.base, lattice.scale, lattice.zero)
        )
        self._deviation = tf.Variable(np.zeros(len(lattice.scale)), trainable=False)
        self.numbers = self._base, self._scale, self._zero, self._deviation

    @property
    def learned(self) -> tuple[Any, Any, Any, Any]:
        """What `LearnedScales` takes."""
        return self._scale, self._base, self._units, self.zeros

    def set(self, lattice: Lattice | Constellation) -> None:
        """Takes the numbers of another lattice of the same scheme."""
        assert isinstance(lattice, Lattice)
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
        return tf.where(tf.convert_to_tensor(self.zeros), tf.zeros_like(made), made)


class _Points(_Held):
    """Points of a plane that pairs of weights take.

    Args:
        kernel: The kernel.
        lattice: Its points.
        zeros: In its shape; 0 is no point.
    """

    def __init__(
        self, kernel: QuantizedKernel, lattice: Constellation, zeros: npt.NDArray[np.bool_]
    ) -> None:
        super().__init__(zeros, has_zero=False)
        matrix = np.arange(1.0, zeros.size + 1).reshape(zeros.shape)
        places = paired(kernel.matrix(matrix)).astype(np.int64) - 1  # −1: filled up
        whole = np.zeros(zeros.size, np.int64)
        whole[places[places >= 0]] = np.flatnonzero(places >= 0)
        self._there = tf.constant((places >= 0).astype(np.float64))
        self._places = tf.constant(np.maximum(places, 0))
        self._whole = tf.constant(whole.reshape(zeros.shape))
        self._units = tf.constant(lattice.units, tf.int32)
        self._unit_of = tf.gather(tf.repeat(tf.reshape(self._units, [-1]), 2), self._whole)
        self._points = tf.Variable(lattice.points, dtype=tf.float64, trainable=False)
        self._deviation = tf.Variable(np.zeros(len(lattice.points)), trainable=False)
        self.numbers = self._points, self._deviation

    def set(self, lattice: Lattice | Constellation) -> None:
        """Takes the points of another lattice of the same scheme."""
        assert isinstance(lattice, Constellation)
        self._points.assign(lattice.points)
        apart = ((lattice.points[:, :, None] - lattice.points[:, None]) ** 2).sum(axis=-1)
        least = np.where(apart > 0, apart, np.inf).min(axis=-1)
        steps = np.where(np.isfinite(least), least, 0.0).mean(axis=-1)
        self._deviation.assign(np.sqrt(steps / 12))

    @property
    def deviation(self) -> Any:
        """The standard deviation of what rounding changes, in the kernel's shape, float64.

        It is that of even levels as far apart as points and the next ones.
        """
        return tf.gather(tf.convert_to_tensor(self._deviation), self._unit_of)

    def nearest(self, value: Any) -> Any:
        """The nearest points of full numbers, as `Constellation.nearest` finds them."""
        points = tf.convert_to_tensor(self._points)
        pairs = tf.gather(tf.reshape(tf.cast(value, tf.float64), [-1]), self._places)
        codes = tf.zeros_like(self._units)
        least = tf.fill(codes.shape, tf.constant(np.inf, tf.float64))
        for code in range(points.shape[1]):
            point = tf.gather(points[:, code], self._units)
            apart = tf.reduce_sum((pairs - point) ** 2 * self._there, axis=-1)
            codes = tf.where(apart < least, code, codes)
            least = tf.minimum(apart, least)
        found = tf.gather_nd(points, tf.stack([self._units, codes], axis=-1))
        return tf.cast(tf.gather(tf.reshape(found, [-1]), self._whole), value.dtype)


def _beside(variable: Any) -> Any:
    return tf.Variable(tf.convert_to_tensor(variable.value), trainable=False)
