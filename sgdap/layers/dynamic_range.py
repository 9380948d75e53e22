"""An activation with a growth rate and an offset for each channel; knows nothing of pruning."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import keras
import numpy as np
from keras import ops

from sgdap._arguments import check_choice, is_number


@keras.saving.register_keras_serializable(package="sgdap")
class DynamicRangeActivation(keras.layers.Layer):
    """An activation whose growth rates tell which channels the network can do without.

    In front of the activation f stand a growth rate α, which begins at 1, and an offset δ, which
    begins at 0, for each channel. With the layer's input `a`:

        z = clip(α ⊙ (a + δ), −clip, clip),    y = f(z).

    Let g be the gradient of the loss at `α ⊙ (a + δ)` (0 where that is clipped) and ⟨·⟩ the sum
    over the batch and all axes but the channels'. δ follows the gradient's statistic over the
    batch, which is what differentiating by it gives, `∂L/∂δ = α ⟨g⟩`; the optimizer moves it. α
    grows in one of two ways:

    * `growth="trainable"`: by the same statistic, weighted with the input,
      `∂L/∂α = ⟨g (a + δ)⟩`, moved by the optimizer. A regularizer (λ|α|) pulls it to 0, where
      it goes if no gradient holds against it.
    * `growth="statistics"`: not by the optimizer. In each training step α is an exponential
      moving average, with momentum ρ, of how large the gradients at a channel are, relative to
      those at the whole layer:

          α ← ρ α + (1 − ρ) s / mean(s),    s = mean over batch and positions of |g|,

      written by the backward pass of the train step itself. The mean of α stays 1. A step whose
      gradients are all 0 or not finite (loss scaling) changes nothing, nor does one while
      `trainable` is False. TensorFlow can't write it from the loop of a recurrent layer: make
      that with `unroll=True`.

    A channel that is taken away loses its α and δ too, `sgdap.GrowthGuidance` scores channels by
    |α|, `sgdap.layers.to_dra` puts this layer into a model, and `sgdap.fold` takes it out of a
    trained one without changing what that computes.

    Args:
        activation: f: name, function or layer without weights, as `activation` of any Keras layer.
        growth: `"trainable"` or `"statistics"`.
        growth_regularizer: The pull on a trainable α: λ of an L1 penalty, a
            `keras.regularizers.Regularizer`, or None. `growth="statistics"` does not use it.
        momentum: ρ of `growth="statistics"`, from 0 to less than 1.
        clip: Bound of z. None: none, but in float16 half of the largest number, 32 752, so that
            what is computed in float32 here does not overflow on its way out.
        channel_axis: The axis of the channels, not 0.

    Input shape:
        Any of two axes at least; the channels' must be of a known size.

    Output shape:
        The same.

    Raises:
        ValueError: An argument has no meaning, or the size of the channel axis is not known.

    Reference:
        The penalty on a factor for each channel: Liu et al., "Network Slimming", arXiv
        1708.06519, section 3. How this differs stands in docs/dra.md.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((8,)), keras.layers.Dense(16),
        ...     sgdap.layers.DynamicRangeActivation("relu"), keras.layers.Dense(3, "softmax")])
        >>> tuple(model.layers[1].growth_rate.shape)
        (16,)
    """

    def __init__(
        self,
        activation: Any = "sigmoid",
        growth: str = "trainable",
        *,
        growth_regularizer: float | keras.regularizers.Regularizer | None = 1e-5,
        momentum: float = 0.99,
        clip: float | None = None,
        channel_axis: int = -1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("growth", growth, ("trainable", "statistics"))
        if not is_number(momentum) or not 0 <= momentum < 1:
            raise ValueError(
                f"momentum must be from 0 to less than 1. Received: momentum={momentum!r}"
            )
        if clip is not None and (not is_number(clip) or clip <= 0):
            raise ValueError(f"clip must be a positive number or None. Received: clip={clip!r}")
        self.activation = keras.activations.get(activation)
        self.growth = growth
        self.growth_regularizer = _regularizer(growth_regularizer)
        self.momentum = float(momentum)
        self.clip = None if clip is None else float(clip)
        self.channel_axis = _axis(channel_axis)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes α and δ for the channels of an input shape."""
        rank = len(input_shape)
        if not -rank < self.channel_axis < rank or self.channel_axis % rank == 0:
            raise ValueError(
                f"channel_axis={self.channel_axis} of '{self.name}' is no axis of channels of an "
                f"input of shape {input_shape}."
            )
        size = input_shape[self.channel_axis]
        if size is None:
            raise ValueError(
                f"'{self.name}' needs to know the number of its channels, axis "
                f"{self.channel_axis} of its input. Received: input shape {input_shape}"
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={self.channel_axis: size})
        trained = self.growth == "trainable"
        self.growth_rate = self.add_weight(
            name="growth_rate",
            shape=(size,),
            initializer="ones",
            regularizer=self.growth_regularizer if trained else None,
            trainable=trained,
            autocast=False,
            aggregation="none" if trained else "mean",
        )
        self.offset = self.add_weight(
            name="offset", shape=(size,), initializer="zeros", autocast=False
        )
        if isinstance(self.activation, keras.layers.Layer):
            self.activation.build(input_shape)
            if self.activation.weights:
                raise ValueError(
                    f"The activation of '{self.name}' must have no weights of its own. Received: "
                    f"{self.activation}"
                )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Computes `f(clip(α ⊙ (a + δ)))`."""
        shape = [1] * len(inputs.shape)
        shape[self.channel_axis] = -1
        # Half precision could overflow before the clip, and its gradients' statistics be coarse.
        precise = "float64" if inputs.dtype == "float64" else "float32"
        alpha, delta = (
            ops.cast(ops.reshape(v, shape), precise) for v in (self.growth_rate, self.offset)
        )
        grows = training and self.trainable and self.growth == "statistics"
        z = _scaled(ops.cast(inputs, precise), alpha, delta, self._grow if grows else None)
        bound = self.bound
        if bound is not None:
            z = ops.clip(z, -bound, bound)
        return self.activation(ops.cast(z, inputs.dtype))

    @property
    def bound(self) -> float | None:
        """What z is clipped at, None where it is not."""
        if self.clip is None and self.compute_dtype == "float16":
            return float(np.finfo(np.float16).max) / 2
        return self.clip

    def _grow(self, gradient: Any) -> Any:
        """Moves α to the channels' shares of the gradient at `α ⊙ (a + δ)`.

        Returns:
            What is to be waited for, so that it happens.
        """
        rank = len(gradient.shape)
        others = [axis for axis in range(1, rank) if axis != self.channel_axis % rank]
        sizes = ops.mean(ops.mean(ops.abs(gradient), axis=0, keepdims=True), axis=(0, *others))
        whole = ops.mean(sizes)
        usable = ops.logical_and(ops.isfinite(whole), whole > 0)
        now = ops.cast(self.growth_rate, sizes.dtype)
        relative = ops.where(usable, sizes / ops.where(usable, whole, 1.0), now)
        grown = self.momentum * now + (1 - self.momentum) * relative
        variable = self.growth_rate.value
        if hasattr(variable, "assign"):
            return variable.assign(ops.cast(grown, variable.dtype))
        self.growth_rate.assign(grown)  # in a stateless scope
        return grown

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        activation = keras.activations.serialize(self.activation)
        if isinstance(activation, dict):  # a layer's, with the width that it was built with
            activation = {k: v for k, v in activation.items() if k != "build_config"}
        return {
            **super().get_config(),
            "activation": activation,
            "growth": self.growth,
            "growth_regularizer": keras.regularizers.serialize(self.growth_regularizer),
            "momentum": self.momentum,
            "clip": self.clip,
            "channel_axis": self.channel_axis,
        }


def _scaled(a: Any, alpha: Any, delta: Any, see: Callable[[Any], Any] | None) -> Any:
    """`α (a + δ)`, whose gradient g is shown to `see` in the backward pass.

    The gradients are `α g` by a, `⟨g (a + δ)⟩` by α and `α ⟨g⟩` by δ. They are written out because
    sums over the batch first, then over positions, take a third of the time of those at once; and α
    and δ are repeated for each position, as a few channels alone fill no vector register.
    """
    import tensorflow as tf

    sample = a.shape[1:]
    repeated = (1, *sample) if None not in sample else alpha.shape

    @tf.custom_gradient
    def scaled(a: Any, alpha: Any, delta: Any) -> Any:
        shifted = a + ops.broadcast_to(delta, repeated)
        factor = ops.broadcast_to(alpha, repeated)

        def backward(g: Any) -> Any:
            sums = _channel_sums(g * shifted, alpha), alpha * _channel_sums(g, alpha)
            if see is None:
                return factor * g, *sums
            with tf.control_dependencies([see(g)]):
                return tf.identity(factor * g), *map(tf.identity, sums)

        return factor * shifted, backward

    return scaled(a, alpha, delta)


def _channel_sums(values: Any, like: Any) -> Any:
    """Sums over all axes along which `like` has one index only, `like.shape`."""
    over = [axis for axis, size in enumerate(like.shape) if size == 1 and axis > 0]
    return ops.sum(ops.sum(values, axis=0, keepdims=True), axis=over, keepdims=True)


def _axis(axis: Any) -> int:
    if isinstance(axis, bool) or not isinstance(axis, Integral) or axis == 0:
        raise ValueError(
            "channel_axis must be the number of an axis, not 0, which is that of the samples. "
            f"Received: channel_axis={axis!r}"
        )
    return int(axis)


def _regularizer(identifier: Any) -> Any:
    if is_number(identifier) and identifier >= 0:
        return keras.regularizers.L1(float(identifier)) if identifier else None
    try:
        return keras.regularizers.get(identifier)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "growth_regularizer must be a number that is not negative, a Keras regularizer or "
            f"None. Received: growth_regularizer={identifier!r}"
        ) from error
