"""The registry of rules, one per layer class, and what a rule can say about a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import keras
import numpy as np

from sgdap import _keras
from sgdap.graph.channels import Channels, Ledger, Symbol, plain
from sgdap.graph.patches import Patches
from sgdap.graph.program import Call, Shape

Rule = Callable[[Any, "RuleCall"], "Symbol | Sequence[Symbol]"]
_Decorated = TypeVar("_Decorated", bound=Rule)

_RULES: dict[type, Rule] = {}
_DEFAULT: list[Rule] = []


def register_rule(*layer_classes: type) -> Callable[[_Decorated], _Decorated]:
    """Registers the rule of one or several layer (or `keras.Operation`) classes.

    A rule is a function `(layer, call) -> Symbol` that tells, through the methods of
    `sgdap.graph.RuleCall`, which axes of the layer's weights carry which channels, and returns the
    channels of the layer's output. A rule holds for a subclass too, as long as that keeps `call`
    and `build`. Registering a class again replaces its rule.

    Args:
        *layer_classes: The classes that the rule is for.

    Returns:
        A decorator that returns the rule unchanged.

    Raises:
        TypeError: One of the arguments is not a class.

    Example:
        >>> @sgdap.register_rule(keras.layers.GaussianNoise)
        ... def noise(layer, call):
        ...     return call.input  # the channels of the output are those of the input
    """
    for layer_class in layer_classes:
        if not isinstance(layer_class, type):
            raise TypeError(
                "register_rule takes layer classes: @sgdap.register_rule(MyLayer). "
                f"Received: {layer_class!r}"
            )

    def decorate(rule: _Decorated) -> _Decorated:
        for layer_class in layer_classes:
            _RULES[layer_class] = rule
        return rule

    return decorate


def register_default(rule: _Decorated) -> _Decorated:
    """Registers the rule of all `keras.Operation` classes that are no layers and have none."""
    _DEFAULT[:] = [rule]
    return rule


def find_rule(operation: Any) -> Rule | None:
    """Returns the rule of a layer, or None where there is none that holds for its class."""
    layer_class = type(operation)
    for base in layer_class.__mro__:
        rule = _RULES.get(base)
        if rule is not None:
            same = all(
                getattr(layer_class, name, None) is getattr(base, name, None)
                for name in ("call", "build")
            )
            return rule if same else None
    return None if isinstance(operation, keras.Layer) else _DEFAULT[0]


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
    """

    path: str
    call: int
    kernel: int
    bias: int | None
    patches: Patches
    features: Channels
    outputs: Channels


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


@dataclass(frozen=True, eq=False)
class Resize:
    """An entry of a layer's config that says how many channels it has.

    `key` is the entry's name, or (name, position) for one of several sizes in it.
    """

    path: str
    key: str | tuple[str, int]
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
    resizes: dict[tuple[str, str | tuple[str, int]], Resize] = field(default_factory=dict)
    rewrites: dict[str, Rewrite] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)
    linears: list[Linear] = field(default_factory=list)


class RuleCall:
    """One call of a layer, as its rule sees it.

    Attributes:
        inputs: The input tensors, flattened.
        output_shapes: Shapes of the output tensors, flattened.
        input_dtypes: The dtypes of the input tensors.
        args: The call's positional arguments (a `Ref` for each tensor).
        kwargs: The call's keyword arguments, likewise.
    """

    def __init__(
        self,
        record: Record,
        call: Call,
        number: int,
        inputs: Sequence[Symbol],
        output_shapes: Sequence[Shape],
        input_dtypes: Sequence[str] = (),
    ) -> None:
        self.inputs = tuple(inputs)
        self.output_shapes = tuple(output_shapes)
        self.input_dtypes = tuple(input_dtypes)
        self.args = call.args
        self.kwargs = call.kwargs
        self._record = record
        self._call = call
        self._number = number
        self._variables = (
            {id(v): i for i, v in enumerate(_keras.layer_variables(call.operation))}
            if hasattr(call.operation, "weights")
            else {}
        )

    @property
    def input(self) -> Symbol:
        """The only, or first, input tensor."""
        return self.inputs[0]

    @property
    def output_shape(self) -> Shape:
        """Shape of the only, or first, output tensor."""
        return self.output_shapes[0]

    @property
    def ledger(self) -> Ledger:
        """What ties and protects channels."""
        return self._record.ledger

    def output(self) -> Symbol:
        """An output of which nothing can be removed."""
        return plain(self.output_shape)

    def new_channels(self, count: int, name: str = "") -> Channels:
        """Channels that this layer makes; the same ones at each call of a shared layer.

        Args:
            count: How many.
            name: Tells several kinds of channels of one layer apart.
        """
        key = (self._call.path, name)
        if key not in self._record.born:
            origin = f"{self._call.path}:{name}" if name else self._call.path
            self._record.born[key] = self.ledger.new(origin, count)
        return self._record.born[key]

    def fixed(self, count: int) -> Channels:
        """Channels that can't be removed, to stand for an axis that has none."""
        key = ("", str(count))
        if key not in self._record.born:
            self._record.born[key] = self.ledger.new("", count)
            self.ledger.protect(self._record.born[key], "not made by a layer of the model")
        return self._record.born[key]

    def constants(self, count: int) -> Channels:
        """New channels that can't be removed: an operation puts constants there."""
        made = self.ledger.new("", count)
        self.ledger.protect(made, "constants lie beside them")
        return made

    def along(self, symbol: Symbol, axis: int) -> Channels:
        """The channels along an axis; ones that can't be removed where it has none.

        Raises:
            ValueError: The axis has neither channels nor a known size.
        """
        channels = symbol.axes[axis]
        if channels is not None:
            return channels
        size = symbol.shape[axis]
        if size is None:
            raise ValueError(
                f"Layer '{self._call.path}' reads axis {axis} of a tensor of shape "
                f"{symbol.shape}, whose size is not known. Give the model's Input that size."
            )
        return self.fixed(size)

    def weight(self, variable: Any, *axes: Channels | None) -> None:
        """Says which channels lie along the axes of one of the layer's variables.

        Args:
            variable: The variable; None (a bias that is not used) is passed over.
            *axes: For each of its axes the channels, or None.
        """
        if variable is None:
            return
        number = self._variables[id(variable)]
        path = self._call.path
        own = {id(made) for (maker, _), made in self._record.born.items() if maker == path}
        makes = any(id(channels) in own for channels in axes)
        for axis, channels in enumerate(axes):
            if channels is None:
                continue
            role = "follower" if not makes else "producer" if id(channels) in own else "consumer"
            known = self._record.axes.setdefault(
                (path, number, axis), Axis(path, number, axis, channels, role)
            )
            if known.channels is not channels:
                self.ledger.tie(known.channels, channels)

    def resize(self, key: str | tuple[str, int], channels: Channels) -> None:
        """Says that an entry of the layer's config counts these channels."""
        path = self._call.path
        known = self._record.resizes.setdefault((path, key), Resize(path, key, channels))
        if known.channels is not channels:
            self.ledger.tie(known.channels, channels)

    def rewrite(self, outputs: Sequence[Symbol]) -> None:
        """Says that the operation's sizes, bounds and indices follow the channels.

        Args:
            outputs: Its outputs.
        """
        path = self._call.path
        new = Rewrite(path, self._number, self.inputs, tuple(outputs))
        known = self._record.rewrites.setdefault(path, new)
        pairs = zip((*known.inputs, *known.outputs), (*new.inputs, *new.outputs), strict=True)
        for before, after in pairs:  # a model that is called twice is written once
            for first, second in zip(before.axes, after.axes, strict=True):
                if first is not None and second is not None:
                    self.tie(first, second)
                elif first is not None or second is not None:
                    channels = first if first is not None else second
                    assert channels is not None
                    self.keep(channels, f"'{path}' is called on other channels too")

    def linear(
        self,
        kernel: Any,
        bias: Any,
        patches: Patches,
        features: Channels,
        outputs: Channels,
    ) -> None:
        """Says that the layer multiplies patches of its first input with a kernel.

        Args:
            kernel: The variable whose last axis is the outputs.
            bias: The variable added to them, or None.
            patches: How the input is read.
            features: The channel of each kernel row, `(features,)`.
            outputs: The channel of each output, `(outputs,)`.
        """
        self._record.linears.append(
            Linear(
                self._call.path,
                self._number,
                self._variables[id(kernel)],
                None if bias is None else self._variables[id(bias)],
                patches,
                features,
                outputs,
            )
        )

    def work(self, factor: float, *axes: Channels) -> None:
        """Says how much the layer computes for one sample: `factor` times the axes' widths.

        One multiply-add counts as 2 FLOPs.
        """
        self._record.work.append(Work(self._call.path, float(factor), axes))

    def tie(self, first: Channels, second: Channels) -> None:
        """Makes channels leave together, index by index."""
        self.ledger.tie(first, second)

    def keep(self, what: Symbol | Channels, reason: str) -> None:
        """Protects channels from removal, `reason` tells people why."""
        for channels in what.all_channels() if isinstance(what, Symbol) else [what]:
            self.ledger.protect(channels, reason)

    def keep_positions(self, axis: int, name: str) -> None:
        """Protects channels along all axes of the first input but its channel axis.

        Args:
            axis: The channel axis.
            name: Name of the layer, which works along the other axes.
        """
        for other, channels in enumerate(self.input.axes):
            if other != axis % self.input.rank and channels is not None:
                self.keep(channels, f"'{name}' works along their axis")


def positions(shape: Sequence[int | None]) -> float:
    """The number of places in some axes, unknown sizes counted as 1."""
    return float(np.prod([size or 1 for size in shape])) if shape else 1.0
