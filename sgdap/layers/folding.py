"""Folds activations that grow, and batch normalisations, into the layers before; never trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap._arguments import check_choice
from sgdap.layers.dynamic_range import DynamicRangeActivation
from sgdap.layers.equalization import equalize as even_out
from sgdap.model.copying import compile_alike, copied_operation
from sgdap.model.functional import functional_with, layer_names
from sgdap.model.program import Call, Program
from sgdap.model.tracing import trace

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Folded:
    """The changes that make a layer compute `α ⊙ a + s`, where `a` is its output before.

    Attributes:
        entries: The entries of its config that change.
        values: The new values of its variables, by name.
    """

    entries: Mapping[str, Any]
    values: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class _Affine:
    """What the layer before is to compute too, `α ⊙ a + s`, along an axis."""

    alpha: Array
    shift: Array
    axis: int


class _FoldingError(Exception):
    """Raised if a layer can't be folded; the message is the reason."""


def fold(model: Any, *, batch_normalization: bool = False, equalize: bool = False) -> Any:
    """Takes dynamic range activations out of a model, which predicts the same afterwards.

    α and δ go into the layer that makes `a`: `α (x W + b + δ)` is a layer with the kernel `α W`
    and the bias `α (b + δ)`. A batch normalisation in between takes them instead, as `α γ` and
    `α (β + δ)`. A layer without the bias that δ needs gets one. A plain activation of the same
    name replaces each `DynamicRangeActivation`; a clip stays, as `keras.ops.clip`.

    An activation can't be folded in these cases:

    * Another layer reads `a` too, or `a` is an output of the model: it would be scaled as well.
    * `a` is not made by a dense, convolutional or batch normalisation layer without an activation.
    * The activation is inside another layer (a wrapper, `activation=`).
    * Its class is derived from `DynamicRangeActivation`.

    Then it stays, and a warning gives the reason. An activation whose α is 1 and δ is 0 for all
    channels is always taken out.

    With `batch_normalization=True` normalisations leave in the same way: with their moving
    statistics `γ (a − μ) / √(σ² + ε) + β` is a product and a sum for each channel. Do so before a
    model is quantized or shipped; trained on, it is another one. Those that can't be folded stay.

    With `equalize=True` channels are then scaled so that the ranges of weights become even
    (cross-layer equalisation): what makes a channel is multiplied with s, and what reads it divided
    by s. That is done wherever only positively homogeneous operations stand between them: none, a
    ReLU, a leaky one, pooling, padding, reshapes, sums of which all parts are scaled, but no ReLU6
    and no sigmoid. It helps schemes with one range for a whole kernel.

    Args:
        model: A built `keras.Model`; it is not changed.
        batch_normalization: Whether `BatchNormalization` layers are folded too.
        equalize: Whether scales are moved between neighbouring layers.

    Returns:
        A new functional `keras.Model`, without the methods of `model`'s class, such as
        `train_step`. If `model` is compiled, it is compiled in the same way, with a new optimizer.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: `batch_normalization` or `equalize` is neither True nor False.
        ValueError: The model can't be traced or copied.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((8,)), keras.layers.Dense(16),
        ...     sgdap.layers.DynamicRangeActivation("relu", name="hidden"),
        ...     keras.layers.Dense(3)])
        >>> sgdap.fold(model).get_layer("hidden")
        <Activation name=hidden, built=True>
    """
    check_choice("batch_normalization", batch_normalization, (True, False))
    check_choice("equalize", equalize, (True, False))
    new = _without(model, _grows, _grown, _in_place_of_activation)
    if batch_normalization:
        new = _without(new, _is_normalization, _normalizing, _nothing)
    if equalize:
        even_out(new)
    return new


def _without(
    model: Any,
    leaves: Callable[[Any], bool],
    affine: Callable[[Any, str, Program], _Affine],
    instead: Callable[[Any, str], list[Any]],
) -> Any:
    """A copy of a model without the layers that `leaves`; what each computed is folded."""
    program = trace(model)
    names = layer_names(program)
    layers = program.layers()
    replacements: dict[str, list[Any]] = {}
    written: dict[str, Folded] = {}
    for path, layer in layers.items():
        if not leaves(layer):
            continue
        try:
            wanted = affine(layer, path, program)
            if not (np.all(wanted.alpha == 1) and np.all(wanted.shift == 0)):
                maker = _maker(program, path)
                if maker in written or maker in replacements:
                    raise _FoldingError(f"'{maker}' has taken another layer already, or leaves too")
                written[maker] = _folded(layers[maker], wanted, program)
        except _FoldingError as why:
            if _grows(layer):
                warnings.warn(
                    f"'{path}' of model '{model.name}' stays a DynamicRangeActivation: {why}. What "
                    "is saved or exported needs sgdap to load it.",
                    stacklevel=3,
                )
            continue
        replacements[path] = instead(layer, names[path])
    copies = {
        path: copied_operation(layers[path], path, {"name": names[path], **folded.entries})
        for path, folded in written.items()
    }
    replacements.update({path: [copy] for path, copy in copies.items()})
    new = functional_with(program, replacements)
    for path, copy in copies.items():
        _write(copy, layers[path], written[path].values)
    if model.compiled:
        compile_alike(new, model)
    return new


def _is_normalization(layer: Any) -> bool:
    return type(layer) is keras.layers.BatchNormalization


def _normalizing(layer: Any, path: str, program: Program) -> _Affine:
    """What a batch normalisation computes in `predict`."""
    if any(call.kwargs.get("training") for call in program.calls if call.path == path):
        raise _FoldingError("it is called with training=True, so it normalises by the batch")
    mean, variance = _value(layer.moving_mean), _value(layer.moving_variance)
    alpha = 1 / np.sqrt(variance + layer.epsilon)
    alpha *= _value(layer.gamma) if layer.scale else 1.0
    beta = _value(layer.beta) if layer.center else 0.0
    return _Affine(alpha, beta - alpha * mean, _output_axis(layer))


def _nothing(layer: Any, name: str) -> list[Any]:
    return [lambda inputs, **_: inputs]


def _in_place_of_activation(layer: DynamicRangeActivation, name: str) -> list[Any]:
    return [*_clip(layer), _plain(layer, name)]


def _grown(layer: Any, path: str, program: Program) -> _Affine:
    """What a dynamic range activation computes before its function, `α (a + δ)`."""
    _check_class(layer, path)
    alpha, delta = (np.asarray(v.numpy(), np.float64) for v in (layer.growth_rate, layer.offset))
    return _Affine(alpha, alpha * delta, layer.channel_axis)


def _grows(layer: Any) -> bool:
    """Whether a layer is a dynamic range activation or holds one."""
    return isinstance(layer, keras.Layer) and any(
        isinstance(inner, DynamicRangeActivation) for inner in _keras.flatten_layers(layer)
    )


def _check_class(layer: Any, path: str) -> None:
    kind = type(layer).__name__
    if not isinstance(layer, DynamicRangeActivation):
        raise _FoldingError(f"it is inside a {kind}; call it after '{path}' as a layer of its own")
    if type(layer) is not DynamicRangeActivation:
        raise _FoldingError(f"its class {kind} may compute something else")


def _clip(layer: DynamicRangeActivation) -> list[Callable[[Any], Any]]:
    bound = layer.bound
    if bound is None:
        return []
    return [lambda inputs, **_: keras.ops.clip(inputs, -bound, bound)]  # without its `training`


def _plain(layer: DynamicRangeActivation, name: str) -> Any:
    """The activation function f of a dynamic range activation, as a layer of its own."""
    dtype = layer.dtype_policy
    regularizer = layer.activity_regularizer
    if isinstance(layer.activation, keras.layers.Layer) and regularizer is None:
        return copied_operation(layer.activation, name, {"name": name, "dtype": dtype.name})
    return keras.layers.Activation(
        layer.activation, activity_regularizer=regularizer, name=name, dtype=dtype
    )


def _maker(program: Program, path: str) -> str:
    """The path of the layer before an activation; raises if anything else reads its outputs."""
    makers = {ref.index: call for call in program.calls for ref in call.outputs}
    readers: dict[int, list[str]] = {}
    for call in program.calls:
        for ref in call.inputs:
            readers.setdefault(ref.index, []).append(call.path)
    for ref in program.outputs:
        readers.setdefault(ref.index, []).append("the model's output")
    found: set[str] = set()
    for call in program.calls:
        if call.path != path:
            continue
        maker: Call | None = makers.get(call.inputs[0].index)
        if maker is None:
            raise _FoldingError("it reads an input of the model, so no layer can take α and δ")
        found.add(maker.path)
    if len(found) > 1:
        raise _FoldingError(
            f"it is called on what several layers make ({', '.join(sorted(found))}); give each an "
            "activation of its own"
        )
    (maker_path,) = found
    for call in program.calls:
        if call.path != maker_path:
            continue
        others = {reader for ref in call.outputs for reader in readers.get(ref.index, [])} - {path}
        if others:
            raise _FoldingError(
                f"what '{maker_path}' makes is read by {', '.join(sorted(others))} too, which "
                "would see it scaled"
            )
    return maker_path


def _folded(layer: Any, wanted: _Affine, program: Program) -> Folded:
    """The changes by which the layer before takes over α and s."""
    fold_into = _FOLDS.get(type(layer))
    kind = f"'{layer.name}' (of class {type(layer).__name__})"
    if fold_into is None:
        raise _FoldingError(f"it follows {kind}, which can't take α and δ")
    if getattr(layer, "activation", keras.activations.linear) is not keras.activations.linear:
        raise _FoldingError(f"{kind} has an activation of its own before it")
    if getattr(layer, "activity_regularizer", None) is not None:
        raise _FoldingError(f"{kind} has an activity regularizer, which would see it scaled")
    if getattr(layer, "lora_enabled", False) or layer.quantization_mode is not None:
        raise _FoldingError(f"{kind} has LoRA enabled or is quantized; fold first")
    call = next(call for call in program.calls if call.operation is layer)
    rank = len(program.shapes[call.outputs[0].index])
    if _output_axis(layer) % rank != wanted.axis % rank:
        raise _FoldingError(
            f"its channel_axis={wanted.axis} is not the axis of the channels of {kind}"
        )
    return fold_into(layer, wanted.alpha, wanted.shift)


def _output_axis(layer: Any) -> int:
    if isinstance(layer, keras.layers.BatchNormalization):
        if not isinstance(layer.axis, int):
            raise _FoldingError(f"'{layer.name}' normalises over several axes")
        return layer.axis
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def _value(variable: Any) -> Array:
    return np.asarray(variable.numpy(), np.float64)


def _with_bias(layer: Any, kernel: str, scaled: Array, alpha: Array, shift: Array) -> Folded:
    """`α (x W + b) + s = x (α W) + (α b + s)`."""
    if not layer.use_bias and not shift.any():
        return Folded({}, {kernel: scaled})
    bias = _value(layer.bias) if layer.use_bias else np.zeros(len(shift))
    return Folded({"use_bias": True}, {kernel: scaled, "bias": alpha * bias + shift})


def _last_axis(layer: Any, alpha: Array, shift: Array) -> Folded:
    return _with_bias(layer, "kernel", _value(layer.kernel) * alpha, alpha, shift)


def _transposed(layer: Any, alpha: Array, shift: Array) -> Folded:
    """A transposed convolution: the last axes of its kernel are outputs, inputs."""
    return _with_bias(layer, "kernel", _value(layer.kernel) * alpha[:, None], alpha, shift)


def _depthwise(layer: Any, alpha: Array, shift: Array) -> Folded:
    """A depthwise convolution: the last axes of its kernel are inputs, outputs per input."""
    kernel = _value(layer.kernel)
    scaled = kernel * alpha.reshape(kernel.shape[-2:])
    return _with_bias(layer, "kernel", scaled, alpha, shift)


def _separable(layer: Any, alpha: Array, shift: Array) -> Folded:
    scaled = _value(layer.pointwise_kernel) * alpha
    return _with_bias(layer, "pointwise_kernel", scaled, alpha, shift)


def _einsum(layer: Any, alpha: Array, shift: Array) -> Folded:
    """An EinsumDense: the last letter of its output marks the channel axis of its kernel."""
    inputs, output = layer.equation.replace(" ", "").split("->")
    letters, letter = inputs.split(",")[1], output[-1]
    if letter not in letters or "." in letters:
        raise _FoldingError(f"the last axis that '{layer.name}' makes is none of its kernel")
    shape = [1] * len(letters)
    shape[letters.index(letter)] = -1
    values = {"kernel": _value(layer.kernel) * alpha.reshape(shape)}
    axes = layer.bias_axes
    if axes is None and not shift.any():
        return Folded({}, values)
    if axes is None:
        return Folded({"bias_axes": letter}, {**values, "bias": shift})
    if letter not in axes:
        raise _FoldingError(f"the bias of '{layer.name}' does not lie along its last axis")
    return Folded({}, {**values, "bias": alpha * _value(layer.bias) + shift})


def _normalised(layer: Any, alpha: Array, shift: Array) -> Folded:
    """`α (γ x̂ + β) + s = (α γ) x̂ + (α β + s)`."""
    gamma = _value(layer.gamma) if layer.scale else np.ones(len(alpha))
    beta = _value(layer.beta) if layer.center else np.zeros(len(alpha))
    entries = {"scale": True, "center": True}
    return Folded(entries, {"gamma": alpha * gamma, "beta": alpha * beta + shift})


_FOLDS: dict[type, Callable[[Any, Array, Array], Folded]] = {
    keras.layers.Dense: _last_axis,
    keras.layers.EinsumDense: _einsum,
    keras.layers.Conv1D: _last_axis,
    keras.layers.Conv2D: _last_axis,
    keras.layers.Conv3D: _last_axis,
    keras.layers.Conv1DTranspose: _transposed,
    keras.layers.Conv2DTranspose: _transposed,
    keras.layers.Conv3DTranspose: _transposed,
    keras.layers.DepthwiseConv1D: _depthwise,
    keras.layers.DepthwiseConv2D: _depthwise,
    keras.layers.SeparableConv1D: _separable,
    keras.layers.SeparableConv2D: _separable,
    keras.layers.BatchNormalization: _normalised,
}


def _write(copy: Any, layer: Any, values: Mapping[str, Array]) -> None:
    """Gives a copy the weights of its layer, some of them new."""
    before = {variable.name: variable.numpy() for variable in _keras.layer_variables(layer)}
    for variable in _keras.layer_variables(copy):
        variable.assign({**before, **values}[variable.name])
