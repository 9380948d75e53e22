"""What rules say about a model, as plain data: axes, config entries, work, linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sgdap.channels.labels import Channels, Labels, Ledger, Settled, Symbol, TensorChannels
from sgdap.channels.patches import Patches

Fact = TypeVar("Fact")


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

    Attributes:
        path: Path of the layer.
        variable: Number of the variable among the layer's.
        axis: Number of the axis.
        channels: The channels along it, `(size,)`.
        role: `"producer"` where the layer makes the channels, `"consumer"` where its kernel reads
            them, `"follower"` where the variable only goes along with them.
    """

    path: str
    variable: int
    axis: int
    channels: Channels
    role: str


Key = str | tuple[str | int, ...]
"""The name of an entry of a config, or the names and positions that lead to a nested entry."""


@dataclass(frozen=True, eq=False)
class Resize:
    """An entry of a layer's config that says how many channels it has.

    An entry that is None, because the layer takes the width of its input, gets a number when the
    layer is rebuilt.

    Attributes:
        path: Path of the layer.
        key: The entry: `"units"`, `("target_shape", 1)`, `("layer", "config", "units")`.
        channels: The channels that it counts.
    """

    path: str
    key: Key
    channels: Channels


@dataclass(frozen=True, eq=False)
class Scale:
    """A variable that is multiplied with `(kept / all) ** power` when some of the channels leave.

    A layer that divides by the root of its width then computes as if it divided by the old one.
    """

    path: str
    variable: int
    power: float
    channels: Channels


@dataclass(frozen=True, eq=False)
class Work:
    """FLOPs of a layer for one sample: `factor` times the number of channels of every axis."""

    path: str
    factor: float
    axes: tuple[Channels, ...]


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A call of an operation whose sizes, bounds or indices follow the channels.

    Attributes:
        path: Path of the operation.
        call: Number of the call.
        inputs: The channels of its input tensors.
        outputs: The channels of its output tensors.
    """

    path: str
    call: int
    inputs: tuple[TensorChannels, ...]
    outputs: tuple[TensorChannels, ...]


@dataclass(frozen=True, eq=False)
class Unsettled(Generic[Fact]):
    """A fact about labels; it becomes one about channels when all ties are known.

    Attributes:
        labels: The labels along each axis that the fact is about.
        make: Makes the fact of the channels along the same axes.
    """

    labels: tuple[Labels, ...]
    make: Callable[..., Fact]


def settled_facts(facts: Iterable[Unsettled[Fact]], settled: Settled) -> tuple[Fact, ...]:
    """Facts about channels, made of facts about labels."""
    return tuple(fact.make(*map(settled.channels, fact.labels)) for fact in facts)


@dataclass
class Statements:
    """Everything that the rules said about a model, in labels.

    Attributes:
        ledger: The labels, what ties them and what protects them.
        made: The labels of the channels that a layer makes, by its path and a name for them.
        axes: Axes of variables by the layer's path and the numbers of the variable and the axis.
        resizes: Config entries by the layer's path and the entry's key.
        scales: Scaled variables by the layer's path and the variable's number.
        rewrites: For the path of an operation that is rewritten the number of its first call and
            that call's inputs and outputs.
        work: What the layers compute.
        linears: Where linear layers read channels.
        readings: Where rules say that channels inside a layer are seen.
        kept: Layers that are left as they are: path and reason.
    """

    ledger: Ledger = field(default_factory=Ledger)
    made: dict[tuple[str, str], Labels] = field(default_factory=dict)
    axes: dict[tuple[str, int, int], Unsettled[Axis]] = field(default_factory=dict)
    resizes: dict[tuple[str, Key], Unsettled[Resize]] = field(default_factory=dict)
    scales: dict[tuple[str, int], Unsettled[Scale]] = field(default_factory=dict)
    rewrites: dict[str, tuple[int, tuple[Symbol, ...]]] = field(default_factory=dict)
    work: list[Unsettled[Work]] = field(default_factory=list)
    linears: list[Unsettled[Linear]] = field(default_factory=list)
    readings: list[Unsettled[Reading]] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
