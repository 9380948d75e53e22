"""The channels of a model as plain data: which are tied, where they lie and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap._arguments import choices_for, shown
from sgdap.channels.facts import Axis, Place, Resize, Scale, Work
from sgdap.channels.labels import Channels, TensorChannels
from sgdap.model.program import Program, Shape


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are tied across layers.

    Attributes:
        name: Path of the layer that makes them (the first one).
        channels: Number of each channel in the model's `ChannelGraph`, `(size,)`.
        removable: Whether each channel may leave, `(size,)`.
        producers: Paths of the layers that make the channels.
        followers: Paths of the layers whose weights lie along them.
        consumers: Paths of the layers that read them with a kernel.
        reasons: Why channels are protected, if any are.
    """

    name: str
    channels: Channels
    removable: npt.NDArray[np.bool_]
    producers: tuple[str, ...]
    followers: tuple[str, ...]
    consumers: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.channels)

    @property
    def prunable(self) -> bool:
        """Whether any channel may leave."""
        return bool(self.removable.any())

    def __str__(self) -> str:
        state = f"{int(self.removable.sum())} of {self.size} channels removable"
        if self.reasons:
            state += f" (kept: {'; '.join(self.reasons)})"
        parts = [f"{self.name}: {state}", f"  made by {', '.join(self.producers)}"]
        if self.followers:
            parts.append(f"  followed by {', '.join(self.followers)}")
        if self.consumers:
            parts.append(f"  read by {', '.join(self.consumers)}")
        return "\n".join(parts)


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """A model's channels: which are tied, where they lie and what they cost.

    Attributes:
        program: The model's calls.
        counted: The calls that `work` was counted on: those of `program`, or the same ones on
            inputs of sizes that the model leaves open.
        groups: All groups, protected ones too, in order of the layers that make them.
        made: The channels that each producer makes, by its path, `(channels of the producer,)`.
        count: The number of channels of the whole model.
        tensors: The channels of each tensor, by its number in the program.
        axes: Every axis of a variable that has channels.
        resizes: Every entry of a layer's config that counts channels.
        scales: Every variable whose values are scaled when channels leave.
        rewrites: For every operation whose sizes, bounds or indices follow the channels, the
            number of its first call.
        work: What the layers compute.
        places: Where the channels are observed, linear layers first.
        kept: Layers that are left as they are: path and reason.
    """

    program: Program
    counted: Program
    groups: tuple[ChannelGroup, ...]
    made: Mapping[str, Channels]
    count: int
    tensors: Mapping[int, TensorChannels]
    axes: tuple[Axis, ...]
    resizes: tuple[Resize, ...]
    scales: tuple[Scale, ...]
    rewrites: tuple[int, ...]
    work: tuple[Work, ...]
    places: tuple[Place, ...]
    kept: tuple[tuple[str, str], ...]

    @property
    def counted_shapes(self) -> tuple[Shape, ...]:
        """The shapes of the model's inputs that `work` was counted on."""
        return self.counted.input_shapes

    @property
    def open_inputs(self) -> tuple[Shape, ...]:
        """Those of them that leave sizes open; these count as 1, so `work` is no measure then."""
        return tuple(shape for shape in self.counted_shapes if None in shape[1:])

    def group(self, name: str) -> ChannelGroup:
        """The group of that name.

        Raises:
            ValueError: There is none.
        """
        for group in self.groups:
            if group.name == name or name in group.producers:
                return group
        raise ValueError(
            f"No channel group is made by a layer '{name}'. "
            f"{choices_for(name, [p for group in self.groups for p in group.producers])}"
        )

    def __str__(self) -> str:
        return "\n".join(str(group) for group in self.groups)


def check_is_graph(name: str, value: Any) -> None:
    """Raises if an argument is not the channels of a model.

    Args:
        name: The name of the argument.
        value: The value that was received.

    Raises:
        TypeError: It is something else, such as the model.
    """
    if not isinstance(value, ChannelGraph):
        raise TypeError(
            f"{name} must be the channels of a model, a sgdap.ChannelGraph. Received: "
            f"{shown(value)} (of type {type(value).__name__}). Pass sgdap.channel_graph(model)."
        )
