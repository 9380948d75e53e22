"""What a rule can say about a call of a layer; it is written down in `Statements`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.channels.checks import check_axes, check_channels, check_number, checked_key
from sgdap.channels.facts import Axis, Key, Resize, Scale, Statements, Unsettled, Work
from sgdap.channels.labels import Labels, Ledger, Symbol, plain, positions
from sgdap.channels.observing import Observing
from sgdap.channels.registry import apply_rule
from sgdap.channels.rewriting import is_written_with_sizes
from sgdap.channels.subject import Subject
from sgdap.model.program import Call, Ref, Shape


class RuleCall(Observing):
    """One call of a layer, as its rule sees it.

    Attributes:
        inputs: The input tensors, flattened.
        output_shapes: Shapes of the output tensors, flattened.
        input_dtypes: The dtypes of the input tensors.
        args: The call's positional arguments (a `Ref` for each tensor).
        kwargs: The call's keyword arguments, likewise.
        untraced: Why the layer's code was not followed; empty where it was, or there is none.
        mixes_for_a_loss: Whether an operation may mix channels: only an `add_loss` needs it.
    """

    def __init__(
        self,
        statements: Statements,
        call: Call,
        number: int,
        inputs: Sequence[Symbol],
        output_shapes: Sequence[Shape],
        input_dtypes: Sequence[str] = (),
        repeats: float = 1.0,
        subject: Subject | None = None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.output_shapes = tuple(output_shapes)
        self.input_dtypes = tuple(input_dtypes)
        self.args = call.args
        self.kwargs = call.kwargs
        self.untraced = call.untraced
        self.mixes_for_a_loss = False
        self._statements = statements
        self._call = call
        self._number = number
        self._repeats = repeats
        self._subject = subject or Subject(call.operation)
        refs = call.inputs
        self._symbols = {ref.index: x for ref, x in zip(refs, inputs, strict=bool(refs))}
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
        """The labels, with what ties and protects them."""
        return self._statements.ledger

    def output(self) -> Symbol:
        """The only, or first, output, if nothing of it can be removed."""
        return plain(self.output_shape)

    def outputs(self) -> list[Symbol]:
        """All outputs, if nothing of them can be removed."""
        return [plain(shape) for shape in self.output_shapes]

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

    def new_channels(self, count: int, name: str = "") -> Labels:
        """Channels that this layer makes; the same ones at each call of a shared layer.

        Args:
            count: Their number.
            name: A name that tells several kinds of channels of one layer apart.

        Raises:
            ValueError: `count` is no integer that is not negative.
        """
        if not isinstance(count, (int, np.integer)) or count < 0:
            raise ValueError(f"{self.title} must make 0 channels or more. Received: {shown(count)}")
        made, key = self._statements.made, (self.path, name)
        if key not in made:
            made[key] = self.ledger.new(f"{self.path}:{name}" if name else self.path, count)
        return made[key]

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
        layer = getattr(self._subject.layer, attribute)
        steps = [positions(self.input.shape[1:2])] if each_step else []
        subject = self._subject.inside(layer, layer.name, (entry, "config"), steps)
        call = replace(self._call, args=(), kwargs=arguments or {})
        return self._at(subject, call, inputs, output_shapes)

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
            inner: The layer's call in that model.
            way: The names and positions that lead from that model's config to the layer's.
            inputs: The tensors that it is called on.
            output_shapes: Shapes of the tensors that it makes.
            input_dtypes: The dtypes of `inputs`.

        Returns:
            The channels of its outputs.
        """
        subject = self._subject.inside(inner.operation, inner.path, way)
        subject = replace(subject, measured=False)
        call = replace(self._call, args=inner.args, kwargs=inner.kwargs)
        return self._at(subject, call, inputs, output_shapes, input_dtypes)

    def _at(
        self, subject: Subject, call: Call, inputs: Any, output_shapes: Any, input_dtypes: Any = ()
    ) -> list[Symbol]:
        """The channels of an inner layer's outputs, as its own rule says."""
        told = (self._statements, call, self._number, inputs, output_shapes, input_dtypes)
        return apply_rule(subject.layer, RuleCall(*told, self._repeats, subject))

    def fixed(self, count: int) -> Labels:
        """Channels that can't be removed, to stand for an axis that has none."""
        made, key = self._statements.made, ("", str(count))
        if key not in made:
            made[key] = self.ledger.fixed(count, "not made by a layer of the model")
        return made[key]

    def along(self, symbol: Symbol, axis: int) -> Labels:
        """The channels along an axis; where it has none, channels that can't be removed.

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

    def weight(self, variable: Any, *axes: Labels | None) -> None:
        """States which channels lie along the axes of one of the layer's variables.

        Args:
            variable: The variable. None, for a bias that is not used, says nothing.
            *axes: For each of its axes the channels, or None.

        Raises:
            TypeError: Something else than channels is given for an axis.
            ValueError: `variable` is no variable of the layer, or has other axes.
        """
        if variable is None:
            return
        number = self._number_of(variable)
        check_axes(self.title, variable, axes)
        path = self._call.path
        own = [made for (maker, _), made in self._statements.made.items() if maker == self.path]
        made = [c is not None and bool(np.isin(c, np.concatenate(own)).all()) for c in axes if own]
        for axis, channels in enumerate(axes):
            if channels is None:
                continue
            role = "follower" if not any(made) else "producer" if made[axis] else "consumer"
            fact = Unsettled((channels,), partial(Axis, path, number, axis, role=role))
            self._same(self._statements.axes.setdefault((path, number, axis), fact), channels)

    def _same(self, known: Unsettled[Any], channels: Labels) -> None:
        """Ties channels to those that an earlier call of the layer said the same of."""
        if known.labels[0] is not channels:
            self.tie(known.labels[0], channels)

    def along_weight(self, variable: Any, axis: int) -> Labels | None:
        """The channels that were said to lie along an axis of one of the layer's variables."""
        number, axis = self._number_of(variable), axis % len(variable.shape)
        known = self._statements.axes.get((self._call.path, number, axis))
        return None if known is None else known.labels[0]

    def scale(self, variable: Any, power: float, channels: Labels) -> None:
        """States that a variable is multiplied with `(kept / all) ** power` of these channels.

        Raises:
            TypeError: `channels` are no channels, or `power` is no number.
        """
        check_channels(self.title, "scale", channels)
        check_number(self.title, "a power", power)
        if variable is not None:
            path, number = self._call.path, self._number_of(variable)
            fact = Unsettled((channels,), partial(Scale, path, number, power))
            self._statements.scales[(path, number)] = fact

    def resize(self, key: Key, channels: Labels) -> None:
        """States that an entry of the layer's config counts these channels.

        Args:
            key: Name of the entry, or the names and positions that lead to a nested one.
            channels: The channels that it counts.

        Raises:
            TypeError: `channels` are no channels, or `key` is not made of names and positions.
        """
        check_channels(self.title, "resize", channels)
        path, key = self._call.path, checked_key(self.title, key)
        if self._subject.entries:
            key = (*self._subject.entries, *([key] if isinstance(key, str) else key))
        fact = Unsettled((channels,), partial(Resize, path, key))
        self._same(self._statements.resizes.setdefault((path, key), fact), channels)

    def rewrite(self, outputs: Sequence[Symbol]) -> None:
        """States that the operation's sizes, bounds and indices follow its inputs and outputs."""
        path = self._call.path
        if self._subject.names:
            operation = self._subject.layer
            if is_written_with_sizes(operation):
                for symbol in (*self.inputs, *outputs):
                    self.keep(symbol, f"'{operation.name}' inside '{path}' counts them")
            return
        tensors = (*self.inputs, *outputs)
        _, known = self._statements.rewrites.setdefault(path, (self._number, tensors))
        for before, after in zip(known, tensors, strict=True):  # called twice, written once
            for axis, (first, second) in enumerate(zip(before.axes, after.axes, strict=True)):
                if first is not None and second is not None:
                    self.tie(first, second)
                else:
                    for symbol in (before, after):
                        self.keep_along(symbol, axis, f"'{path}' is called on other channels too")

    def work(self, factor: float, *axes: Labels) -> None:
        """States what the layer computes for one sample: `factor` times the number of channels.

        Where operations folded other axes into the first one, a layer computes it for each row.

        Args:
            factor: FLOPs for one channel of each axis; one multiply-add counts as 2.
            *axes: The channels of each axis; their numbers are multiplied.

        Raises:
            TypeError: An axis is no channels, or `factor` is no number.
        """
        check_channels(self.title, "work", *axes)
        check_number(self.title, "a factor", factor)
        factor = float(factor) * self._repeats * float(np.prod(self._subject.steps))
        path = self._call.path
        self._statements.work.append(Unsettled(axes, lambda *axes: Work(path, factor, axes)))

    def tie(self, first: Labels, second: Labels) -> None:
        """Makes channels leave together, index by index; one of the two may be a single one.

        Raises:
            TypeError: `first` or `second` are no channels.
            ValueError: They differ in number.
        """
        check_channels(self.title, "tie", first, second)
        try:
            self.ledger.tie(first, second)
        except ValueError as error:
            sizes = f"{len(first)} channels to {len(second)}"
            raise ValueError(f"{self.title} must tie equally many. Received: {sizes}") from error

    def keep(self, what: Symbol | Labels, reason: str) -> None:
        """Protects channels, or all channels of a tensor, from removal; the reason is for people.

        Raises:
            TypeError: `what` is neither a tensor nor channels, or the reason no text.
        """
        kept = what.all_channels() if isinstance(what, Symbol) else [what]
        check_channels(self.title, "keep", *kept)
        if not isinstance(reason, str):
            raise TypeError(f"{self.title} must give a reason in words. Received: {shown(reason)}")
        self.ledger.protect(what, reason)

    def keep_along(self, symbol: Symbol, axis: int, reason: str) -> None:
        """Protects the channels along one axis of a tensor, where there are any."""
        channels = symbol.axes[axis]
        if channels is not None:
            self.keep(channels, reason)

    def keep_all(self, reason: str) -> list[Symbol]:
        """Protects all inputs and notes that the layer is left as it is; returns the outputs.

        Where the inputs have no channels and the layer no weights, nothing stays that might leave:
        what makes ready a model's inputs is not noted.
        """
        note = (self._call.path, reason)
        concerned = any(labels.size for symbol in self.inputs for labels in symbol.all_channels())
        concerned = concerned or bool(getattr(self._call.operation, "weights", ()))
        if concerned and note not in self._statements.kept:
            self._statements.kept.append(note)
        for symbol in self.inputs:
            self.keep(symbol, reason)
        return self.outputs()

    def keep_positions(self, axis: int, symbol: Symbol | None = None) -> None:
        """Protects channels along all axes of a tensor but its channel axis.

        Args:
            axis: The channel axis.
            symbol: The tensor; None: the first input.
        """
        symbol = symbol or self.input
        for other in range(symbol.rank):
            if other != axis % symbol.rank:
                reason = f"'{self._subject.layer.name}' works along their axis"
                self.keep_along(symbol, other, reason)

    def keep_masks(self, given: Sequence[Any]) -> None:
        """Protects the channels of all inputs that are not among the given ones."""
        for symbol in self.inputs:
            if all(symbol is not one for one in given):
                self.keep(symbol, f"'{self._subject.layer.name}' reads them as a mask")
