"""Small models of every supported layer, and the steps that random ones are put together from."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf
from hypothesis import settings
from keras import layers, ops

from sgdap import _keras
from sgdap.layers import DynamicRangeActivation

LAYER_SCALE, STOCHASTIC_DEPTH, SCALED_SUM = _keras.application_layers()

Step = Callable[[list, int], "keras.KerasTensor | None"]
STEPS: dict[str, Step] = {}
"""Each makes the next tensor from those before and a number to choose by; None: it can't here."""

INPUT_SHAPES = ((6,), (7, 3), (6, 6, 2), (4, 4, 4, 2))
"""By number of spatial axes."""

SPATIAL_ONLY = {"convolution", "grouped_convolution", "grouped", "transposed_convolution"}
"""Steps that need an axis of positions."""

SOME_RANKS = {
    "depthwise_convolution": (1, 2),
    "separable_convolution": (1, 2),
    "recurrent": (1,),
    "cells": (1,),
    "bidirectional": (1,),
    "convolutional_recurrent": (2, 3),
    "time_distributed": (1, 2, 3),
    "multi_head_attention": (1, 2),
    "grouped_query_attention": (1,),
    "attention": (1,),
    "dot": (1, 2),
    "masking": (1,),
    "image": (2,),
    "reversible_embedding": (0, 1),
    "embedding": (0, 1),
    "repeat_vector": (0,),
}
"""Steps that need a certain number of them."""

MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")


def step(function: Step) -> Step:
    STEPS[function.__name__] = function
    return function


def pick(options: Sequence, number: int):
    return options[number % len(options)]


def spatial_rank(x: keras.KerasTensor) -> int:
    return len(x.shape) - 2


def spatial_layer(name: str, x: keras.KerasTensor) -> type | None:
    return getattr(layers, f"{name}{spatial_rank(x)}D", None)


# Layers that make channels


@step
def dense(tensors, n):
    activation = pick((None, "relu", "tanh", "gelu", "softmax"), n)
    return layers.Dense(3 + n % 4, activation, use_bias=n % 3 > 0)(tensors[-1])


@step
def convolution(tensors, n):
    x = tensors[-1]
    layer = spatial_layer("Conv", x)
    if layer is None:
        return None
    padding = pick(("valid", "same", "causal") if spatial_rank(x) == 1 else ("valid", "same"), n)
    size = min(1 + n % 3, *x.shape[1:-1])
    dilation = 2 if n % 4 == 1 and padding != "valid" else 1
    return layer(
        3 + n % 3,
        size,
        strides=1 if dilation > 1 else 1 + n % 2,
        padding=padding,
        dilation_rate=dilation,
        activation=pick((None, "relu", "elu"), n),
    )(x)


@step
def grouped_convolution(tensors, n):
    x = tensors[-1]
    layer = spatial_layer("Conv", x)
    return None if layer is None or x.shape[-1] % 2 else layer(4, 1, groups=2)(x)


@step
def grouped(tensors, n):
    x = tensors[-1]
    layer = spatial_layer("Conv", x)
    if layer is None:
        return None
    x = layers.Dense(6, "relu")(x)
    return layer(*pick(((12, 2), (6, 2)), n), padding="same", groups=pick((3, 6, 2), n))(x)


@step
def depthwise_convolution(tensors, n):
    x = tensors[-1]
    layer = spatial_layer("DepthwiseConv", x)
    if layer is None:
        return None
    return layer(2, padding="same", depth_multiplier=1 + n % 2, activation=pick((None, "relu"), n))(
        x
    )


@step
def separable_convolution(tensors, n):
    x = tensors[-1]
    layer = spatial_layer("SeparableConv", x)
    return (
        None
        if layer is None
        else layer(3 + n % 3, 2, 1 + n % 2, depth_multiplier=1 + n % 2, padding="same")(x)
    )


@step
def transposed_convolution(tensors, n):
    x = tensors[-1]
    name = f"Conv{spatial_rank(x)}DTranspose"
    layer = getattr(layers, name, None)
    if layer is None or not is_small(x):
        return None
    return layer(3 + n % 3, 2, strides=1 + n % 2, padding="same")(x)


@step
def einsum_dense(tensors, n):
    x = tensors[-1]
    inner = "bcde"[: len(x.shape) - 1]
    equation, shape = f"a{inner},{inner[-1]}z->a{inner[:-1]}z", (*x.shape[1:-1], 5)
    if n % 4 > 1:
        equation, shape = "...x,xz->...z", 5
    return layers.EinsumDense(equation, shape, bias_axes="z" if n % 2 else None)(x)


@step
def recurrent(tensors, n):
    x = tensors[-1]
    if len(x.shape) != 3:
        return None
    layer = pick((layers.LSTM, layers.GRU, layers.SimpleRNN), n)
    return layer(3 + n % 3, return_sequences=n % 2 == 0)(x)


@step
def cells(tensors, n):
    x = tensors[-1]
    if len(x.shape) != 3:
        return None
    made = [layers.LSTMCell(4), layers.GRUCell(3, reset_after=n % 2 > 0), layers.SimpleRNNCell(5)]
    cell = pick((made[0], made[1], made[2], made, layers.StackedRNNCells(made[::-1])), n)
    y = layers.RNN(cell, return_state=n % 3 == 0, return_sequences=n % 2 == 0)(x)
    return y if n % 3 else layers.Concatenate()(keras.tree.flatten(y)[:-3:-1])


@step
def bidirectional(tensors, n):
    x = tensors[-1]
    if len(x.shape) != 3:
        return None
    mode = pick(("concat", "sum", "mul", "ave", None), n)
    inner = pick((layers.LSTM, layers.GRU, layers.SimpleRNN), n // 5)(
        3 + n % 3, return_sequences=n % 2 == 0, return_state=n % 4 == 3
    )
    backward = None
    if n % 3 == 1:
        backward = type(inner).from_config({**inner.get_config(), "go_backwards": True})
    y = layers.Bidirectional(inner, merge_mode=mode, backward_layer=backward)(x)
    return layers.Add()(list(y[:2])) if mode is None else y[0] if n % 4 == 3 else y


@step
def convolutional_recurrent(tensors, n):
    x = tensors[-1]
    if spatial_rank(x) not in (2, 3) or not is_small(x):
        return None
    if spatial_rank(x) == 3 and n % 2:
        x = layers.Reshape((1, *x.shape[1:]))(x)
    layer = getattr(layers, f"ConvLSTM{spatial_rank(x) - 1}D")
    return layer(3, 2, padding="same", strides=1 + n % 3 // 2, return_sequences=n % 4 > 1)(x)


@step
def time_distributed(tensors, n):
    x = tensors[-1]
    rank = spatial_rank(x)
    if not 0 < rank < 4:
        return None
    inner = [layers.Dense(4, "relu"), layers.BatchNormalization()]
    if rank > 1:
        inner = [getattr(layers, f"Conv{rank - 1}D")(4, 2, activation="tanh"), *inner]
        inner += [getattr(layers, f"DepthwiseConv{rank - 1}D")(2), layers.Flatten()]
    if rank > 1 and min(x.shape[2:-1]) < 2:
        inner = inner[1:3]
    if n % 5 == 4:
        frame = keras.Input(x.shape[2:])
        body = [keras.Input(frame.shape[1:]), layers.Dense(5), layers.BatchNormalization()]
        y = layers.Dense(4, "relu")(keras.Sequential(body)(frame))
        inner = [keras.Model(frame, layers.Flatten()(layers.Add()([y, layers.Dense(4)(frame)])))]
    return layers.TimeDistributed(pick(inner, n))(x)


@step
def spectral_normalization(tensors, n):
    x = tensors[-1]
    layer = spatial_layer("Conv", x)
    inner = layers.Dense(4, "relu") if layer is None or n % 2 else layer(4, 1)
    if n % 3 == 2 and spatial_rank(x) in (1, 2):
        inner = spatial_layer("DepthwiseConv", x)(1, depth_multiplier=2)
    return layers.SpectralNormalization(inner)(x)


@step
def multi_head_attention(tensors, n):
    x = tensors[-1]
    if spatial_rank(x) not in (1, 2) or not is_small(x):
        return None
    layer = layers.MultiHeadAttention(
        2 + n % 2,
        4,
        value_dim=pick((None, 3, 5), n),
        use_bias=n % 4 > 0,
        output_shape=pick((None, 5), n),
        use_gate=n % 5 == 1,
    )
    other = pick((x, layers.Dense(5)(x)), n // 2)
    y = layer(
        x,
        other,
        pick((None, layers.Dense(3)(x)), n // 3),
        use_causal_mask=len(x.shape) == 3 and n % 3 == 2,
    )
    return layers.Add()([x, y]) if y.shape == x.shape and n % 4 > 1 else y


@step
def grouped_query_attention(tensors, n):
    x = tensors[-1]
    if len(x.shape) != 3:
        return None
    layer = layers.GroupQueryAttention(
        4, *pick(((6, 3), (4, 1), (3, 3)), n), use_bias=n % 2 > 0, use_gate=n % 4 == 1
    )
    if n % 3 == 2:
        y, scores = layer(x, x, layers.Dense(5)(x), return_attention_scores=True)
        return layers.Permute((2, 3, 1))(scores) if n % 2 else y
    return layer(x, pick((x, layers.Dense(x.shape[-1])(x)), n // 2))


@step
def attention(tensors, n):
    x = tensors[-1]
    if len(x.shape) != 3:
        return None
    mode = pick(("dot", "concat"), n // 2)
    layer = layers.Attention(use_scale=n % 3 > 0, score_mode=mode)
    if n % 2:
        layer = layers.AdditiveAttention(use_scale=n % 3 > 0)
    key = layers.Dense(x.shape[-1])(x)
    return layer([x, key] if n % 4 < 2 else [x, layers.Dense(4)(x), key])


@step
def dot(tensors, n):
    x = tensors[-1]
    if spatial_rank(x) not in (1, 2) or not is_small(x):
        return None
    if n % 3 == 1:
        return layers.Dot((1, 1))([x, layers.Dense(3)(x)])
    return layers.Dot(-1, normalize=n % 3 == 2)([x, layers.Dense(x.shape[-1])(x)])


@step
def image(tensors, n):
    x = tensors[-1]
    if spatial_rank(x) != 2 or min(x.shape[1:-1]) < 3:
        return None
    layer = pick(
        (
            layers.CenterCrop(3, 3),
            layers.Resizing(4, 4),
            layers.RandomBrightness(0.2),
            layers.RandomContrast(0.2),
            layers.RandomCrop(3, 3),
            layers.RandomFlip(),
            layers.RandomRotation(0.2),
            layers.RandomTranslation(0.2, 0.2),
            layers.RandomZoom(0.2),
        ),
        n,
    )
    return layer(x)


@step
def reversible_embedding(tensors, n):
    x = tensors[-1]
    if len(x.shape) > 3:
        return None
    layer = layers.ReversibleEmbedding(
        5, 4, tie_weights=n % 2 > 0, logit_soft_cap=pick((None, 2), n)
    )
    if n % 3 == 1:
        return layer(layers.Dense(4)(x), reverse=True)
    tokens = keras.ops.cast(keras.ops.clip(keras.ops.abs(x) * 3, 0, 4), "int32")
    y = layer(tokens)
    return layers.Concatenate()([y, layer(y, reverse=True)]) if n % 3 == 2 else y


@step
def embedding(tensors, n):
    x = tensors[-1]
    tokens = ops.cast(ops.clip(ops.abs(x) * 3, 0, 4), "int32")
    return layers.Embedding(5, 3 + n % 2)(tokens) if len(x.shape) < 4 else None


@step
def repeat_vector(tensors, n):
    x = tensors[-1]
    return layers.RepeatVector(2 + n % 2)(x) if len(x.shape) == 2 else None


@step
def permute(tensors, n):
    x = tensors[-1]
    axes = list(range(1, len(x.shape)))
    return layers.Permute(axes[n % len(axes) :] + axes[: n % len(axes)])(x)


@step
def shared(tensors, n):
    x = tensors[-1]
    layer = layers.Dense(x.shape[-1], "tanh")
    if n % 2:
        return layer(layer(x))
    return layers.Average()([layer(x), layer(layers.Dense(x.shape[-1])(x))])


@step
def nested(tensors, n):
    x = tensors[-1]
    inner = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            layers.Dense(5, "relu"),
            layers.BatchNormalization(),
            layers.Dense(x.shape[-1] if n % 2 else 4),
        ]
    )
    if n % 2:
        symbol = keras.Input(x.shape[1:])
        inner = keras.Model(symbol, layers.Add()([symbol, inner(symbol)]))
    return inner(inner(x)) if n % 2 and n % 3 else inner(x)


# Code of the user's own


@keras.saving.register_keras_serializable("tests")
class OfOperations(layers.Layer):
    """A user's own layer without weights: an activation, or one that counts what it reshapes."""

    def __init__(self, reshapes=False, **kwargs):
        super().__init__(**kwargs)
        self.reshapes = reshapes

    def call(self, x, training=None):
        if training:
            x = x * 1.0
        if not self.reshapes:
            return x * ops.tanh(ops.softplus(x))
        shape = ops.shape(x)
        return ops.reshape(ops.relu(ops.reshape(x, (shape[0], -1))), shape)

    def get_config(self):
        return {**super().get_config(), "reshapes": self.reshapes}


@keras.saving.register_keras_serializable("tests")
class OfTensorFlow(layers.Layer):
    """A user's own layer without weights that calls a function of TensorFlow by its name."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return TENSORFLOW[self.function](x)

    def get_config(self):
        return {**super().get_config(), "function": self.function}


TENSORFLOW = {
    "relu": tf.nn.relu,
    "pad": lambda x: tf.pad(x, [[0, 0], *[[1, 0]] * (len(x.shape) - 1)]),
    "flip": lambda x: tf.reverse(x, [1]),
    "blocks": lambda x: tf.nn.depth_to_space(x, 2),
    "resize": lambda x: tf.image.resize(x, (3, 4)),
    "swap": lambda x: tf.concat(tf.split(x, 2, -1)[::-1], -1) if x.shape[-1] % 2 == 0 else x,
    "normalize": lambda x: tf.nn.l2_normalize(x, -1),
}


@keras.saving.register_keras_serializable("tests")
class Composite(layers.Layer):
    """Layers of the user's own in a `call` of the user's own: a tail, a residual, or neither."""

    def __init__(self, kind: str, width: int, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.width = kind, width
        self.parts = [layers.BatchNormalization(name="norm")]
        if kind != "passing":
            self.parts += [layers.Dense(5, "relu", name="in"), layers.Dense(width, name="out")]

    def call(self, x, training=None):
        y = x
        for part in self.parts:
            y = part(y, training=training) if part.name == "norm" else part(y)
        if self.kind == "residual":
            return ops.relu(x + y)
        return ops.reshape(y, (ops.shape(x)[0], *y.shape[1:-1], y.shape[-1]))

    def get_config(self):
        return {**super().get_config(), "kind": self.kind, "width": self.width}


@keras.saving.register_keras_serializable("tests")
class OwnModel(keras.Model):
    """A model with a `call` of its own: some model or layer, then dense layers in a list."""

    def __init__(self, body=None, **kwargs):
        super().__init__(**kwargs)
        self.body = body or layers.Dense(4, "tanh", name="before")
        self.parts = [
            self.body,
            layers.Dense(6, "relu", name="after"),
            layers.Dense(3, name="last"),
        ]
        self.drop = layers.Dropout(0.0, name="drop")

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x)
        x = self.drop(x, training=training)
        return x / ops.sqrt(float(x.shape[-1]))

    def get_config(self):
        return {"name": self.name}


@step
def composite(tensors, n):
    x = tensors[-1]
    return Composite(pick(("passing", "tail", "residual"), n), x.shape[-1])(x)


@step
def tensorflow(tensors, n):
    x = tensors[-1]
    names = list(TENSORFLOW)[: 5 if spatial_rank(x) == 2 and x.shape[-1] % 4 == 0 else 3]
    return _of_tensorflow(pick(names, n), n)(x)


@step
def tensorflow_mixing(tensors, n):
    return _of_tensorflow(pick(("swap", "normalize"), n // 2), n)(tensors[-1])


def _of_tensorflow(name: str, n: int) -> layers.Layer:
    return layers.Lambda(TENSORFLOW[name]) if n % 2 else OfTensorFlow(name)


@step
def own_model(tensors, n):
    return OwnModel()(tensors[-1])


# Layers that channels pass


def _groups(x: keras.KerasTensor) -> list[int]:
    """Numbers of groups to normalise by; a group of one value would always be normalised to 0."""
    half = max(x.shape[-1] // 2, 1)
    even = [half] if x.shape[-1] % half == 0 else []
    return [*([-1] if spatial_rank(x) else []), 1, *even]


def _same_shape(name: str, make: Callable[[keras.KerasTensor, int], layers.Layer]) -> None:
    STEPS[name] = lambda tensors, n: make(tensors[-1], n)(tensors[-1])


_same_shape("relu", lambda x, n: layers.ReLU(max_value=pick((None, 6), n)))
_same_shape("leaky_relu", lambda x, n: layers.LeakyReLU())
_same_shape("elu", lambda x, n: layers.ELU())
_same_shape(
    "prelu",
    lambda x, n: layers.PReLU(shared_axes=list(range(1, len(x.shape) - 1)) if n % 2 else None),
)
_same_shape(
    "activation", lambda x, n: layers.Activation(pick(("swish", "sigmoid", "softmax", "tanh"), n))
)
_same_shape("softmax", lambda x, n: layers.Softmax(axis=1 if n % 2 else -1))
_same_shape("batch_normalization", lambda x, n: layers.BatchNormalization(scale=n % 3 > 0))
_same_shape(
    "dynamic_range",
    lambda x, n: DynamicRangeActivation(
        pick(("sigmoid", "relu", layers.LeakyReLU(), "silu"), n),
        pick(("trainable", "statistics"), n // 2),
        clip=pick((None, None, 0.8), n),
        channel_axis=pick((-1, len(x.shape) - 1), n),
    ),
)
_same_shape("layer_normalization", lambda x, n: layers.LayerNormalization())
_same_shape("rms_normalization", lambda x, n: layers.RMSNormalization())
_same_shape("unit_normalization", lambda x, n: layers.UnitNormalization())
_same_shape("group_normalization", lambda x, n: layers.GroupNormalization(pick(_groups(x), n)))
_same_shape("rescaling", lambda x, n: layers.Rescaling(2.0, 1.0))
_same_shape("normalization", lambda x, n: layers.Normalization(mean=0.5, variance=2.0))
_same_shape("layer_scale", lambda x, n: LAYER_SCALE(0.5, x.shape[-1]))
_same_shape("stochastic_depth", lambda x, n: STOCHASTIC_DEPTH(0.5))
_same_shape("dropout", lambda x, n: layers.Dropout(0.5))
_same_shape("alpha_dropout", lambda x, n: layers.AlphaDropout(0.5))
_same_shape("gaussian_dropout", lambda x, n: layers.GaussianDropout(0.5))
_same_shape("gaussian_noise", lambda x, n: layers.GaussianNoise(0.5))
_same_shape("activity_regularization", lambda x, n: layers.ActivityRegularization(l2=1e-3))
_same_shape("masking", lambda x, n: layers.Masking())
_same_shape("identity", lambda x, n: layers.Identity())


# Layers that work on positions


def _spatial(name: str, make: Callable, fits: Callable = lambda x: True) -> None:
    def apply(tensors, n):
        x = tensors[-1]
        layer = spatial_layer("".join(part.title() for part in name.split("_")), x)
        return make(layer, n)(x) if layer is not None and fits(x) else None

    STEPS[name] = apply
    SPATIAL_ONLY.add(name)


def is_small(x: keras.KerasTensor) -> bool:
    return math.prod(x.shape[1:]) <= 300


_spatial("max_pooling", lambda layer, n: layer(2, padding="same", strides=1 + n % 2))
_spatial("average_pooling", lambda layer, n: layer(2, padding="same", strides=1 + n % 2))
_spatial("adaptive_max_pooling", lambda layer, n: layer(2), lambda x: min(x.shape[1:-1]) > 1)
_spatial("adaptive_average_pooling", lambda layer, n: layer(2), lambda x: min(x.shape[1:-1]) > 1)
_spatial("global_max_pooling", lambda layer, n: layer(keepdims=n % 2 == 0))
_spatial("global_average_pooling", lambda layer, n: layer(keepdims=n % 2 == 0))
_spatial("zero_padding", lambda layer, n: layer(1), is_small)
_spatial("cropping", lambda layer, n: layer(1), lambda x: min(x.shape[1:-1]) > 2)
_spatial("up_sampling", lambda layer, n: layer(2), is_small)
_spatial("spatial_dropout", lambda layer, n: layer(0.5))


@step
def flatten(tensors, n):
    return layers.Flatten()(tensors[-1])


@step
def reshape(tensors, n):
    shape = tensors[-1].shape[1:]
    targets = [(*shape, 1), (1, *shape), (-1, shape[-1])]
    if shape[-1] % 2 == 0:
        targets += [(*shape[:-1], 2, shape[-1] // 2), (*shape[:-1], shape[-1] // 2, 2)]
    if len(shape) > 2:
        targets += [(math.prod(shape[:-1]), shape[-1]), (shape[0], -1)]
    target = pick([target for target in targets if len(target) < 5], n)
    return layers.Reshape(target)(tensors[-1])


# Layers that combine tensors


def _merge(name: str) -> None:
    def apply(tensors, n):
        x = tensors[-1]
        like = [t for t in tensors[:-1] if t.shape == x.shape]
        if like and n % 2:
            other = pick(like, n // 2)
        elif spatial_rank(x) in (1, 2, 3) and n % 4 == 0:  # a gate: one factor for each channel
            pooled = spatial_layer("GlobalAveragePooling", x)(keepdims=True)(x)
            other = layers.Dense(x.shape[-1], "sigmoid")(pooled)
        else:
            other = layers.Dense(x.shape[-1])(x)
        return getattr(layers, name)()([x, other])

    STEPS[name.lower()] = apply


@step
def scaled_sum(tensors, n):
    x = tensors[-1]
    return SCALED_SUM(0.2 + 0.1 * n)([x, layers.Dense(x.shape[-1])(x)])


for _name in MERGES:
    _merge(_name)


@step
def operator(tensors, n):
    x = tensors[-1]
    other = pick((2.0, layers.Dense(x.shape[-1], "sigmoid")(x), x), n)
    return pick((lambda: x + other, lambda: x * other, lambda: other - x), n // 3)()


# keras.ops on symbolic tensors


def _operation(name: str, make: Callable) -> None:
    STEPS[f"ops_{name}"] = lambda tensors, n: make(tensors[-1], n)


def _inner(x: keras.KerasTensor) -> tuple[int, ...]:
    return tuple(x.shape[1:])


def _rolled(x: keras.KerasTensor, n: int) -> list[int]:
    axes = list(range(1, len(x.shape)))
    return [0, *axes[n % len(axes) :], *axes[: n % len(axes)]]


def _split(x, n):
    half = x.shape[-1] // 2
    whole = ops.split(x, 2, -1) if x.shape[-1] % 2 == 0 and n % 2 else ops.split(x, [half], -1)
    if half == 0:
        return None
    return pick((ops.concatenate(whole[::-1], -1), whole[0], whole[-1]), n // 2)


def _spatial_sizes(x: keras.KerasTensor, n: int):
    if spatial_rank(x) != 2 or not is_small(x):
        return None
    return ops.image.resize(x, (5, 3 + n % 2), "nearest" if n % 2 else "bilinear")


UNARY = (
    "relu6 gelu exp tanh square abs negative sigmoid silu softplus leaky_relu elu sign sin "
    "cbrt floor stop_gradient log_sigmoid hard_tanh arctan log1p"
).split()
"""Operations that keep the shape."""
REDUCTIONS = "mean sum max min var std prod logsumexp median norm".split()

_operation("unary", lambda x, n: getattr(ops, pick(UNARY, n))(x / 3))
_operation("more_unary", lambda x, n: getattr(ops, pick(UNARY[12:], n))(ops.abs(x)))
_operation("clip", lambda x, n: ops.clip(x, -1, 1 + n))
_operation("power", lambda x, n: pick((lambda: x**2, lambda: -x, lambda: 1 / (3 + x**2)), n)())
_operation(
    "reshape_all",
    lambda x, n: (
        ops.reshape(x, (-1, *pick(((math.prod(_inner(x)),), (*_inner(x), 1), (1, *_inner(x))), n)))
        if n % 3 == 0 or len(x.shape) < 5
        else None
    ),
)
_operation(
    "reshape_split",
    lambda x, n: (
        ops.reshape(
            x, (-1, *x.shape[1:-1], *pick(((2, x.shape[-1] // 2), (x.shape[-1] // 2, 2)), n))
        )
        if x.shape[-1] % 2 == 0 and len(x.shape) < 5
        else None
    ),
)
_operation("transpose", lambda x, n: ops.transpose(x, _rolled(x, n)))
_operation("swapaxes", lambda x, n: ops.swapaxes(x, 1, -1) if n % 2 else ops.moveaxis(x, -1, 1))
_operation("expand", lambda x, n: ops.squeeze(ops.expand_dims(x, 1 + n % 2), 1 + n % 2))
_operation(
    "stack",
    lambda x, n: (
        ops.stack([x, pick((x * 2, layers.Dense(x.shape[-1])(x)), n)], 1 + n % 2)
        if len(x.shape) < 5
        else None
    ),
)
_operation("concatenate", lambda x, n: ops.concatenate([x, layers.Dense(3)(x)], -1))
_operation("split", _split)
_operation("unstack", lambda x, n: ops.unstack(x, axis=1)[0] if len(x.shape) > 2 else None)
_operation(
    "array_split", lambda x, n: ops.array_split(x, 2, -1)[n % 2] if x.shape[-1] > 1 else None
)
_operation(
    "slice_channels",
    lambda x, n: (
        pick(
            (
                lambda: x[..., : -1 - n % 2],
                lambda: x[..., 1:],
                lambda: x[..., ::-1],
                lambda: x[..., ::2],
                lambda: x[:, None, ..., -3:],
            ),
            n,
        )()
        if x.shape[-1] > 3 and len(x.shape) < 5
        else None
    ),
)
_operation(
    "slice_positions",
    lambda x, n: (
        pick((lambda: x[:, 0], lambda: x[:, ::2], lambda: x[:, 1:]), n)()
        if len(x.shape) > 2 and x.shape[1] > 1
        else None
    ),
)
_operation(
    "take",
    lambda x, n: (
        ops.take(x, pick(([0, 2], np.array([2, 1, 0])), n), -1 if n % 3 else 1)
        if x.shape[-1] > 2 and x.shape[1] > 2
        else None
    ),
)
_operation("flip", lambda x, n: ops.flip(x, -1 if n % 2 else 1))
_operation("roll", lambda x, n: ops.roll(x, 1, -1 if n % 2 else 1))
_operation(
    "repeat",
    lambda x, n: ops.repeat(x, 2, -1) if n % 2 else ops.tile(x, (1,) * (len(x.shape) - 1) + (2,)),
)
_operation(
    "pad",
    lambda x, n: (
        ops.pad(x, [(0, 0)] * (len(x.shape) - 2) + [(1, 0), (0, n % 2)])
        if len(x.shape) > 2
        else ops.pad(x, ((0, 0), (1, 1)))
    ),
)
_operation(
    "reduce",
    lambda x, n: (
        getattr(ops, pick(REDUCTIONS, n))(x / 2, axis=1, keepdims=n % 3 == 0)
        if len(x.shape) > 2
        else None
    ),
)
_operation(
    "reduce_channels",
    lambda x, n: x * getattr(ops, pick(REDUCTIONS, n))(x / 4, axis=-1, keepdims=True),
)
_operation(
    "any",
    lambda x, n: ops.cast(pick((ops.any, ops.all), n)(x > 0, axis=1, keepdims=True), "float32") * x,
)
_operation(
    "softmax",
    lambda x, n: pick((ops.softmax, ops.log_softmax, ops.normalize), n)(x, axis=1 if n % 2 else -1),
)
_operation(
    "where",
    lambda x, n: ops.where(x > 0.1 * n, x, pick((0.0, x * 0.1, layers.Dense(x.shape[-1])(x)), n)),
)
_operation(
    "compare",
    lambda x, n: (
        x * ops.cast(pick((ops.less, ops.greater_equal, ops.not_equal), n)(x, 0.3), "float32")
    ),
)
_operation(
    "max_pool",
    lambda x, n: (
        pick((ops.max_pool, ops.average_pool), n)(x, 2, 1 + n % 2, "same")
        if 0 < spatial_rank(x) < 3
        else None
    ),
)
_operation("resize", _spatial_sizes)
_operation(
    "argmax", lambda x, n: ops.one_hot(ops.argmax(x, axis=-1), 4) if len(x.shape) < 5 else None
)
_operation("sort", lambda x, n: pick((ops.sort, ops.cumsum), n)(x, axis=1 if n % 4 < 2 else -1))
_operation("broadcast", lambda x, n: ops.max(x, 0, keepdims=True) * 0.1 + x)
_operation("layer_of_operations", lambda x, n: OfOperations(n % 2 == 1)(x))
_operation("constant", lambda x, n: x + np.arange(x.shape[-1], dtype="float32"))


@step
def ops_product(tensors, n):
    """Attention by hand: contracted channels, channels that pass."""
    x = tensors[-1]
    if len(x.shape) != 3:
        return None
    q, k, v = (layers.Dense(4 + (part == 2))(x) for part in range(3))
    if n % 3 == 0:
        return ops.softmax(q @ ops.swapaxes(k, 1, 2)) @ v
    scores = ops.einsum("bqc,bkc->bqk", q, k)
    if n % 3 == 1:
        return ops.einsum("bqk,bkc->bqc", scores, v)
    return ops.matmul(ops.transpose(v, (0, 2, 1)), q)


@step
def ops_constant_product(tensors, n):
    x = tensors[-1]
    matrix = np.random.default_rng(n).normal(size=(x.shape[-1], 4)).astype("float32")
    return pick((ops.matmul, ops.dot), n)(x, matrix) if n % 3 else ops.tensordot(x, matrix, 1)


@step
def concatenate(tensors, n):
    x = tensors[-1]
    like = [t for t in tensors if t.shape[:-1] == x.shape[:-1] and t.shape[-1] <= 8]
    if len(x.shape) > 2 and n % 3 == 0:
        return layers.Concatenate(axis=1)([x, layers.Dense(x.shape[-1])(x)])
    return layers.Concatenate()([x, pick(like, n)] if like else [x, layers.Dense(2)(x)])


def assemble(spatial: int, recipe: Sequence[tuple[str, int]]) -> keras.Model:
    """A model with random weights: a producer, the steps that can be taken, a consumer, an end."""
    tensors = [keras.Input(INPUT_SHAPES[spatial])]
    first = "convolution" if spatial else "dense"
    for name, number in [(first, 1), *recipe, ("dense", 1)]:
        made = STEPS[name](tensors, number)
        if made is not None and 0 < math.prod(made.shape[1:]) <= 3000:
            tensors.append(made)
    model = keras.Model(tensors[0], layers.Dense(2, name="end")(tensors[-1]))
    randomise(model, len(recipe))
    return model


def examples_of_models(test: Callable) -> Callable:
    """Random models take a second each: 8 of them in `make test`, all in the other profiles."""
    examples = settings().max_examples
    return settings(max_examples=8 if examples <= 20 else examples)(test)


def mlp(**compile_arguments) -> keras.Model:
    """A hidden layer of 8 units, one of 6, with random weights; compiled where told how."""
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(8, "relu", name="hidden_1"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(6, "tanh", name="hidden_2"),
            layers.Dense(2, name="end"),
        ],
        name="mlp",
    )
    if compile_arguments:
        model.compile(loss="mse", **compile_arguments)
    return randomise(model)


def convnet(**compile_arguments) -> keras.Model:
    """Two convolutions and two dense layers with random weights; compiled where told how."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, name="conv_1"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.MaxPooling2D(name="pool"),
            layers.Conv2D(5, 2, activation="tanh", name="conv_2"),
            layers.Flatten(name="flatten"),
            layers.Dense(7, "relu", name="hidden"),
            layers.Dropout(0.3, seed=1, name="dropout"),
            layers.Dense(3, "softmax", name="end"),
        ],
        name="convnet",
    )
    if compile_arguments:
        model.compile(loss="sparse_categorical_crossentropy", **compile_arguments)
    return randomise(model)


def digits_like(count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels for `convnet`: three classes, told apart by where the light is."""
    random = np.random.default_rng(0)
    y = random.integers(3, size=count)
    x = random.normal(0, 0.3, (count, 8, 8, 2)).astype("float32")
    for sample, label in zip(x, y, strict=True):
        sample[2 * label : 2 * label + 3] += 1
    return x, y


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives every weight a random value of a size that keeps activations near 1."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if "variance" in variable.path:
            value = random.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            read = shape[:-2] if "depthwise" in variable.path else shape[:-1]
            value = random.normal(0, math.prod(read) ** -0.5, shape)
        else:
            value = random.normal("gamma" in variable.path, 0.5, shape)
        variable.assign(value)
    return model


def samples(model: keras.Model, count: int = 8, seed: int = 0) -> np.ndarray:
    """Random inputs for a model of one input."""
    shape = (count, *model.inputs[0].shape[1:])
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def outputs(model: keras.Model, x) -> np.ndarray:
    """What a model predicts, several outputs side by side; quicker than `predict` for a batch."""
    made = [y.numpy() for y in keras.tree.flatten(model(x, training=False))]
    return made[0] if len(made) == 1 else np.hstack([y.reshape(len(y), -1) for y in made])


def all_layers(model: keras.Model) -> Iterator[layers.Layer]:
    """All layers, those of nested models too, in a fixed order."""
    for layer in [model] if isinstance(model, OwnModel) else model.layers:
        if isinstance(layer, Composite):
            yield from layer.parts
        elif isinstance(layer, OwnModel):
            whole = isinstance(layer.body, keras.Model)
            yield from all_layers(layer.body) if whole else [layer.body]
            yield from layer.parts[1:]
        elif isinstance(layer, keras.Model):
            yield from all_layers(layer)
        else:
            yield layer


@contextmanager
def functions_compiled() -> Iterator[None]:
    """Within, TensorFlow's functions are compiled: from some twenty steps on that is quicker."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(False)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def trained_once(
    make: Callable[[], keras.Model], x: np.ndarray, y: np.ndarray, epochs: int = 10
) -> Callable[[], keras.Model]:
    """Returns a function that makes models with the weights of one that was trained, once."""

    @functools.cache
    def learnt() -> list[np.ndarray]:
        model = make()
        with functions_compiled():
            model.fit(x, y, epochs=epochs, verbose=0)
        return model.get_weights()

    def made() -> keras.Model:
        weights, model = learnt(), make()
        model.set_weights(weights)
        return model

    return made
