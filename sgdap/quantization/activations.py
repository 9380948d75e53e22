"""Which tensors of a model a full-integer runtime stores in 8 bits, and their names; runs nothing.

A runtime stores what an operator makes, and its operators are not Keras' layers: a convolution, the
normalisation behind it and a ReLU are one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from sgdap.model.program import Call, Program

layers, activations = keras.layers, keras.activations

FIXED = {"softmax": (0.0, 255 / 256), "sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}
"""The ranges that LiteRT gives to what these activations make, whatever they make."""

_LINEAR = (
    layers.Dense,
    layers.EinsumDense,
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
)
"""Layers that end in an activation of theirs, with which a normalisation is folded."""

_SUMS = (layers.BatchNormalization, layers.Add, layers.Subtract, layers.Multiply)
_SUM_OPERATIONS = {"Add", "Subtract", "Multiply", "Conv", "Matmul"}
"""What a ReLU is part of in a runtime, beside linear layers."""

_SAME = (
    layers.Dropout,
    *(layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise),
    *(layers.ActivityRegularization, layers.Identity),
)
"""Layers that do nothing when a model predicts."""

_POOLING = (
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
)
_KEEPS = (
    *_POOLING,
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
    *(layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
)
"""Layers of which what they make has the scale of what they take."""

_KEEPS_OPERATIONS = {
    *("Reshape", "Transpose", "Squeeze", "ExpandDims", "GetItem", "Flip", "Split", "Ravel"),
    *("Swapaxes", "Moveaxis", "Repeat", "Tile", "BroadcastTo", "Identity", "StopGradient"),
    *("MaxPool", "AveragePool"),
}


@dataclass(frozen=True)
class Stored:
    """A tensor that a full-integer runtime stores with a range of its own.

    Attributes:
        name: Its name: the path of the call that makes it (`"block/conv"`); `"conv#2"` of the
            second call of the layer, `"split[1]"` of the second tensor that a call makes,
            `"end.linear"` before the activation of a layer, `"inputs[0]"` of the first input of
            the model.
        tensor: Its number in the program; that of what the activation makes where it is `before`.
        call: The number of the call that makes it; None: it is an input.
        before: Whether it is what the activation of a layer takes.
        fixed: The range that the runtime has for it; None: that of its values.
    """

    name: str
    tensor: int
    call: int | None
    before: bool = False
    fixed: tuple[float, float] | None = None


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a model that a full-integer runtime stores.

    Attributes:
        own: Those with a range of their own, each once.
        names: For the number of a tensor, the name of the range that it has. What pooling or a
            reshape makes has the range of what it takes.
    """

    own: tuple[Stored, ...]
    names: Mapping[int, str]


def stored_tensors(program: Program) -> StoredTensors:
    """Finds the tensors of a model that a full-integer runtime stores.

    A normalisation behind a linear layer, and a ReLU behind one, are part of it; what is between
    them is not stored. Softmax and sigmoid that make an output of the model are left out: the
    runtime has a fixed range for them, 256 steps of 1/256, and a loss that is shown these would
    lose the logits behind them and the gradients of all that rounds to 0.

    Args:
        program: The model's calls.
    """
    return _Finding(program).found()


class _Finding:
    """The search for the stored tensors of a program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._readers: dict[int, list[int | None]] = {}
        self._makers: dict[int, Call] = {}
        for number, call in enumerate(program.calls):
            for ref in call.inputs:
                self._readers.setdefault(ref.index, []).append(number)
            self._makers.update((ref.index, call) for ref in call.outputs)
        for ref in (*program.outputs, *program.losses):
            self._readers.setdefault(ref.index, []).append(None)
        self._own: list[Stored] = []
        self._names: dict[int, str] = {}

    def found(self) -> StoredTensors:
        program = self._program
        for number, ref in enumerate(program.inputs):
            if self._is_float(ref.index):
                self._add(Stored(f"inputs[{number}]", ref.index, None))
        ends, counts = self._ends(), dict[str, int]()
        for number, call in enumerate(program.calls):
            counts[call.path] = counts.get(call.path, 0) + 1
            made = [ref.index for ref in call.outputs if self._is_float(ref.index)]
            if self._keeps(call):
                name = self._names.get(call.inputs[0].index)
                self._names.update((tensor, name) for tensor in made if name is not None)
                continue
            path = call.path + (f"#{counts[call.path]}" if counts[call.path] > 1 else "")
            kind = _activation(call.operation)
            if isinstance(call.operation, _LINEAR) and kind not in ("linear", "relu"):
                self._own.append(Stored(f"{path}.linear", made[0], number, before=True))
            for place, tensor in enumerate(made):
                fixed = FIXED.get(kind)
                if self._is_part_of_next(call, tensor) or (fixed and tensor in ends):
                    continue
                name = path if len(made) == 1 else f"{path}[{place}]"
                self._add(Stored(name, tensor, number, fixed=fixed))
        return StoredTensors(tuple(self._own), self._names)

    def _add(self, stored: Stored) -> None:
        self._own.append(stored)
        if stored.fixed is None:
            self._names[stored.tensor] = stored.name

    def _is_float(self, tensor: int) -> bool:
        return "float" in self._program.dtypes[tensor]

    def _keeps(self, call: Call) -> bool:
        """Whether what a call makes has the range of what it takes."""
        operation, taken = call.operation, [ref.index for ref in call.inputs]
        if not taken:
            return False
        if _is_of(operation, _KEEPS, _KEEPS_OPERATIONS) or _does_nothing(operation):
            return True
        maker = self._makers.get(taken[0])  # a ReLU is part of the pooling before it
        pooled = maker is not None and _is_of(maker.operation, _POOLING, set())
        return pooled and _is_relu(operation) and len(self._readers[taken[0]]) == 1

    def _is_part_of_next(self, call: Call, tensor: int) -> bool:
        """Whether what makes a tensor and its one reader are one operator."""
        reader = self._one_reader(tensor)
        while reader is not None and _does_nothing(reader.operation):
            reader = self._one_reader(reader.outputs[0].index)
        if reader is None:
            return False
        linear = isinstance(call.operation, _LINEAR) and _activation(call.operation) == "linear"
        if isinstance(reader.operation, layers.BatchNormalization):
            return linear
        return _is_relu(reader.operation) and (
            linear or _is_of(call.operation, _SUMS, _SUM_OPERATIONS)
        )

    def _one_reader(self, tensor: int) -> Call | None:
        readers = self._readers.get(tensor, [])
        only = readers[0] if len(readers) == 1 else None
        return None if only is None else self._program.calls[only]

    def _ends(self) -> set[int]:
        """The tensors whose values are outputs of the model, in whatever shape."""
        found = {ref.index for ref in self._program.outputs}
        for call in reversed(self._program.calls):
            if self._keeps(call) and not found.isdisjoint(ref.index for ref in call.outputs):
                found.update(ref.index for ref in call.inputs)
        return found


def _is_of(operation: Any, classes: tuple[type, ...], operations: set[str]) -> bool:
    if isinstance(operation, keras.Layer):
        return isinstance(operation, classes)
    return type(operation).__name__ in operations


def _does_nothing(operation: Any) -> bool:
    alone = isinstance(operation, layers.Activation)
    return isinstance(operation, _SAME) or (alone and _activation(operation) == "linear")


def _is_relu(operation: Any) -> bool:
    return not isinstance(operation, _LINEAR) and _activation(operation) == "relu"


def _activation(operation: Any) -> str:
    """The activation of an operation: a name of `FIXED`, `"linear"`, `"relu"` or `"other"`."""
    if not isinstance(operation, keras.Layer):
        name = {"Relu6": "relu"}.get(type(operation).__name__, type(operation).__name__.lower())
        return name if name in ("relu", *FIXED) else "other"
    if isinstance(operation, layers.Softmax):
        return "softmax"
    if isinstance(operation, layers.ReLU):
        plain = not operation.negative_slope and not operation.threshold
        return "relu" if plain and operation.max_value in (None, 6) else "other"
    if not isinstance(operation, (*_LINEAR, layers.Activation)):
        return "other"
    own = operation.activation
    if own in (None, activations.linear):
        return "linear"
    if own in (activations.relu, activations.relu6):
        return "relu"
    return next((name for name in FIXED if own is getattr(activations, name)), "other")
