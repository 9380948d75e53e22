"""What rules say about a model, as plain data: axes, config entries, work, observed places."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.labels import Channels, Labels, Ledger, Settled, Symbol
from sgdap.channels.patches import Patches

Fact = TypeVar("Fact")


@dataclass(frozen=True, eq=False)
class Place:
    """Where channels are observed while the model runs.

    At a linear layer, rows of its input are observed, and the layer multiplies them with its
    kernel. So does one of several kernels inside a layer (a projection of attention, the gates of
    an LSTM), but its products are not shown: what an error there counts is seen at its input.
    Everywhere else (heads inside an attention layer, a tensor that only operations without weights
    read) a tensor is observed itself: its outputs are its features.

    Attributes:
        path: Path of the layer; where there is no kernel, also which of its tensors is observed.
        call: Number of the call.
        axis: The axis along which the channels lie, in what is read and in what is made.
        features: The channel of each feature: of each kernel row, or along the axis, `(features,)`.
        outputs: The channel of each output, `(outputs,)`; several rows, `(axes, outputs)`, where
            the outputs have more than one axis with channels.
        patches: How rows are read from the input of a linear layer.
        kernel: Number of the kernel among the layer's variables, None where there is none. Its
            leading axes are features, its last axis (or axes) is outputs.
        bias: Number of the bias, or None.
        refittable: Whether the kernel and the bias may be fitted to the channels that stay. A
            variable under a constraint may not.
        tensor: Number of the tensor among the inputs of the call, or among its outputs.
        made: Whether the tensor is an output of the call, not an input.
        inside: Number of the layer that is meant among the layers of the call's layer, itself 0.
        shown: Whether a kernel's products are shown: the layer's output before its activation.
    """

    path: str
    call: int
    axis: int
    features: Channels
    outputs: Channels
    patches: Patches = Patches()
    kernel: int | None = None
    bias: int | None = None
    refittable: bool = False
    tensor: int = 0
    made: bool = False
    inside: int = 0
    shown: bool = True

    @property
    def is_linear(self) -> bool:
        """Whether a kernel multiplies what is observed."""
        return self.kernel is not None

    @property
    def shows_outputs(self) -> bool:
        """Whether what an error counts is seen at a kernel's products, not where rows are read."""
        return self.is_linear and self.shown

    @property
    def tapped(self) -> bool:
        """Whether the layer that is meant shows the tensor while it is called."""
        return not self.shows_outputs and (self.is_linear or self.inside > 0)

    @property
    def weighs_features(self) -> bool:
        """Whether a whole sensitivity weighs errors of the features' part, the fewer numbers.

        With the gradient g of a kernel's products, that of the features is `W g`, so the
        sensitivity there is `W Γ Wᵀ`: all that errors of fewer features, the others refitted,
        depend on.
        """
        return not self.shows_outputs or len(self.features) < self.outputs.shape[-1]

    @property
    def weighed(self) -> int:
        """How many quantities there are whose errors a whole sensitivity weighs."""
        return len(self.features) if self.weighs_features else self.outputs.shape[-1]

    def kept_outputs(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """A mask of the outputs that stay, `(outputs,)`, by one of the model's channels."""
        mask: npt.NDArray[np.bool_] = np.logical_and.reduce(kept[np.atleast_2d(self.outputs)])
        return mask

    def layer_of(self, operation: Any) -> Any:
        """Returns the layer that is meant: that of the call, or the one inside it."""
        return list(_keras.flatten_layers(operation))[self.inside] if self.inside else operation


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
        places: Where rules say that channels are observed.
        kept: Layers that are left as they are: path and reason.
    """

    ledger: Ledger = field(default_factory=Ledger)
    made: dict[tuple[str, str], Labels] = field(default_factory=dict)
    axes: dict[tuple[str, int, int], Unsettled[Axis]] = field(default_factory=dict)
    resizes: dict[tuple[str, Key], Unsettled[Resize]] = field(default_factory=dict)
    scales: dict[tuple[str, int], Unsettled[Scale]] = field(default_factory=dict)
    rewrites: dict[str, tuple[int, tuple[Symbol, ...]]] = field(default_factory=dict)
    work: list[Unsettled[Work]] = field(default_factory=list)
    places: list[Unsettled[Place]] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
