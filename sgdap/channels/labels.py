"""Labels on the axes of tensors: which are tied, which must stay, and the channels they become."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from sgdap.channels.probing import Numbers, line_of

Labels = npt.NDArray[np.uint32]
"""For each index of an axis the label that rules know it by; tied labels become one channel.

Labels and channels are numbers of two kinds. Their types differ so that neither is taken for the
other.
"""

Channels = npt.NDArray[np.int64]
"""For each index of an axis the number of its channel, known when labels are settled."""

TensorChannels = tuple["Channels | None", ...]
"""For each axis of a tensor the channels along it, or None where no index can be removed."""

MEETS_FIXED = "combined with a tensor whose channels can't be removed"
"""Why channels stay that an elementwise operation combines with a model's input, say."""


@dataclass(frozen=True, eq=False)
class Symbol:
    """The shape of a tensor and, for each axis, the labels of its channels.

    Attributes:
        shape: Batch axis first; None where unknown.
        axes: For each axis the labels along it, `(size,)`, or None where no index of the axis
            can be removed.
    """

    shape: tuple[int | None, ...]
    axes: tuple[Labels | None, ...]

    @property
    def rank(self) -> int:
        """The number of axes, the batch axis included."""
        return len(self.shape)

    def along(self, axis: int) -> Labels | None:
        """The channels along one axis."""
        return self.axes[axis]

    def with_axis(self, axis: int, channels: Labels | None, size: int | None = None) -> Symbol:
        """The same tensor with other channels along one axis.

        Args:
            axis: The axis.
            channels: The channels along it, or None.
            size: The size of the axis, if it changes and no channels tell it.

        Raises:
            ValueError: The tensor has no such axis.
        """
        if not -self.rank <= axis < self.rank:
            raise ValueError(f"A tensor of shape {self.shape} has no axis {axis}.")
        shape, axes = list(self.shape), list(self.axes)
        axes[axis] = channels
        if channels is not None or size is not None:
            shape[axis] = len(channels) if channels is not None else size
        return replace(self, shape=tuple(shape), axes=tuple(axes))

    def all_channels(self) -> list[Labels]:
        """The channels along every axis that has any."""
        return [channels for channels in self.axes if channels is not None]


def is_labels(value: object) -> bool:
    """Whether a value is an array of labels, not of channels or other numbers."""
    return isinstance(value, np.ndarray) and value.dtype == np.uint32


def plain(shape: Sequence[int | None]) -> Symbol:
    """A tensor of which nothing can be removed."""
    return Symbol(tuple(shape), (None,) * len(shape))


def connected(
    size: int, first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]
) -> Channels:
    """Numbers the components of a graph in order of their first nodes.

    Args:
        size: The number of nodes.
        first: One end of each edge, `(edges,)`.
        second: The other ends.

    Returns:
        The component of each node, `(size,)`.
    """
    edges = (np.ones(len(first), np.int8), (first, second))
    _, found = csgraph.connected_components(sparse.coo_matrix(edges, (size, size)), directed=False)
    _, starts = np.unique(found, return_index=True)
    numbers: Channels = np.argsort(np.argsort(starts))[found]
    return numbers


class Ledger:
    """Hands out labels and remembers which are tied and which are protected."""

    def __init__(self) -> None:
        self.origins: list[tuple[str, int]] = []
        self._size = 0
        self._ties: list[Labels] = []
        self._protected: list[tuple[Labels, str]] = []

    def new(self, origin: str, count: int) -> Labels:
        """Makes `count` labels for channels that the layer `origin` makes; "" names no layer."""
        self.origins.append((origin, count))
        made = np.arange(self._size, self._size + count, dtype=np.uint32)
        self._size += count
        return made

    def fixed(self, count: int, reason: str) -> Labels:
        """Makes labels of indices that stay."""
        made = self.new("", count)
        self.protect(made, reason)
        return made

    def tie(self, first: Labels, second: Labels) -> None:
        """Makes channels leave together, index by index; one of the two may be a single one."""
        self._ties.append(np.stack(np.broadcast_arrays(first, second)).reshape(2, -1))

    def protect(self, what: Symbol | Labels, reason: str) -> None:
        """Makes channels, or all channels of a tensor, stay; the reason is for people."""
        for channels in what.all_channels() if isinstance(what, Symbol) else [what]:
            if channels.size:
                self._protected.append((np.unique(channels), reason))

    def settle(self) -> Settled:
        """Makes one channel of all labels that are tied, directly or through others."""
        ties = np.concatenate([np.zeros((2, 0), np.uint32), *self._ties], axis=1)
        classes = connected(self._size, *ties)
        removable = np.ones(classes.max(initial=-1) + 1, bool)
        reasons: dict[int, list[str]] = {}
        for channels, reason in self._protected:
            for number in np.unique(classes[channels]):
                removable[number] = False
                known = reasons.setdefault(int(number), [])
                if reason not in known:
                    known.append(reason)
        return Settled(classes, removable, reasons)


@dataclass(frozen=True, eq=False)
class Settled:
    """The channels that labels stand for when all ties are known.

    Attributes:
        classes: For each label its channel, `(labels,)`.
        removable: For each channel whether it may leave, `(channels,)`.
        reasons: For a channel that may not leave, why.
    """

    classes: Channels
    removable: npt.NDArray[np.bool_]
    reasons: dict[int, list[str]]

    def channels(self, labels: Labels) -> Channels:
        """The channels of some labels."""
        return self.classes[labels]

    def of_tensor(self, symbol: Symbol) -> TensorChannels:
        """The channels along each axis of a tensor."""
        return tuple(None if own is None else self.channels(own) for own in symbol.axes)

    def labels(self, channels: Channels) -> Labels:
        """All labels of some channels."""
        return np.flatnonzero(np.isin(self.classes, channels)).astype(np.uint32)


def merge(symbols: Sequence[Symbol], shape: Sequence[int | None], ledger: Ledger) -> Symbol:
    """The labels of what an elementwise operation makes of tensors that are broadcast.

    Args:
        symbols: The tensors that are combined.
        shape: The shape of the result.
        ledger: Receives the ties.

    Returns:
        The result. Along each axis the channels of all tensors are tied. They are protected where
        one of the tensors is as wide but has no channels there, as a model input; and a channel
        that is broadcast over many is protected too.
    """
    rank = len(shape)
    axes: list[Labels | None] = []
    for axis in range(rank):
        met: list[Labels] = []
        blocked = False
        for symbol in symbols:
            own = axis - rank + symbol.rank
            if own < 0:
                continue
            channels = symbol.axes[own]
            if symbol.shape[own] == 1 and shape[axis] != 1:
                if channels is not None:
                    ledger.protect(channels, "one channel is spread over many")
            elif channels is None:
                blocked = blocked or symbol.shape[own] != 1
            else:
                met.append(channels)
        for other in met[1:]:
            ledger.tie(met[0], other)
        if met and blocked:
            ledger.protect(met[0], MEETS_FIXED)
        axes.append(met[0] if met else None)
    return Symbol(tuple(shape), tuple(axes))


def moved(
    symbol: Symbol,
    shape: Sequence[int | None],
    move: Callable[[Numbers], Numbers],
    ledger: Ledger,
) -> Symbol:
    """The labels of a tensor whose values are only moved or repeated, as by a reshape.

    The numbers of the labels are moved, so the result shows where they lie. Where they vary along
    several axes the last one has them, and what lies along the others is tied: whole blocks leave.

    Args:
        symbol: The tensor.
        shape: The shape of the result.
        move: Makes the result of an array of one sample.
        ledger: Receives ties and protections.

    Returns:
        The moved tensor.
    """
    output = plain(shape)
    given, wanted = (math.prod(n for n in sizes[1:] if n) for sizes in (symbol.shape, shape))
    repeated = wanted // math.gcd(given, wanted)  # the smallest open size that fits the shape
    sizes = [symbol.shape[0] or 1, *(size or repeated for size in symbol.shape[1:])]
    for axis, channels in enumerate(symbol.axes):
        if channels is None:
            continue
        found, numbers = np.unique(channels, return_inverse=True)
        along = [1] * len(sizes)
        along[axis] = -1
        source = move(np.broadcast_to(numbers.reshape(along), sizes))
        place, line, tied = line_of(source) or _line_of_one(source.shape, shape)
        if shape[place] is None or output.axes[place] is not None:
            for own in (channels, output.axes[place]):
                if own is not None:
                    ledger.protect(own, "a reshape mixes them with another axis")
            continue
        ledger.tie(found[tied[:, 0]], found[tied[:, 1]])
        output = output.with_axis(place, found[line])
    return output


def _line_of_one(made: Sequence[int], shape: Sequence[int | None]) -> tuple[int, Numbers, Numbers]:
    """As `line_of`, of one label: it is taken to lie along an axis of size 1 if there is any."""
    place = max((axis for axis, size in enumerate(shape) if size == 1), default=len(shape) - 1)
    return place, np.zeros(made[place], np.int64), np.zeros((0, 2), np.int64)


def concatenate(
    symbols: Sequence[Symbol], axis: int, shape: Sequence[int | None], ledger: Ledger
) -> Symbol:
    """The labels of tensors laid end to end along an axis; along the other axes they are tied."""
    rank = len(shape)
    axis = axis % rank
    others = merge([s.with_axis(axis, None, 1) for s in symbols], shape, ledger)
    if all(symbol.axes[axis] is None for symbol in symbols):
        return others
    parts: list[Labels] = []
    for symbol in symbols:
        channels = symbol.axes[axis]
        if channels is None:
            reason = "concatenated from a tensor whose channels can't be removed"
            channels = ledger.fixed(int(symbol.shape[axis] or 0), reason)
        parts.append(channels)
    return others.with_axis(axis, np.concatenate(parts))


def positions(shape: Sequence[int | None]) -> float:
    """The number of places in some axes, unknown sizes counted as 1."""
    return float(np.prod([size or 1 for size in shape])) if shape else 1.0
