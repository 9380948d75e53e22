"""Small architectures that users write, from plain Keras layers."""

import keras
from keras import layers

ZOO = {}
"""Functions that make a model, by name."""


def architecture(function):
    ZOO[function.__name__] = function
    return function


def conv_block(x, filters: int, strides: int = 1, groups: int = 1):
    x = layers.Conv2D(filters, 3, strides, padding="same", groups=groups, use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def transformer_block(x, heads: int = 2):
    width = x.shape[-1]
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads)(y, y)])
    y = layers.LayerNormalization()(x)
    y = layers.Dense(2 * width, "gelu")(y)
    return layers.Add()([x, layers.Dense(width)(layers.Dropout(0.1)(y))])


class PositionEmbedding(layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="normal", name="table")

    def call(self, x):
        return x + self.table


class ClassToken(layers.Layer):
    """Puts a learned vector before a sequence."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="normal", name="token")

    def call(self, x):
        token = keras.ops.repeat(self.token, keras.ops.shape(x)[0], axis=0)
        return keras.ops.concatenate([token, x], axis=1)


for _layer in (PositionEmbedding, ClassToken):
    keras.saving.register_keras_serializable("zoo")(_layer)


@architecture
def text_transformer():
    tokens = keras.Input((8,), dtype="int32")
    positions = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1)
    x = layers.Embedding(20, 12)(tokens) + layers.Embedding(10, 12)(positions)
    for _ in range(2):
        x = transformer_block(x)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(tokens, layers.Dense(3)(layers.Dense(10, "relu")(x)))


@architecture
def vision_transformer_with_convolved_patches():
    images = keras.Input((12, 12, 3))
    x = layers.Conv2D(12, 4, strides=4)(images)
    x = ClassToken()(layers.Reshape((9, 12))(x))
    x = PositionEmbedding()(x)
    for _ in range(2):
        x = transformer_block(x)
    x = layers.LayerNormalization()(x)[:, 0]
    return keras.Model(images, layers.Dense(3)(layers.Dense(10, "tanh")(x)))


@architecture
def vision_transformer_with_reshaped_patches():
    images = keras.Input((12, 12, 3))
    x = layers.Reshape((3, 4, 3, 12))(images)
    x = layers.Reshape((9, 48))(layers.Permute((1, 3, 2, 4))(x))
    x = PositionEmbedding()(layers.Dense(12)(x))
    x = transformer_block(x)
    return keras.Model(images, layers.Dense(3)(layers.Flatten()(layers.Dense(6, "relu")(x))))


@architecture
def u_net():
    images = x = keras.Input((16, 16, 2))
    skips = []
    for filters in (6, 8):
        x = conv_block(conv_block(x, filters), filters)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = conv_block(x, 12)
    for filters in (8, 6):
        x = layers.Conv2DTranspose(filters, 2, strides=2, padding="same")(x)
        x = layers.Concatenate()([x, skips.pop()])
        x = conv_block(conv_block(x, filters), filters)
    return keras.Model(images, layers.Conv2D(2, 1, activation="sigmoid")(x))


@architecture
def dense_net():
    images = keras.Input((8, 8, 2))
    x = layers.Conv2D(8, 3, padding="same")(images)
    for _ in range(4):
        x = layers.Concatenate()([x, conv_block(layers.BatchNormalization()(x), 5)])
    x = layers.AveragePooling2D(2)(layers.Conv2D(10, 1)(x))
    return keras.Model(images, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@architecture
def squeeze_and_excite():
    images = x = keras.Input((8, 8, 2))
    for filters in (8, 8, 12):
        x = conv_block(x, filters)
        gate = layers.GlobalAveragePooling2D()(x)
        gate = layers.Dense(filters, "sigmoid")(layers.Dense(4, "relu")(gate))
        x = layers.Multiply()([x, layers.Reshape((1, 1, filters))(gate)])
    return keras.Model(images, layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))


@architecture
def inception():
    images = x = keras.Input((9, 9, 2))
    for _ in range(2):
        narrow = conv_block(layers.Conv2D(4, 1)(x), 6)
        wide = layers.Conv2D(5, (5, 1), padding="same")(layers.Conv2D(4, (1, 5), padding="same")(x))
        pooled = layers.Conv2D(4, 1)(layers.MaxPooling2D(3, 1, padding="same")(x))
        x = layers.Concatenate()([layers.Conv2D(5, 1, activation="relu")(x), narrow, wide, pooled])
    return keras.Model(images, layers.Dense(3)(layers.Flatten()(layers.AveragePooling2D(3)(x))))


@architecture
def recurrent_text():
    tokens = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8)(tokens)
    x = layers.LSTM(10, return_sequences=True)(x)
    x = layers.GRU(8)(layers.Dropout(0.2)(x))
    return keras.Model(tokens, layers.Dense(3)(layers.Dense(6, "relu")(x)))


@architecture
def bidirectional_text():
    tokens = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8)(tokens)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    x = layers.Bidirectional(layers.GRU(5))(layers.Dense(8, "relu")(x))
    return keras.Model(tokens, layers.Dense(3)(layers.Dense(6, "relu")(x)))


@architecture
def several_inputs_and_outputs():
    image, facts = keras.Input((8, 8, 2), name="image"), keras.Input((5,), name="facts")
    x = layers.GlobalAveragePooling2D()(conv_block(conv_block(image, 6), 8))
    x = layers.Concatenate()([x, layers.Dense(7, "relu")(facts)])
    x = layers.Dense(10, "relu")(x)
    return keras.Model(
        [image, facts], [layers.Dense(3, "softmax")(x), layers.Dense(1)(layers.Dense(4)(x))]
    )


@architecture
def siamese():
    left, right = keras.Input((6, 6, 2)), keras.Input((6, 6, 2))
    encoder = [
        layers.Conv2D(6, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(8, "tanh"),
    ]
    codes = []
    for x in (left, right):
        for layer in encoder:
            x = layer(x)
        codes.append(x)
    apart = layers.Subtract()(codes)
    return keras.Model([left, right], layers.Dense(1)(layers.Multiply()([apart, apart])))


@architecture
def backbone_and_head():
    inner = x = keras.Input((8, 8, 2))
    for filters in (6, 8):
        x = conv_block(x, filters)
    backbone = keras.Model(inner, layers.Add()([x, layers.Conv2D(8, 1)(inner)]), name="backbone")
    head = keras.Sequential(
        [keras.Input((8, 8, 8)), layers.GlobalAveragePooling2D(), layers.Dense(6, "relu")],
        name="head",
    )
    images = keras.Input((8, 8, 2))
    return keras.Model(images, layers.Dense(3)(head(backbone(images))))


@architecture
def autoencoder():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, 2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(5),
            layers.Dense(4 * 4 * 6, "relu"),
            layers.Reshape((4, 4, 6)),
            layers.Conv2DTranspose(5, 3, 2, padding="same", activation="relu"),
            layers.Conv2D(2, 3, padding="same"),
        ]
    )


@architecture
def temporal_convolutions():
    series = x = keras.Input((16, 3))
    for dilation in (1, 2, 4):
        y = layers.Conv1D(8, 3, padding="causal", dilation_rate=dilation, activation="relu")(x)
        y = layers.Conv1D(8, 3, padding="causal", dilation_rate=dilation)(
            layers.SpatialDropout1D(0.1)(y)
        )
        x = layers.ReLU()(layers.Add()([y, layers.Conv1D(8, 1)(x)]))
    return keras.Model(series, layers.Dense(2)(layers.Flatten()(x)))


@architecture
def mlp_mixer():
    images = keras.Input((12, 12, 3))
    x = layers.Reshape((9, 10))(layers.Conv2D(10, 4, strides=4)(images))
    for _ in range(2):
        y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        y = layers.Dense(9)(layers.Dense(12, "gelu")(y))
        x = layers.Add()([x, layers.Permute((2, 1))(y)])
        y = layers.Dense(14, "gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(10)(y)])
    return keras.Model(images, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


@architecture
def res_next():
    images = keras.Input((8, 8, 2))
    x = conv_block(images, 8)
    for filters, strides in ((8, 1), (12, 2)):
        y = conv_block(layers.Conv2D(12, 1)(x), 12, strides, groups=3)
        y = layers.BatchNormalization()(layers.Conv2D(filters, 1)(y))
        short = x if strides == 1 else layers.Conv2D(filters, 1, strides)(x)
        x = layers.ReLU()(layers.Add()([short, y]))
    return keras.Model(images, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@architecture
def attention_by_einsum():
    series = keras.Input((6, 8))
    query, key, value = (layers.EinsumDense("bsc,chd->bshd", (6, 2, 4))(series) for _ in range(3))
    weights = keras.ops.softmax(keras.ops.einsum("bqhd,bkhd->bhqk", query, key) * 0.5)
    x = keras.ops.einsum("bhqk,bkhd->bqhd", weights, value)
    x = layers.EinsumDense("bshd,hdc->bsc", (6, 8))(x)
    return keras.Model(series, layers.Dense(3)(layers.Dense(10, "relu")(x)))


@architecture
def convolutional_lstm():
    video = keras.Input((4, 6, 6, 2))
    x = layers.ConvLSTM2D(5, 3, padding="same", return_sequences=True)(video)
    x = layers.GlobalAveragePooling2D()(layers.ConvLSTM2D(4, 3)(x))
    return keras.Model(video, layers.Dense(3)(x))


@architecture
def detector_with_a_shared_head():
    """A head that takes maps of any size, on maps of two."""
    inner = [layers.Conv2D(8, 3, padding="same", activation="relu")]
    inner += [layers.Conv2D(6, 3, padding="same", activation="relu"), layers.Conv2D(4, 1)]
    head = keras.Sequential([keras.Input((None, None, 8)), *inner], name="head")
    inputs = keras.Input((16, 16, 3))
    large = layers.Conv2D(8, 3, 2, padding="same", activation="relu")(inputs)
    small = layers.Conv2D(8, 3, 2, padding="same", activation="relu")(large)
    boxes = [layers.Reshape((-1, 4))(head(x)) for x in (large, small)]
    return keras.Model(inputs, layers.Concatenate(axis=1)(boxes))
