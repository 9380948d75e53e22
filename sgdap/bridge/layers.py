"""Layers of one package as layers of the other, with their weights; connects none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from sgdap.bridge import activations
from sgdap.bridge.configs import category_of, dtype_name, other_object, translated
from sgdap.bridge.sides import NotConvertibleError, Sides

SAME = frozenset(
    """
    Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average
    AveragePooling1D AveragePooling2D AveragePooling3D BatchNormalization Bidirectional
    CategoryEncoding CenterCrop Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D
    Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping2D Cropping3D Dense
    DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Flatten GRU GRUCell
    GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization Identity LSTM LSTMCell Lambda LayerNormalization LeakyReLU Masking
    MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum MultiHeadAttention Multiply
    Normalization PReLU Permute RNN RandomContrast RandomFlip RandomRotation RandomTranslation
    RandomZoom ReLU RepeatVector Rescaling Reshape Resizing SeparableConv1D SeparableConv2D
    SimpleRNN SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D
    StackedRNNCells Subtract TimeDistributed UnitNormalization UpSampling1D
    UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """.split()
)
"""Names of the layer classes that compute the same in both packages."""

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5")
"""Ways to make images of other sizes that both packages know."""

_INSIDE = {
    "Bidirectional": ("forward_layer", "backward_layer"),
    "RNN": ("cell",),
    "StackedRNNCells": ("cells",),
    "TimeDistributed": ("layer",),
}
"""The attributes of layer classes that hold other layers."""


_PROJECTIONS = ("query", "key", "value", "attention_output")
"""The layers that attention is made of."""

_RENAMED_WEIGHTS = {"depthwise_kernel": "kernel"}
"""Weights that the one package calls by another name than the other."""


@dataclass(frozen=True, eq=False)
class OtherLayer:
    """A layer of the other package.

    Attributes:
        layer: The layer, not built.
        tail: The activation that its class lacks; None where there is no need.
    """

    layer: Any
    tail: Callable[[Any], Any] | None = None


def other_layer(
    layer: Any, name: str, sides: Sides, other_inside: Callable[[Any], Any]
) -> OtherLayer:
    """Makes the equal of a layer, not built.

    Args:
        layer: The layer.
        name: The new one's name.
        sides: Where it comes from and goes.
        other_inside: Makes the equals of the layers inside it.

    Raises:
        NotConvertibleError: There is none.
    """
    class_name = type(layer).__name__
    source: Any = getattr(sides.source.layers, class_name, None)
    target: Any = getattr(sides.target.layers, class_name, None)
    if class_name not in SAME or type(layer) is not source:
        raise NotConvertibleError(f"{sides.target_name} has no equal of this class")
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise NotConvertibleError("it has LoRA enabled or is quantized")
    if class_name == "Lambda":
        return OtherLayer(_other_lambda(layer, name, target))
    config = translated(layer.get_config(), source, target)
    config["name"] = name
    if "dtype" in config:
        config["dtype"] = dtype_name(config["dtype"])
    if config.get("interpolation", "nearest") not in _INTERPOLATIONS:
        raise NotConvertibleError(f"there is no interpolation={config['interpolation']!r}")
    if class_name == "BatchNormalization" and not isinstance(config["axis"], int):
        (config["axis"],) = config["axis"]
    tail = None
    for key in list(config):
        if category_of(key) is not None:
            config[key] = other_object(config[key], key, sides)
            if config[key] is None and key.endswith("initializer"):
                del config[key]
        elif key in ("activation", "recurrent_activation"):
            wanted = activations.activation_name(config[key])
            config[key] = activations.other_name(wanted, sides)
            if config[key] is None:
                if key == "recurrent_activation" or "recurrent_activation" in config:
                    raise NotConvertibleError(f"{sides.target_name} has no {key}={wanted!r}")
                config[key] = "linear"
                tail = activations.tail(wanted, name, config.get("dtype"), sides)
    if class_name in _INSIDE:
        config.update(_inside(layer, other_inside))
    return OtherLayer(target(**config), tail)


def _inside(layer: Any, other_inside: Callable[[Any], Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for attribute in _INSIDE[type(layer).__name__]:
        held = getattr(layer, attribute)
        listed = isinstance(held, (list, tuple))
        made[attribute] = [*map(other_inside, held)] if listed else other_inside(held)
    if "forward_layer" in made:
        made["layer"] = made.pop("forward_layer")
    return made


def _other_lambda(layer: Any, name: str, target: Any) -> Any:
    """A function of the user's runs in both packages: on tensors of TensorFlow."""
    shape = getattr(layer, "_output_shape", None)
    return target(
        layer.function,
        output_shape=shape,
        arguments=layer.arguments,
        name=name,
        dtype=dtype_name(
            layer.dtype_policy.name if hasattr(layer, "dtype_policy") else layer.dtype
        ),
    )


def copy_state(source: Any, target: Any, trained: Set[int]) -> None:
    """Copies the weights of a layer to its equal, by order, names and shapes, and freezes it alike.

    Models inside it are left to whoever made their equals.

    Args:
        source: A built layer.
        target: Its equal in the other package, built.
        trained: The `id` of each weight that a `fit` of the source's model changes. The packages
            differ in what a layer does that is set to train in a model that is not.

    Raises:
        ValueError: They have other names or shapes.
    """
    for theirs, mine in _parts_inside(source, target):
        if not hasattr(theirs, "inputs"):
            copy_state(theirs, mine, trained)
    if type(source).__name__ not in _INSIDE:
        _copy_weights(source, target)
    own = source.trainable_weights
    trainable = source.trainable and (not own or any(id(weight) in trained for weight in own))
    if trainable != target.trainable:
        target.trainable = trainable


def _parts_inside(source: Any, target: Any) -> Iterator[tuple[Any, Any]]:
    for attribute in _INSIDE.get(type(source).__name__, ()):
        held = [getattr(layer, attribute) for layer in (source, target)]
        theirs, mine = (x if isinstance(x, (list, tuple)) else [x] for x in held)
        yield from zip(theirs, mine, strict=True)


def _copy_weights(source: Any, target: Any) -> None:
    theirs, mine = ([w for w in x.weights if _name(w) != "count"] for x in (source, target))
    told = [[(_name(w), tuple(w.shape)) for w in weights] for weights in (theirs, mine)]
    if told[0] != told[1]:
        raise ValueError(
            f"Layer '{source.name}' (of class {type(source).__name__}) has other weights in "
            f"{type(target).__module__.split('.')[0]}: {told[1]} in the place of {told[0]}."
        )
    for weight, value in zip(mine, theirs, strict=True):
        weight.assign(value.numpy())
    if type(source).__name__ == "Normalization" and theirs:
        target.finalize_state()


def _name(weight: Any) -> str:
    """A weight's name, with that of the layer that it is of: attention has four kernels."""
    path = str(getattr(weight, "path", weight.name)).split(":")[0].split("/")
    name = _RENAMED_WEIGHTS.get(path[-1], path[-1])
    return "/".join([*(part for part in path[-2:-1] if part in _PROJECTIONS), name])
