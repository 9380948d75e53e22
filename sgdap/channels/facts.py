"""What rules say about a model, as plain data: axes, config entries, work, linear layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sgdap.channels.labels import Channels, Ledger, Symbol
from sgdap.channels.patches import Patches


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer's view of its input: the place where the next layer's need is measured.

    Attributes:
        path: Path of the layer.
        call: Number of the call.
        kernel: Number of the kernel among the layer's variables; its leading axes are features,
            its last axis is outputs.
        bias: Number of the bias, or None.
        patches: How the layer reads its input.
        features: For each row of the kernel (as two axes) its channel, `(features,)`.
        outputs: The channels of its outputs, `(outputs,)`.
        inside: The attributes that lead to it where it is a layer inside the layer.
    """

    path: str
    call: int
    kernel: int
    bias: int | None
    patches: Patches
    features: Channels
    outputs: Channels
    inside: tuple[str, ...] = ()

    @property
    def output_axis(self) -> int:
        """The axis of its output along which the channels lie."""
        return self.patches.steps + 1 if self.patches.channels_first else -1

    def layer_of(self, operation: Any) -> Any:
        """The layer whose kernel it is: that of the call, or the one inside it."""
        for attribute in self.inside:
            operation = getattr(operation, attribute)
        return operation


@dataclass(frozen=True, eq=False)
class Reading:
    """A tensor of channels that no linear layer reads with its kernel (but an LSTM, say).

    It stands in for a linear layer of weights 1: how much the loss depends on the channels is
    measured where they are read or, where only operations without weights read them, made.

    Attributes:
        path: Path of the layer, and which of its tensors it is.
        call: Number of its first call on the tensor.
        place: Number of the input or output.
        axis: The axis of the channels.
        features: The channels, `(features,)`.
        made: Whether it is an output, not an input.
        inside: The name of the layer inside the layer whose input or output it is, or "".
    """

    path: str
    call: int
    place: int
    axis: int
    features: Channels
    made: bool = False
    inside: str = ""

    @property
    def outputs(self) -> Channels:
        """What is made of them: they themselves."""
        return self.features

    @property
    def output_axis(self) -> int:
        """The axis of the channels."""
        return self.axis


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of one variable of a layer and the channels along it.

    `role` is `"producer"` where the layer makes the channels, `"consumer"` where its kernel reads
    them and `"follower"` where it only goes along.
    """

    path: str
    variable: int
    axis: int
    channels: Channels
    role: str


Key = str | tuple[str | int, ...]
"""The name of an entry of a config, or the names and positions that lead to a nested one."""


@dataclass(frozen=True, eq=False)
class Resize:
    """An entry of a layer's config that says how many channels it has.

    `key` is the entry's name, or the way to it where it is nested: `("target_shape", 1)`,
    `("layer", "config", "units")`. An entry that is None (the layer takes the width of its input,
    say) is written out when the layer is rebuilt.
    """

    path: str
    key: Key
    channels: Channels


@dataclass(frozen=True, eq=False)
class Scale:
    """A variable that is multiplied with `(kept / all) ** power` when some of the channels leave.

    So a layer that divides by the root of its width still divides by that of the old one.
    """

    path: str
    variable: int
    power: float
    channels: Channels


@dataclass(frozen=True, eq=False)
class Work:
    """Floating point operations for one sample: `factor` times the width of every axis."""

    path: str
    factor: float
    axes: tuple[Channels, ...]


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A call of an operation whose sizes, bounds or indices follow the channels.

    Attributes:
        path: Path of the operation.
        call: Number of the call.
        inputs: Its input tensors.
        outputs: Its output tensors.
    """

    path: str
    call: int
    inputs: tuple[Symbol, ...]
    outputs: tuple[Symbol, ...]


@dataclass
class Record:
    """Everything that the rules said about a model."""

    ledger: Ledger = field(default_factory=Ledger)
    born: dict[tuple[str, str], Channels] = field(default_factory=dict)
    axes: dict[tuple[str, int, int], Axis] = field(default_factory=dict)
    resizes: dict[tuple[str, Key], Resize] = field(default_factory=dict)
    scales: dict[tuple[str, int], Scale] = field(default_factory=dict)
    rewrites: dict[str, Rewrite] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)
    linears: list[Linear] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
