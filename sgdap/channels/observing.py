"""What a rule says of where a layer's channels can be observed; the rest is in `RuleCall`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.channels.facts import Place, Statements, Unsettled
from sgdap.channels.labels import Labels, Symbol
from sgdap.channels.patches import Patches
from sgdap.channels.subject import Subject
from sgdap.model.program import Call


class Observing:
    """One call of a layer, as far as it is observed while the model runs.

    Attributes:
        inputs: The input tensors, flattened.
    """

    inputs: Sequence[Symbol]
    _statements: Statements
    _call: Call
    _number: int
    _subject: Subject
    _variables: Mapping[int, int]

    @property
    def path(self) -> str:
        """The path of the layer, with the names of the layers that it is inside of."""
        return "/".join((self._call.path, *self._subject.names))

    @property
    def title(self) -> str:
        """The name of the rule in messages."""
        return f"The rule of '{self.path}' (of class {type(self._subject.layer).__name__})"

    def _number_of(self, variable: Any) -> int:
        """The number of one of the layer's variables."""
        number = self._variables.get(id(variable))
        if number is None:
            raise ValueError(
                f"{self.title} must speak of its variables. Received: {shown(variable)}"
            )
        return number

    def linear(
        self, kernel: Any, bias: Any, patches: Patches, features: Labels, outputs: Labels
    ) -> None:
        """States that the layer multiplies patches of its first input with a kernel.

        Args:
            kernel: The variable whose last axis is the outputs.
            bias: The variable added to them, or None.
            patches: The way the input is read.
            features: The channel of each row of the kernel, `(features,)`.
            outputs: The channel of each output, `(outputs,)`.
        """
        if not self._subject.measured:
            return
        steps = len(self._subject.steps)
        axis, patches = steps + 1 if patches.channels_first else -1, replace(patches, steps=steps)
        path = self._call.path + (f":{patches.group}" if patches.groups > 1 else "")
        fact = partial(Place, path, self._number, axis, patches=patches)
        self._multiplied(self._subject.layer, kernel, bias, features, outputs, fact)

    def projection(
        self, part: Any, read: Symbol, kernel: Any, bias: Any, features: Labels, outputs: Labels
    ) -> None:
        """States that a layer multiplies the last axis of a tensor with a kernel.

        What the kernel makes isn't shown: the layer goes on with it. Inside a layer that is called
        at every step nothing can be observed.

        Args:
            part: The layer that the rule speaks of, or an inner layer: it is called on the tensor.
            read: The tensor, one of the inputs.
            kernel: The variable whose first axis is the features.
            bias: The variable added to the products, the first row of it where it has several; or
                None.
            features: The channel of each feature, `(features,)`.
            outputs: The channel of each output, `(outputs,)`, or the channels along each of its
                axes, `(axes, outputs)`; an output stays where all of its channels do.
        """
        if not self._subject.measured or self._subject.steps:
            return
        path = self.path if part is self._subject.layer else f"{self.path}/{part.name}"
        tensor = next(number for number, own in enumerate(self.inputs) if own is read)
        fact = partial(Place, path, self._number, -1, tensor=tensor, shown=False)
        self._multiplied(part, kernel, bias, features, outputs, fact)

    def _multiplied(
        self, part: Any, kernel: Any, bias: Any, features: Labels, outputs: Labels, fact: Any
    ) -> None:
        """Notes a place where a kernel multiplies rows."""
        of_kernel = partial(
            fact,
            kernel=self._number_of(kernel),
            bias=None if bias is None else self._number_of(bias),
            refittable=all(v is None or v.constraint is None for v in (kernel, bias)),
            inside=self._inside(part),
        )
        self._statements.places.append(Unsettled((features, outputs), of_kernel))

    def reading(self, part: Any, axis: int, channels: Labels, *, made: bool = False) -> None:
        """States where channels inside the layer can be observed.

        Args:
            part: The inner layer that is called on the channels, or that makes them.
            axis: The axis of the channels in its first input, or in its output.
            channels: The channels along this axis.
            made: Whether the inner layer makes them.
        """
        if not self._subject.names:
            path = f"{self._call.path}/{part.name}:{axis}"
            inside = self._inside(part)
            fact = partial(Place, path, self._number, axis, made=made, inside=inside)
            self._statements.places.append(Unsettled((channels, channels), fact))

    def _inside(self, layer: Any) -> int:
        """The number of a layer among the layers of the call's layer, itself 0."""
        parts = _keras.flatten_layers(self._call.operation)
        return next(number for number, part in enumerate(parts) if part is layer)
