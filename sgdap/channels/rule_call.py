"""What a rule can say about a call of a layer; it keeps nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from sgdap import _keras
from sgdap._arguments import is_number
from sgdap.channels.checks import check_axes, check_channels
from sgdap.channels.facts import Axis, Key, Place, Record, Resize, Rewrite, Scale, Work
from sgdap.channels.labels import Channels, Ledger, Symbol, plain
from sgdap.channels.patches import Patches
from sgdap.channels.registry import apply_rule
from sgdap.channels.rewriting import is_written_with_sizes
from sgdap.model.program import Call, Ref, Shape


@dataclass(frozen=True)
class _Inside:
    """Where a layer inside a layer is.

    Attributes:
        layer: The inner layer.
        names: Names of the layers on the way to it, its own the last.
        entries: What leads to its config in the outer layer's.
        steps: How often each layer around it calls what is inside, for one sample.
        measured: Whether its input is that of the outer layer, which the statistics see.
    """

    layer: Any
    names: tuple[str, ...] = ()
    entries: tuple[str | int, ...] = ()
    steps: tuple[float, ...] = ()
    measured: bool = True


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
        place: _Inside | None = None,
        refs: Sequence[Ref] = (),
    ) -> None:
        self.inputs = tuple(inputs)
        self.output_shapes = tuple(output_shapes)
        self.input_dtypes = tuple(input_dtypes)
        self.args = call.args
        self.kwargs = call.kwargs
        self._record = record
        self._call = call
        self._number = number
        self._place = place or _Inside(call.operation)
        refs = refs if place else call.inputs
        self._symbols = {ref.index: x for ref, x in zip(refs, self.inputs, strict=bool(refs))}
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
    def title(self) -> str:
        """What messages call the rule that speaks here."""
        path = "/".join((self._call.path, *self._place.names))
        return f"The rule of '{path}' (of class {type(self._place.layer).__name__})"

    @property
    def ledger(self) -> Ledger:
        """What ties and protects channels."""
        return self._record.ledger

    def output(self) -> Symbol:
        """An output of which nothing can be removed."""
        return plain(self.output_shape)

    def argument(self, name: str, position: int) -> Any:
        """One of the call's arguments, a `Symbol` in the place of each tensor.

        Args:
            name: Its name in the layer's `call`.
            position: Its position there, the inputs being 0.

        Returns:
            The argument, None where it is not given.
        """
        given = self.args[position] if position < len(self.args) else self.kwargs.get(name)

        def symbol(leaf: Any) -> Any:
            return self._symbols[leaf.index] if isinstance(leaf, Ref) else leaf

        return keras.tree.map_structure(symbol, given)

    def new_channels(self, count: int, name: str = "") -> Channels:
        """Channels that this layer makes; the same ones at each call of a shared layer.

        Args:
            count: How many.
            name: Tells several kinds of channels of one layer apart.

        Raises:
            ValueError: `count` is no integer that is not negative.
        """
        if not isinstance(count, (int, np.integer)) or count < 0:
            raise ValueError(f"{self.title} must make 0 channels or more. Received: {count!r}")
        inner = "/".join(self._place.names)
        key = (self._call.path, f"{inner}:{name}")
        if key not in self._record.born:
            origin = f"{self._call.path}/{inner}" if inner else self._call.path
            origin = f"{origin}:{name}" if name else origin
            self._record.born[key] = self.ledger.new(origin, count)
        return self._record.born[key]

    def inside(
        self,
        attribute: str,
        entry: str,
        inputs: Sequence[Symbol],
        output_shapes: Sequence[Shape],
        arguments: Mapping[str, Any] | None = None,
        *,
        each_step: bool = False,
    ) -> list[Symbol]:
        """Lets the own rule of a layer inside this layer speak.

        Args:
            attribute: The attribute that holds the inner layer.
            entry: The entry of this layer's config that holds the inner layer's.
            inputs: The tensors that the inner layer is called on.
            output_shapes: Shapes of the tensors that it makes.
            arguments: Other arguments of its call by name, with symbols for tensors.
            each_step: Whether it is called for every index along axis 1 of this layer's input;
                `inputs` and `output_shapes` are then without that axis.

        Returns:
            The channels of the inner layer's outputs.
        """
        outer = self._place
        layer = getattr(outer.layer, attribute)
        place = _Inside(
            layer,
            (*outer.names, layer.name),
            (*outer.entries, entry, "config"),
            (*outer.steps, positions(self.input.shape[1:2])) if each_step else outer.steps,
        )
        inner = RuleCall(self._record, self._call, self._number, inputs, output_shapes, (), place)
        inner.args, inner.kwargs = (), dict(arguments or {})
        return apply_rule(layer, inner)

    def inside_model(
        self,
        inner: Call,
        way: Sequence[str | int],
        inputs: Sequence[Symbol],
        output_shapes: Sequence[Shape],
        input_dtypes: Sequence[str],
    ) -> list[Symbol]:
        """Lets the own rule of a layer of the model inside this layer speak.

        Args:
            inner: The call of it in that model.
            way: The names and positions that lead from that model's config to the layer's.
            inputs: The tensors that it is called on.
            output_shapes: Shapes of the tensors that it makes.
            input_dtypes: The dtypes of `inputs`.

        Returns:
            The channels of its outputs.
        """
        outer = self._place
        place = replace(
            outer,
            layer=inner.operation,
            names=(*outer.names, inner.path),
            entries=(*outer.entries, *way),
            measured=False,
        )
        shown = RuleCall(
            self._record,
            self._call,
            self._number,
            inputs,
            output_shapes,
            input_dtypes,
            place,
            inner.inputs,
        )
        shown.args, shown.kwargs = inner.args, inner.kwargs
        return apply_rule(inner.operation, shown)

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
            ValueError: There is no such axis, or it has neither channels nor a known size.
        """
        if not -symbol.rank <= axis < symbol.rank:
            raise ValueError(f"{self.title} reads axis {axis} of a tensor of shape {symbol.shape}.")
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

        Raises:
            TypeError: Something else than channels is given for an axis.
            ValueError: It is no variable of the layer, or has other axes.
        """
        if variable is None:
            return
        number = self._number_of(variable)
        check_axes(self.title, variable, axes)
        path = self._call.path
        inner = "/".join(self._place.names)
        own = [
            made
            for (maker, kind), made in self._record.born.items()
            if maker == path and kind.startswith(f"{inner}:")
        ]
        made = [c is not None and bool(np.isin(c, np.concatenate(own)).all()) for c in axes if own]
        for axis, channels in enumerate(axes):
            if channels is None:
                continue
            role = "follower" if not any(made) else "producer" if made[axis] else "consumer"
            known = self._record.axes.setdefault(
                (path, number, axis), Axis(path, number, axis, channels, role)
            )
            if known.channels is not channels:
                self.ledger.tie(known.channels, channels)

    def along_weight(self, variable: Any, axis: int) -> Channels | None:
        """The channels that were said to lie along an axis of one of the layer's variables."""
        number, axis = self._number_of(variable), axis % len(variable.shape)
        known = self._record.axes.get((self._call.path, number, axis))
        return None if known is None else known.channels

    def _number_of(self, variable: Any) -> int:
        """The number of one of the layer's variables."""
        number = self._variables.get(id(variable))
        if number is None:
            raise ValueError(f"{self.title} must speak of its variables. Received: {variable!r}")
        return number

    def scale(self, variable: Any, power: float, channels: Channels) -> None:
        """Says that a variable is multiplied with `(kept / all) ** power` of these channels.

        Raises:
            TypeError: `channels` are none, or `power` is no number.
        """
        check_channels(self.title, "scale", channels)
        if not is_number(power):
            raise TypeError(f"{self.title} must give a power as a number. Received: {power!r}")
        if variable is not None:
            path, number = self._call.path, self._number_of(variable)
            self._record.scales[(path, number)] = Scale(path, number, power, channels)

    def resize(self, key: Key, channels: Channels) -> None:
        """Says that an entry of the layer's config counts these channels.

        Args:
            key: Name of the entry, or the names and positions that lead to a nested one.
            channels: The channels that it counts.

        Raises:
            TypeError: `channels` are none, or `key` is no name and no way.
        """
        check_channels(self.title, "resize", channels)
        path = self._call.path
        if not isinstance(key, str):
            if not isinstance(key, Sequence) or not all(isinstance(k, (str, int)) for k in key):
                raise TypeError(
                    f"{self.title} must name an entry of the layer's config. Received: {key!r}"
                )
            key = tuple(key)
        if self._place.entries:
            key = (*self._place.entries, *([key] if isinstance(key, str) else key))
        known = self._record.resizes.setdefault((path, key), Resize(path, key, channels))
        if known.channels is not channels:
            self.tie(known.channels, channels)

    def rewrite(self, outputs: Sequence[Symbol]) -> None:
        """Says that the operation's sizes, bounds and indices follow the channels.

        Args:
            outputs: Its outputs.
        """
        path = self._call.path
        if self._place.names:
            operation = self._place.layer
            if is_written_with_sizes(operation):
                for symbol in (*self.inputs, *outputs):
                    self.keep(symbol, f"'{operation.name}' inside '{path}' counts them")
            return
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
        if not self._place.measured:
            return
        steps = len(self._place.steps)
        self._record.places.append(
            Place(
                self._call.path,
                self._number,
                steps + 1 if patches.channels_first else -1,
                features,
                outputs,
                replace(patches, steps=steps),
                self._number_of(kernel),
                None if bias is None else self._number_of(bias),
                refittable=all(v is None or v.constraint is None for v in (kernel, bias)),
                inside=self._inside(self._place.layer),
            )
        )

    def reading(self, part: Any, axis: int, channels: Channels, *, made: bool = False) -> None:
        """Says where the loss shows how much channels inside the layer are needed.

        Args:
            part: The layer inside it that is called on them, or that makes them.
            axis: Their axis, of its first input or its output.
            channels: The channels along it.
            made: Whether it makes them.
        """
        if not self._place.names:
            path = f"{self._call.path}/{part.name}:{axis}"
            inside = self._inside(part)
            self._record.places.append(
                Place(path, self._number, axis, channels, channels, made=made, inside=inside)
            )

    def _inside(self, layer: Any) -> int:
        """The number of a layer among the layers of the call's layer, itself 0."""
        parts = _keras.flatten_layers(self._call.operation)
        return next(number for number, part in enumerate(parts) if part is layer)

    def work(self, factor: float, *axes: Channels) -> None:
        """Says how much the layer computes for one sample: `factor` times the axes' widths.

        One multiply-add counts as 2 FLOPs.

        Raises:
            TypeError: The axes are no channels, or `factor` is no number.
        """
        check_channels(self.title, "work", *axes)
        if not is_number(factor):
            raise TypeError(f"{self.title} must give a factor as a number. Received: {factor!r}")
        times = float(np.prod(self._place.steps))
        self._record.work.append(Work(self._call.path, float(factor) * times, axes))

    def tie(self, first: Channels, second: Channels) -> None:
        """Makes channels leave together, index by index; one of the two may be a single one.

        Raises:
            TypeError: One of the two is no channels.
            ValueError: They are not equally many.
        """
        check_channels(self.title, "tie", first, second)
        try:
            self.ledger.tie(first, second)
        except ValueError as error:
            sizes = f"{len(first)} channels to {len(second)}"
            raise ValueError(f"{self.title} must tie equally many. Received: {sizes}") from error

    def keep(self, what: Symbol | Channels, reason: str) -> None:
        """Protects channels from removal, `reason` tells people why.

        Raises:
            TypeError: `what` is neither a tensor nor channels, or the reason no text.
        """
        if not isinstance(what, Symbol):
            check_channels(self.title, "keep", what)
        if not isinstance(reason, str):
            raise TypeError(f"{self.title} must give a reason in words. Received: {reason!r}")
        for channels in what.all_channels() if isinstance(what, Symbol) else [what]:
            self.ledger.protect(channels, reason)

    def keep_all(self, reason: str) -> list[Symbol]:
        """Protects all channels of the inputs and notes that the layer is left as it is.

        Returns:
            Outputs of which nothing can be removed.
        """
        note = (self._call.path, reason)
        if note not in self._record.kept:
            self._record.kept.append(note)
        for symbol in self.inputs:
            self.keep(symbol, reason)
        return [plain(shape) for shape in self.output_shapes]

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
