"""An activation with a growth rate and an offset for each channel; knows nothing of pruning."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import keras
import numpy as np
from keras import ops

from sgdap._arguments import check_choice, is_number, shown


@keras.saving.register_keras_serializable(package="sgdap")
class DynamicRangeActivation(keras.layers.Layer):
    """An activation whose growth rates tell which channels the network can do without.

    Each channel has a growth rate α, which begins at 1, and an offset δ, which begins at 0. They
    are applied before the activation f. With the layer's input `a`:

        z = clip(α ⊙ (a + δ), −clip, clip),    y = f(z).

    Let g be the gradient of the loss at `α ⊙ (a + δ)` (0 where that is clipped) and ⟨·⟩ the sum
    over the batch and all axes except the channel axis. The optimizer trains δ by its gradient
    `∂L/∂δ = α ⟨g⟩`. α grows in one of two ways:

    * `growth="trainable"`: the optimizer trains α by its gradient `∂L/∂α = ⟨g (a + δ)⟩`. A
      regularizer (λ|α|) pulls α to 0 wherever the gradient does not keep it up.
    * `growth="statistics"`: the optimizer does not train α. It is an exponential moving average,
      with momentum ρ, of the size of a channel's gradients relative to the whole layer's:

          α ← ρ α + (1 − ρ) s / mean(s),    s = mean over batch and positions of |g|,

      The backward pass of each train step updates it. The mean of α stays 1. A step changes
      nothing if its gradients are all 0 or not finite (loss scaling), or if `trainable` is False.
      TensorFlow can't update it inside the loop of a recurrent layer: make that layer with
      `unroll=True`.

    A channel that is removed loses its α and δ too. `sgdap.GrowthGuidance` scores channels by
    |α|. `sgdap.layers.to_dra` puts this layer into a model. `sgdap.fold` takes it out of a trained
    model, which then computes the same.

    Args:
        activation: The activation f: a name, a function or a layer without weights, like the
            `activation` of any Keras layer.
        growth: `"trainable"` or `"statistics"`.
        growth_regularizer: The regularizer of a trainable α: the λ of an L1 penalty, a
            `keras.regularizers.Regularizer`, or None. `growth="statistics"` does not use it.
        momentum: The momentum ρ of `growth="statistics"`, from 0 to less than 1.
        clip: The bound of |z|. None: no bound, except in float16: there it is 32 752, half of the
            largest number, so that the float32 result of this layer does not overflow.
        channel_axis: The axis of the channels, not 0.

    Input shape:
        Any shape of at least two axes. The size of the channel axis must be known.

    Output shape:
        The same as the input shape.

    Raises:
        ValueError: An argument has an invalid value, or the size of the channel axis is not known.

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
                f"momentum must be from 0 to less than 1. Received: momentum={shown(momentum)}"
            )
        if clip is not None and (not is_number(clip) or clip <= 0):
            raise ValueError(
                f"clip must be a positive number or None. Received: clip={shown(clip)}"
            )
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
                f"input of shape {input_shape}. Give the number of theirs, -1 for the last one."
            )
        size = input_shape[self.channel_axis]
        if size is None:
            raise ValueError(
                f"'{self.name}' needs to know the number of its channels, axis "
                f"{self.channel_axis} of its input. Received: input shape {input_shape}. Give the "
                "model's Input that size."
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
                    f"{self.activation}. Leave that activation a layer of its own."
                )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Computes `f(clip(α ⊙ (a + δ)))`."""
        shape = [1] * len(inputs.shape)
        shape[self.channel_axis] = -1
        # Half precision could overflow before the clip and would make coarse statistics.
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
        """The bound that |z| is clipped to; None without clipping."""
        if self.clip is None and self.compute_dtype == "float16":
            return float(np.finfo(np.float16).max) / 2
        return self.clip

    def _grow(self, gradient: Any) -> Any:
        """Updates α from the gradient g at `α ⊙ (a + δ)`, as `growth="statistics"` says.

        Returns:
            The operations to wait for, so that the update is run.
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
        """The constructor's arguments as a config."""
        activation = keras.activations.serialize(self.activation)
        if isinstance(activation, dict):  # a layer's config holds the width it was built with
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
    """`α (a + δ)`, whose gradient g is passed to `see` in the backward pass.

    The gradients are `α g` by a, `⟨g (a + δ)⟩` by α and `α ⟨g⟩` by δ. They are written out for
    speed: summing over the batch first and then over positions takes a third of the time of one
    sum over both. α and δ are repeated for each position, as a few channels fill no vector
    register.
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
    """Sums `values` over all axes where `like` has size 1. The result has the shape of `like`."""
    over = [axis for axis, size in enumerate(like.shape) if size == 1 and axis > 0]
    return ops.sum(ops.sum(values, axis=0, keepdims=True), axis=over, keepdims=True)


def _axis(axis: Any) -> int:
    if isinstance(axis, bool) or not isinstance(axis, Integral) or axis == 0:
        raise ValueError(
            "channel_axis must be the number of an axis, not 0, which is that of the samples. "
            f"Received: channel_axis={shown(axis)}"
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
            f"None. Received: growth_regularizer={shown(identifier)}"
        ) from error
