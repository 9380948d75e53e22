"""Small likenesses of layers on random numbers, whole and slim; protects nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.facts import Axis, Resize, Scale
from sgdap.channels.labels import Channels, TensorChannels
from sgdap.channels.probing import Array, agree, fits, halves, random_weights, taken
from sgdap.channels.remembering import key_of, key_of_arguments
from sgdap.channels.resizing import called, check_variables, new_entries, resized
from sgdap.channels.rewriting import Masks, rewritten
from sgdap.model.building import only_built, weights_not_drawn
from sgdap.model.generators import global_state_kept
from sgdap.model.leaves import is_of_keras, leaf_class
from sgdap.model.program import (
    Call,
    OperationCall,
    Shape,
    arrays_of,
    fill,
    leaves_of,
    symbolic_fill,
)
from sgdap.model.user_code import first_sentence

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Part:
    """A call of a layer or operation and what its rule said of it.

    Attributes:
        call: The call.
        shapes: The shapes of its inputs.
        dtypes: The dtypes of its inputs.
        inputs: The channels along the axes of its inputs.
        outputs: The channels along the axes of its outputs.
        axes: The axes of its layer's variables that have channels.
        resizes: The entries of its layer's config that count channels.
        scales: The variables of its layer that change their size with the number of channels.
        follows: Whether the operation's sizes, bounds and indices follow the channels.
        removable: Which of the model's channels may leave, `(channels,)`.
    """

    call: Call
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    inputs: tuple[TensorChannels, ...]
    outputs: tuple[TensorChannels, ...]
    axes: tuple[Axis, ...]
    resizes: tuple[Resize, ...]
    scales: tuple[Scale, ...]
    follows: bool
    removable: Mask

    @property
    def is_layer(self) -> bool:
        """Whether a layer is called, not an operation."""
        return isinstance(self.call.operation, keras.Layer)

    @property
    def is_of_keras(self) -> bool:
        """Whether all code of the layer or operation is Keras' or of this package."""
        operation = self.call.operation
        made_by = type(operation).__module__.split(".")[0]
        return made_by in ("keras", "sgdap") and not isinstance(operation, keras.layers.Lambda)

    @cached_property
    def lines(self) -> list[Channels]:
        """The channels of each axis, entry and scale that has any, those of its tensors first."""
        facts: tuple[Axis | Resize | Scale, ...] = (*self.axes, *self.resizes, *self.scales)
        of_tensors = [c for tensor in (*self.inputs, *self.outputs) for c in tensor]
        return [c for c in (*of_tensors, *(fact.channels for fact in facts)) if c is not None]

    @cached_property
    def blocks(self) -> tuple[Channels, ...]:
        """The channels that may leave; those that first lie in one line are a block."""
        left = self.removable.copy()
        blocks = []
        for line in self.lines:
            blocks.append(np.unique(line[left[line]]))
            left[blocks[-1]] = False
        return tuple(block for block in blocks if len(block))


@dataclass(frozen=True)
class Fault:
    """What is wrong with a likeness.

    Attributes:
        why: The reason, for people.
        can_run: Whether it can be run at all, with all its channels.
    """

    why: str
    can_run: bool


@dataclass(frozen=True, eq=False)
class Likeness:
    """A call's layer with random weights, with some of its channels, on tensors of any sizes.

    Attributes:
        part: The call.
        present: Which of the model's channels it has, `(channels,)`.
        leaving: Those of them that are left out by halves, in blocks.
        shapes: The shapes of its inputs.
    """

    part: Part
    present: Mask
    leaving: tuple[Channels, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def numbers(self) -> int:
        """How many numbers its inputs and variables hold."""
        variables = [self._shape(number) for number in range(len(self._variables))]
        return sum(map(math.prod, (*self.shapes, *variables)))

    def key(self) -> Hashable:
        """A key that is equal for likenesses that compute the same and lose the same channels.

        Raises:
            ValueError: Its layer can't be made.
        """
        part, present = self.part, self.present
        numbers = np.unique(np.concatenate([c[present[c]] for c in part.lines]))

        def shown(channels: Channels | None) -> Any:
            """The channels that it has, numbered from 0."""
            if channels is None:
                return None
            return np.searchsorted(numbers, channels[present[channels]])

        written = self._written(present)
        return key_of_arguments(written.args, written.kwargs), key_of(
            [
                _makers_of(part.call.operation),
                {**written.config, **self._entries(present), "name": None},
                part.dtypes,
                [part.call.inputs.index(ref) for ref in part.call.inputs],
                self.shapes,
                [list(map(shown, tensor)) for tensor in (*part.inputs, *part.outputs)],
                [(axis.variable, axis.axis, shown(axis.channels)) for axis in part.axes],
                [(self._shape(n), variable.dtype) for n, variable in enumerate(self._variables)],
                [(resize.key, shown(resize.channels)) for resize in part.resizes],
                [(scale.variable, scale.power, shown(scale.channels)) for scale in part.scales],
                list(map(shown, self.leaving)),
            ]
        )

    def fault(self) -> Fault | None:
        """Leaves out one half of the channels after another and describes the first fault.

        A slim layer must compute what the likeness computes when the channels that leave are
        zeroed where they are read: in its inputs, in kernels inside it (a recurrent one), and where
        they are inside only. Nothing of this stays in Keras' global state.

        Returns:
            The fault; None if there is none.
        """
        can_run = False
        with global_state_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would be about random numbers
            try:
                whole, inputs = self._made(self.present), self._drawn_inputs()
                values = self._drawn_values(signed=True)
                made = self._run(whole, self.present, inputs, values)
                can_run = True
                if not any(np.isfinite(np.asarray(x, np.float64)).any() for x in made):
                    values = self._drawn_values(signed=False)
                why = self._difference(whole, inputs, values)
            except Exception as error:  # whatever the layer or its device raises
                stops = f"it stops with {type(error).__name__}: {first_sentence(error)}"
                why = str(error) if self._has_rule else self._fails("can't be computed", stops)
        return None if why is None else Fault(why, can_run)

    def _difference(
        self, whole: Any, inputs: Sequence[Array], values: Sequence[Array]
    ) -> str | None:
        """What is wrong with the first slim one that computes something else."""
        layers: dict[Hashable, Any] = {}
        gone = np.concatenate(self.leaving)
        choices = [self._kept(gone[~half]) for half in halves([len(b) for b in self.leaving])]
        for kept in {choice.tobytes(): choice for choice in choices}.values():
            of_inputs = [self._stays(tensor, kept) for tensor in self.part.inputs]
            of_values = [self._stays(self._lines_of(n), kept) for n in range(len(values))]
            zeroed = list(map(_zeroed, inputs, of_inputs))
            inside = [self._read_inside(n, masks) for n, masks in enumerate(of_values)]
            expected = self._run(whole, self.present, zeroed, list(map(_zeroed, values, inside)))
            widths = tuple(int(kept[line].sum()) for line in self.part.lines)
            key = widths if self.part.is_layer else kept.tobytes()  # bounds are not widths alone
            slim = layers[key] = layers.get(key) or self._made(kept)
            scaled = self._scaled(list(map(taken, values, of_values)), kept)
            given = list(map(taken, inputs, of_inputs))
            found = self._run(slim, kept, given, scaled)
            if not self._knows_shapes(slim, given, found):
                return self._fails("makes another shape than Keras knows")
            of_outputs = [self._stays(tensor, kept) for tensor in self.part.outputs]
            if not agree(found, list(map(taken, expected, of_outputs))):
                again = self._run(whole, self.present, zeroed, None)
                if agree(again, expected):
                    return self._fails("computes something else")
                return f"{self._title} draws random numbers in inference, so it can't be tried"
        return None

    def _fails(self, how: str, why: str = "") -> str:
        """What goes wrong without some channels, and why, in words."""
        call = self.part.call
        if self._has_rule:
            return (
                f"{self._title} {how} without some of them, as trying it on random numbers showed, "
                "so its rule (see sgdap.register_rule) is wrong"
            )
        why = call.untraced or why
        return f"'{call.operation.name}' {how} without some of them{'; ' if why else ''}{why}"

    @property
    def _has_rule(self) -> bool:
        return leaf_class(self.part.call.operation) is not None

    @property
    def _title(self) -> str:
        call = self.part.call
        return f"'{call.path}' (of class {type(call.operation).__name__})"

    @property
    def _variables(self) -> list[Any]:
        """The variables of the call's layer."""
        return _keras.layer_variables(self.part.call.operation) if self.part.is_layer else []

    def _lines_of(self, number: int) -> list[Channels | None]:
        """The channels along each axis of a variable."""
        lines: list[Channels | None] = [None] * len(self._variables[number].shape)
        for axis in self.part.axes:
            if axis.variable == number:
                lines[axis.axis] = axis.channels
        return lines

    def _read_inside(self, number: int, masks: Masks) -> Masks:
        """The masks along those axes of a variable whose channels the layer itself reads.

        They carry channels to others of them, or channels that are nowhere but inside. Of what
        else a layer has for a channel that is zeroed, nothing may matter.
        """
        lines = self._lines_of(number)
        if sum(line is not None for line in lines) > 1:
            return masks
        outer = [line for t in (*self.part.inputs, *self.part.outputs) for line in t]
        outside = np.concatenate([own for own in outer if own is not None] or [np.zeros(0, int)])
        return [
            None if line is None or np.isin(line, outside).any() else mask
            for line, mask in zip(lines, masks, strict=True)
        ]

    def _shape(self, number: int) -> tuple[int, ...]:
        """The shape of a variable."""
        sizes = zip(self._variables[number].shape, self._lines_of(number), strict=True)
        return tuple(int(size if c is None else self.present[c].sum()) for size, c in sizes)

    def _entries(self, kept: Mask) -> dict[str, Any]:
        shrunk = not all(kept[axis.channels].all() for axis in self.part.axes)
        return new_entries(self.part.call.operation, self.part.resizes, kept, shrunk=shrunk)

    def _written(self, kept: Mask) -> OperationCall:
        """How the operation is written, and called, when some channels are kept."""
        part = self.part
        if not part.follows:
            return self._as_written
        operation = part.call.operation
        return rewritten(operation, self._as_written, kept, part.inputs, part.outputs)

    @cached_property
    def _as_written(self) -> OperationCall:
        """How the operation is written, and called, in the model."""
        return OperationCall.of(self.part.call, _config_of(self.part.call.operation))

    def _made(self, kept: Mask) -> Any:
        """The layer or operation with the channels that are kept; a layer is not built yet."""
        call = self.part.call
        if self.part.is_layer:
            return resized(call.operation, call.path, self._entries(kept))
        return type(call.operation).from_config(dict(self._written(kept).config))

    def _run(
        self, operation: Any, kept: Mask, inputs: Sequence[Array], values: Sequence[Array] | None
    ) -> list[Array]:
        """What a layer or operation makes of inputs.

        Args:
            operation: The layer or operation.
            kept: Which channels it has.
            inputs: Its inputs.
            values: What its variables are set to before; None: they stay as they are.
        """
        call, path = self.part.call, self.part.call.path
        tensors = dict(enumerate(map(keras.ops.convert_to_tensor, inputs)))
        args, kwargs = fill(self._written(kept), tensors)
        if not self.part.is_layer:
            return arrays_of(operation(*args, **kwargs))
        if "training" not in kwargs and "training" in operation.call_signature_parameters:
            kwargs["training"] = False
        if values is not None:
            if len(_keras.layer_variables(operation)) != len(values) or not operation.built:
                self._build(operation, args, kwargs, len(values))
            shapes = {number: value.shape for number, value in enumerate(values)}
            check_variables(path, call.operation, operation, shapes)
            for variable, value in zip(_keras.layer_variables(operation), values, strict=True):
                variable.assign(value)
        return arrays_of(called(operation, path, args, kwargs))

    def _build(self, layer: Any, args: Any, kwargs: Any, count: int) -> None:
        """Makes a layer's variables, as its first call does."""
        path = self.part.call.path
        with weights_not_drawn():
            if self.part.is_of_keras:
                with only_built(layer):
                    called(layer, path, args, kwargs)
            if not layer.built or len(_keras.layer_variables(layer)) != count:
                called(layer, path, args, kwargs)

    def _knows_shapes(self, slim: Any, given: Sequence[Array], found: Sequence[Array]) -> bool:
        """Whether Keras knows the shapes of what a slim layer of the user's own made."""
        if self.part.is_of_keras or not self.part.is_layer:
            return True
        numbers = [ref.index for ref in self.part.call.inputs]
        shapes = dict(zip(numbers, (array.shape for array in given), strict=True))
        dtypes = dict(zip(numbers, self.part.dtypes, strict=True))
        args, kwargs = symbolic_fill(self.part.call, shapes, dtypes)
        specs = leaves_of(slim.compute_output_spec(*args, **kwargs))
        return fits([array.shape for array in found], [spec.shape for spec in specs])

    def _drawn_inputs(self) -> list[Array]:
        """Random numbers for the inputs; zeros and ones where there are no channels.

        Those may be numbers of rows, positions or masks.
        """
        random = np.random.default_rng(0)
        part = self.part
        drawn: dict[int, Any] = {}
        for ref, tensor, shape, dtype in zip(
            part.call.inputs, part.inputs, self.shapes, part.dtypes, strict=True
        ):
            whole = "float" not in dtype or all(channels is None for channels in tensor)
            values = random.integers(2, size=shape) if whole else random.normal(0, 2, shape)
            drawn.setdefault(ref.index, keras.ops.cast(values, dtype))
        return arrays_of([drawn[ref.index] for ref in part.call.inputs])

    def _drawn_values(self, *, signed: bool) -> list[Array]:
        """Random numbers for the variables; those that are no floats keep their values."""
        random = np.random.default_rng(1)
        drawn: list[Any] = []
        for number, variable in enumerate(self._variables):
            shape = self._shape(number)
            if not keras.backend.is_float_dtype(variable.dtype):
                masks = [None if c is None else self.present[c] for c in self._lines_of(number)]
                (value,) = arrays_of(variable)
                drawn.append(taken(value, masks))
                continue
            values = random_weights(shape, random, signed=signed)
            drawn.append(keras.ops.cast(values, variable.dtype))
        return arrays_of(drawn)

    def _kept(self, gone: Channels) -> Mask:
        """The channels without some of them, but at least one along each axis."""
        kept = self.present.copy()
        kept[gone] = False
        for line in self.part.lines:
            if not kept[line].any():
                kept[line[self.present[line]][:1]] = True
        return kept

    def _stays(self, lines: Sequence[Channels | None], kept: Mask) -> Masks:
        """Which of the indices that the likeness has are kept along each axis."""
        return [None if c is None else kept[c[self.present[c]]] for c in lines]

    def _scaled(self, values: list[Array], kept: Mask) -> list[Array]:
        for scale in self.part.scales:
            factor = kept[scale.channels].sum() / self.present[scale.channels].sum()
            value = values[scale.variable]
            values[scale.variable] = value * np.asarray(factor**scale.power, value.dtype)
        return values


def _zeroed(array: Array, masks: Masks) -> Array:
    """An array with zeros at the indices that are not kept."""
    array = array.copy()
    for axis, mask in enumerate(masks):
        if mask is not None:
            np.moveaxis(array, axis, 0)[~mask] = 0
    return array


def _config_of(operation: Any) -> dict[str, Any]:
    try:
        return dict(operation.get_config())
    except Exception:  # then it is made from its attributes, and is like no other
        return {"": object()}


def _makers_of(operation: Any) -> list[Any]:
    """What makes a layer or operation what it is, beside its config."""
    parts = _keras.flatten_layers(operation) if isinstance(operation, keras.Layer) else [operation]
    return [(type(part), _untold(part)) for part in parts]


def _untold(part: Any) -> dict[str, Any]:
    """Attributes that a config may not tell: functions, of the user's own classes others too."""
    own = not is_of_keras(part)
    kinds = (FunctionType, bool, int, float, str, list, tuple) if own else (FunctionType,)

    def counts(value: Any) -> bool:
        if isinstance(value, kinds):
            return True
        return own and hasattr(value, "__array__") and not isinstance(value, keras.Variable)

    return {
        name: value
        for name, value in vars(part).items()
        if name[0] != "_" and name != "name" and not hasattr(type(part), name) and counts(value)
    }
