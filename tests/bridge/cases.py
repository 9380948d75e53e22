"""Small models that hold every layer class that goes over the bridge."""

import keras
from keras import layers as k

VECTOR, ROW, IMAGE, VOLUME = (6,), (9, 4), (9, 9, 4), (5, 5, 5, 2)


def _inner() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), k.Dense(3, "relu"), k.Dense(2)])


def _twice_tanh(x):
    return 2 * keras.ops.tanh(x)


OF_ONE = {
    "Dense": (VECTOR, lambda: k.Dense(4, "gelu", kernel_regularizer="l2")),
    "EinsumDense": (ROW, lambda: k.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d")),
    "Conv1D": (ROW, lambda: k.Conv1D(4, 3, padding="causal", dilation_rate=2)),
    "Conv2D": (IMAGE, lambda: k.Conv2D(4, 3, 2, padding="same", activation="relu")),
    "Conv3D": (VOLUME, lambda: k.Conv3D(4, 3)),
    "DepthwiseConv1D": (ROW, lambda: k.DepthwiseConv1D(3, depth_multiplier=2)),
    "DepthwiseConv2D": (IMAGE, lambda: k.DepthwiseConv2D(3, padding="same")),
    "SeparableConv1D": (ROW, lambda: k.SeparableConv1D(4, 3)),
    "SeparableConv2D": (IMAGE, lambda: k.SeparableConv2D(4, 3, depth_multiplier=2)),
    "Conv1DTranspose": (ROW, lambda: k.Conv1DTranspose(4, 3, 2)),
    "Conv2DTranspose": (IMAGE, lambda: k.Conv2DTranspose(4, 3, 2, "same", output_padding=1)),
    "Conv3DTranspose": (VOLUME, lambda: k.Conv3DTranspose(4, 3, 2)),
    "BatchNormalization": (ROW, k.BatchNormalization),
    "LayerNormalization": (ROW, k.LayerNormalization),
    "GroupNormalization": (IMAGE, lambda: k.GroupNormalization(2)),
    "UnitNormalization": (ROW, k.UnitNormalization),
    "Normalization adapted": (VECTOR, k.Normalization),
    "Normalization given": (VECTOR, lambda: k.Normalization(mean=[1.0] * 6, variance=[2.0] * 6)),
    "LSTM": (ROW, lambda: k.LSTM(6, return_sequences=True)),
    "GRU": (ROW, lambda: k.GRU(6)),
    "GRU reset before": (ROW, lambda: k.GRU(6, reset_after=False)),
    "SimpleRNN": (ROW, lambda: k.SimpleRNN(6, go_backwards=True)),
    "RNN of several cells": (ROW, lambda: k.RNN([k.LSTMCell(5), k.GRUCell(4)])),
    "RNN of a cell": (ROW, lambda: k.RNN(k.SimpleRNNCell(5), return_sequences=True)),
    "Bidirectional": (ROW, lambda: k.Bidirectional(k.LSTM(6, return_sequences=True))),
    "Bidirectional sum": (ROW, lambda: k.Bidirectional(k.GRU(6), merge_mode="sum")),
    "ConvLSTM1D": ((3, *ROW), lambda: k.ConvLSTM1D(3, 3)),
    "ConvLSTM2D": ((3, *IMAGE), lambda: k.ConvLSTM2D(3, 3)),
    "ConvLSTM3D": ((2, *VOLUME), lambda: k.ConvLSTM3D(3, 3)),
    "TimeDistributed": (ROW, lambda: k.TimeDistributed(k.Dense(3, "relu"))),
    "TimeDistributed model": (ROW, lambda: k.TimeDistributed(_inner())),
    "PReLU": (IMAGE, lambda: k.PReLU(shared_axes=[1, 2])),
    "LeakyReLU": (VECTOR, lambda: k.LeakyReLU(0.1)),
    "ELU": (VECTOR, lambda: k.ELU(0.5)),
    "ReLU": (VECTOR, lambda: k.ReLU(6, 0.1, 0.5)),
    "Softmax": (ROW, lambda: k.Softmax(axis=1)),
    "Dropout": (VECTOR, lambda: k.Dropout(0.5)),
    "SpatialDropout1D": (ROW, lambda: k.SpatialDropout1D(0.5)),
    "SpatialDropout2D": (IMAGE, lambda: k.SpatialDropout2D(0.5)),
    "SpatialDropout3D": (VOLUME, lambda: k.SpatialDropout3D(0.5)),
    "GaussianDropout": (VECTOR, lambda: k.GaussianDropout(0.5)),
    "GaussianNoise": (VECTOR, lambda: k.GaussianNoise(0.5)),
    "AlphaDropout": (VECTOR, lambda: k.AlphaDropout(0.5)),
    "MaxPooling1D": (ROW, k.MaxPooling1D),
    "MaxPooling2D": (IMAGE, lambda: k.MaxPooling2D(3, 2, "same")),
    "MaxPooling3D": (VOLUME, k.MaxPooling3D),
    "AveragePooling1D": (ROW, lambda: k.AveragePooling1D(2)),
    "AveragePooling2D": (IMAGE, lambda: k.AveragePooling2D(3, 2, "same")),
    "AveragePooling3D": (VOLUME, lambda: k.AveragePooling3D(2)),
    "GlobalAveragePooling1D": (ROW, k.GlobalAveragePooling1D),
    "GlobalAveragePooling2D": (IMAGE, lambda: k.GlobalAveragePooling2D(keepdims=True)),
    "GlobalAveragePooling3D": (VOLUME, k.GlobalAveragePooling3D),
    "GlobalMaxPooling1D": (ROW, k.GlobalMaxPooling1D),
    "GlobalMaxPooling2D": (IMAGE, k.GlobalMaxPooling2D),
    "GlobalMaxPooling3D": (VOLUME, k.GlobalMaxPooling3D),
    "ZeroPadding1D": (ROW, lambda: k.ZeroPadding1D(2)),
    "ZeroPadding2D": (IMAGE, lambda: k.ZeroPadding2D(((1, 0), (0, 2)))),
    "ZeroPadding3D": (VOLUME, k.ZeroPadding3D),
    "Cropping1D": (ROW, k.Cropping1D),
    "Cropping2D": (IMAGE, lambda: k.Cropping2D(((1, 0), (0, 2)))),
    "Cropping3D": (VOLUME, k.Cropping3D),
    "UpSampling1D": (ROW, k.UpSampling1D),
    "UpSampling2D": (IMAGE, lambda: k.UpSampling2D((2, 3), interpolation="bilinear")),
    "UpSampling3D": (VOLUME, k.UpSampling3D),
    "Flatten": (ROW, k.Flatten),
    "Reshape": (ROW, lambda: k.Reshape((3, -1))),
    "Permute": (ROW, lambda: k.Permute((2, 1))),
    "RepeatVector": (VECTOR, lambda: k.RepeatVector(4)),
    "Rescaling": (ROW, lambda: k.Rescaling([0.5, 1.0, 2.0, 3.0], 1.0)),
    "Resizing": (IMAGE, lambda: k.Resizing(4, 5)),
    "CenterCrop": (IMAGE, lambda: k.CenterCrop(4, 5)),
    "RandomFlip": (IMAGE, k.RandomFlip),
    "RandomRotation": (IMAGE, lambda: k.RandomRotation(0.1)),
    "RandomZoom": (IMAGE, lambda: k.RandomZoom(0.1)),
    "RandomTranslation": (IMAGE, lambda: k.RandomTranslation(0.1, 0.1)),
    "RandomContrast": (IMAGE, lambda: k.RandomContrast(0.1)),
    "Identity": (VECTOR, k.Identity),
    "ActivityRegularization": (VECTOR, lambda: k.ActivityRegularization(0.1)),
    "Lambda": (VECTOR, lambda: k.Lambda(_twice_tanh)),
    "softmax": (VECTOR, lambda: k.Activation("softmax")),
    "hard_sigmoid": (VECTOR, lambda: k.Activation("hard_sigmoid")),
    "Dense hard_silu": (VECTOR, lambda: k.Dense(5, "hard_silu")),
    "silu": (VECTOR, lambda: k.Activation("silu")),
    "relu6": (VECTOR, lambda: k.Activation("relu6")),
    "log_softmax": (VECTOR, lambda: k.Activation("log_softmax")),
    "leaky_relu": (VECTOR, lambda: k.Activation("leaky_relu")),
}
"""The shape of an input, and what makes the layer that reads it."""

_MERGES = (k.Add, k.Subtract, k.Multiply, k.Average, k.Maximum, k.Minimum, k.Concatenate)

OF_SEVERAL = {
    "MultiHeadAttention": (
        [(5, 8), (7, 8)],
        lambda q, v: k.MultiHeadAttention(2, 4, value_dim=3, output_shape=6)(q, v),
    ),
    "MultiHeadAttention causal": (
        [(5, 8)],
        lambda x: k.MultiHeadAttention(2, 4)(
            x, x, use_causal_mask=True, return_attention_scores=True
        ),
    ),
    "Attention": ([(5, 8), (7, 8)], lambda q, v: k.Attention(use_scale=True)([q, v])),
    "Attention concat": ([(5, 8), (7, 8)], lambda q, v: k.Attention(score_mode="concat")([q, v])),
    "AdditiveAttention": ([(5, 8), (7, 8)], lambda q, v: k.AdditiveAttention()([q, v])),
    "Dot": ([(5, 8), (7, 8)], lambda a, b: k.Dot(2, normalize=True)([a, b])),
    "LSTM of a state": (
        [(5, 8), (4,), (4,)],
        lambda x, h, c: k.LSTM(4, return_state=True)(x, initial_state=[h, c]),
    ),
    "GRU of a state": (
        [(5, 8), (4,)],
        lambda x, h: k.GRU(4, return_state=True)(x, initial_state=h),
    ),
    "Bidirectional of states": (
        [(5, 8), (4,), (4,)],
        lambda x, h, g: k.Bidirectional(k.GRU(4))(x, initial_state=[h, g]),
    ),
    "BatchNormalization not training": (
        [(5,)],
        lambda x: k.BatchNormalization()(x, training=False),
    ),
    **{
        merge.__name__: ([(5, 8), (5, 8)], lambda a, b, merge=merge: merge()([a, b]))
        for merge in _MERGES
    },
}
"""The shapes of the inputs, and what connects them."""

WITH_MASKS = {
    "Embedding": lambda: keras.Sequential(
        [keras.Input((5,), dtype="int32"), k.Embedding(10, 4, mask_zero=True), k.LSTM(3)]
    ),
    "Masking": lambda: keras.Sequential(
        [keras.Input((5, 4)), k.Masking(), k.Bidirectional(k.GRU(3))]
    ),
    "CategoryEncoding": lambda: keras.Sequential(
        [keras.Input((5,), dtype="int32"), k.CategoryEncoding(10, output_mode="multi_hot")]
    ),
}
"""Models on tokens, or on rows of zeros at the end."""


def _of_one(case) -> keras.Model:
    shape, make = case
    return keras.Sequential([keras.Input(shape), make()])


def _of_several(case) -> keras.Model:
    shapes, connect = case
    tensors = [keras.Input(shape) for shape in shapes]
    return keras.Model(tensors, connect(*tensors))


CASES = {
    **{name: lambda case=case: _of_one(case) for name, case in OF_ONE.items()},
    **{name: lambda case=case: _of_several(case) for name, case in OF_SEVERAL.items()},
    **WITH_MASKS,
}
"""What makes a model, by name."""
