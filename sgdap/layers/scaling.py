"""Which channels may be scaled while a model computes the same; found by trial, changes nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap import _keras
from sgdap.channels.facts import Axis
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.labels import Channels
from sgdap.channels.probing import Array, random_inputs, random_weights
from sgdap.model.generators import global_state_kept
from sgdap.model.program import arrays_of, inference_arguments

Node = tuple[int | str, int]
"""A tensor (or a layer, of what lies inside) and the group of the channels that are meant."""

Powers = Mapping[tuple[int, int], int]
"""The powers of the scales that multiply variables of a layer, by variable and axis."""

_MAGNITUDES = {"float32": (1e-3, 1.0, 1e4), "float64": (1e-3, 1.0, 1e4)}
_FEW_DIGITS = (0.1, 1.0, 10.0)
"""What random inputs are multiplied with: a function that bends somewhere shows it at one."""

_MOST = 81
"""With more choices of powers a layer's channels are not scaled."""

_ALONE, _MADE, _THROUGH, _INSIDE = "alone", "made", "through", "inside"
_CHOICES: dict[str, dict[str, tuple[int, ...]]] = {
    _ALONE: {"consumer": (-1,), "producer": (0,), "follower": (0, -1, 1)},
    _MADE: {"consumer": (0, -1), "producer": (1, -1), "follower": (0, 1)},
    _THROUGH: {"consumer": (-1,), "producer": (1,), "follower": (0, 1)},
    _INSIDE: {"consumer": (0, -1), "producer": (0, 1, -1), "follower": (0, 1, -1)},
}
"""The powers that an axis may have: where what a layer reads is scaled, what it makes, both, or
neither."""


@dataclass(frozen=True, eq=False)
class ScaledAxis:
    """An axis of a variable along which it is multiplied with a power of the channels' scales.

    Attributes:
        path: Path of the layer.
        variable: Number of the variable among the layer's.
        axis: Number of the axis.
        power: The power, 1 or −1.
        channels: The channel of each index, by its number in `Scalable.channels`; −1 where it is
            none of these.
    """

    path: str
    variable: int
    axis: int
    power: int
    channels: Channels


@dataclass(frozen=True, eq=False)
class Scalable:
    """Channels that may have any positive scales: all that makes and reads them makes up for it.

    Attributes:
        channels: The channels, `(size,)`.
        axes: The axes of variables that are multiplied.
    """

    channels: Channels
    axes: tuple[ScaledAxis, ...]


def scalable_channels(graph: ChannelGraph) -> tuple[Scalable, ...]:
    """Finds the channels of a model that may be scaled between the layers that make and read them.

    Between them only such operations stand that are positively homogeneous, `f(s x) = s f(x)`
    channel by channel. Each call of a layer or operation is tried on random inputs and weights at
    several magnitudes: with what it reads scaled, with what it makes scaled, and with both. The
    axes of weights that lie along the channels say what may be multiplied in return. What fails
    at one place is scaled nowhere. A depthwise convolution or a batch normalisation has weights for
    each channel, so the scales before and after it are independent.

    Args:
        graph: The channels of a model.

    Returns:
        Sets of channels with a scale of their own each. Scales of different sets are independent.
    """
    trials = _Trials(graph)
    with global_state_kept():
        for path in graph.program.layers():
            trials.try_layer(path)
    return trials.settled()


class _Trials:
    """Tries layer after layer, and remembers which tensors' scales are tied or must be 1."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph, self._program = graph, graph.program
        self._group = np.full(graph.count, -1)
        for number, group in enumerate(graph.groups):
            self._group[group.channels] = number
        random = np.random.default_rng(0)
        self._scales = np.exp2(random.integers(-3, 4, graph.count))  # exact products
        self._axes: dict[str, list[Axis]] = {}
        for axis in graph.axes:
            self._axes.setdefault(axis.path, []).append(axis)
        ends = (*self._program.inputs, *self._program.outputs, *self._program.losses)
        self._fixed: set[Node] = {(r.index, g) for r in ends for g in self._groups_of(r.index)}
        self._ties: list[Collection[Node]] = []
        self._terms: list[tuple[Node, str, Powers]] = []
        self._known: dict[Any, Powers] = {}
        layers = self._program.layers().values()
        with_weights = [x for x in layers if getattr(x, "weights", ())]
        own = [id(v) for layer in with_weights for v in _keras.layer_variables(layer)]
        self._shared = {number for number in own if own.count(number) > 1} if own else set()

    def try_layer(self, path: str) -> None:
        """Finds out what may be scaled around the calls of a layer or operation."""
        numbers = [n for n, call in enumerate(self._program.calls) if call.path == path]
        axes = self._axes.get(path, [])
        together = [numbers] if axes else [[number] for number in numbers]
        for calls in together:
            reads = {r.index for n in calls for r in self._program.calls[n].inputs}
            makes = {r.index for n in calls for r in self._program.calls[n].outputs}
            around = {g for index in reads | makes for g in self._groups_of(index)}
            inside = {int(self._group[c]) for axis in axes for c in axis.channels}
            tried = None if _differs_in_training(self._program.layers()[path]) else calls
            probe = None
            for group in sorted((around | inside) - {-1}):
                own_reads = {index for index in reads if group in self._groups_of(index)}
                own_makes = {index for index in makes if group in self._groups_of(index)}
                if tried is not None and probe is None:
                    probe = _Probe.of(self._graph, path, calls)
                if probe is None:
                    self._fix(own_reads | own_makes, group)
                else:
                    self._try_group(probe, path, group, own_reads, own_makes)

    def _try_group(
        self, probe: _Probe, path: str, group: int, reads: set[int], makes: set[int]
    ) -> None:
        if not reads and not makes:
            self._note(probe, _INSIDE, path, group, set(), (path, group))
            return
        alone = bool(reads) and self._note(probe, _ALONE, path, group, reads)
        made = bool(makes) and self._note(probe, _MADE, path, group, makes)
        if (alone or not reads) and (made or not makes):
            return
        if reads and makes and not alone and not made:
            for some in self._subsets(reads, group, len(probe.calls) > 1):
                if self._note(probe, _THROUGH, path, group, some | makes):
                    self._fix(reads - some, group)
                    return
        self._fix((set() if alone else reads) | (set() if made else makes), group)

    def _subsets(self, reads: set[int], group: int, only_all: bool) -> Iterator[set[int]]:
        """Tensors that may be scaled together, all of them first."""
        yield reads
        free = sorted(index for index in reads if (index, group) not in self._fixed)
        if only_all or len(reads) > 4:
            return
        for size in range(min(len(free), len(reads) - 1), 0, -1):
            yield from map(set, itertools.combinations(free, size))

    def _note(
        self,
        probe: _Probe,
        how: str,
        path: str,
        group: int,
        scaled: set[int],
        inside: Node | None = None,
    ) -> bool:
        """Whether tensors can be scaled; remembers it if so."""
        powers = self._powers(probe, how, path, group, scaled)
        if powers is None:
            return False
        nodes: list[Node] = [inside] if inside else [(index, group) for index in sorted(scaled)]
        self._ties.append(nodes)
        self._terms.append((nodes[0], path, powers))
        return True

    def _powers(
        self, probe: _Probe, how: str, path: str, group: int, scaled: set[int]
    ) -> Powers | None:
        """The powers of weights that make up for the scales of some tensors; None: there are none.

        Those that were right for a layer of the same class are tried first.
        """
        own = [a for a in self._axes.get(path, []) if (self._group[a.channels] == group).any()]
        scales = np.where(self._group == group, self._scales, 1.0)
        places = [(axis.variable, axis.axis) for axis in own]
        variables = {place[0] for place in places}
        if any(not probe.is_free(variable, self._shared) for variable in variables):
            return None
        roles = [axis.role for axis in own]
        each = [_CHOICES[how][role] for role in roles]
        if math.prod(map(len, each)) > _MOST:
            return None
        choices = sorted(itertools.product(*each), key=lambda own: sum(map(abs, own)))
        if how == _INSIDE:
            choices = [own for own in choices if {1, -1} <= set(own)]
        key = type(self._program.layers()[path]), how, tuple(places), tuple(roles)
        found = [self._known[key]] if key in self._known else []
        tried = (dict(zip(places, choice, strict=True)) for choice in choices)
        for powers in itertools.chain(found, tried):
            if probe.holds(scaled, scales, powers, own):
                self._known[key] = powers
                return powers
        return None

    def _fix(self, indices: Collection[int], group: int) -> None:
        self._fixed.update((index, group) for index in indices)

    def _groups_of(self, index: int) -> set[int]:
        """The groups of the channels along the axes of a tensor."""
        lines = [own for own in self._graph.tensors.get(index, ()) if own is not None]
        return {int(g) for own in lines for g in np.unique(self._group[own])} - {-1}

    def settled(self) -> tuple[Scalable, ...]:
        """What is left when all is tried."""
        above: dict[Node, Node] = {}

        def root(node: Node) -> Node:
            while (up := above.setdefault(node, node)) != node:
                node = up
            return node

        for nodes in self._ties:
            first, *others = nodes
            for other in others:
                above[root(other)] = root(first)
        fixed = {root(node) for node in self._fixed}
        axes: dict[Node, list[ScaledAxis]] = {}
        for node, path, powers in self._terms:
            if root(node) not in fixed:
                axes.setdefault(root(node), []).extend(self._scaled(node[1], path, powers))
        groups = self._graph.groups
        return tuple(
            Scalable(groups[node[1]].channels, tuple(own)) for node, own in axes.items() if own
        )

    def _scaled(self, group: int, path: str, powers: Powers) -> Iterator[ScaledAxis]:
        channels = self._graph.groups[group].channels
        place = np.full(self._graph.count, -1)
        place[channels] = np.arange(len(channels))
        for axis in self._axes.get(path, []):
            power = powers.get((axis.variable, axis.axis), 0)
            if power:
                number = place[axis.channels]
                yield ScaledAxis(path, axis.variable, axis.axis, power, number)


def _differs_in_training(operation: Any) -> bool:
    """Whether a layer looks at what it makes, or computes with other numbers than its weights."""
    if not isinstance(operation, keras.Layer):
        return False
    return any(
        getattr(inner, "activity_regularizer", None) is not None
        or getattr(inner, "lora_enabled", False)
        or getattr(inner, "quantization_mode", None) is not None
        for inner in _keras.flatten_layers(operation)
    )


@dataclass(frozen=True, eq=False)
class _Probe:
    """Calls of a layer on random numbers.

    Attributes:
        graph: The channels of the model.
        calls: The numbers of the calls.
        variables: The layer's variables.
        values: Random values for them.
        inputs: For each call random inputs at several magnitudes.
        outputs: What it makes of these.
    """

    graph: ChannelGraph
    calls: tuple[int, ...]
    variables: tuple[Any, ...]
    values: tuple[Array, ...]
    inputs: tuple[tuple[list[Array], ...], ...]
    outputs: tuple[tuple[list[Array], ...], ...]

    @classmethod
    def of(cls, graph: ChannelGraph, path: str, calls: Sequence[int]) -> _Probe | None:
        """The calls of a layer; None where they can't be run on random numbers."""
        operation = graph.program.layers()[path]
        variables = _keras.layer_variables(operation) if hasattr(operation, "weights") else []
        values = list(map(_drawn, variables, range(len(variables))))
        inputs = tuple(tuple(_inputs(graph, number)) for number in calls)
        bare = cls(graph, tuple(calls), tuple(variables), tuple(values), inputs, ())
        try:
            outputs = tuple(
                tuple(bare.run(number, own, values) for own in each)
                for number, each in zip(calls, inputs, strict=True)
            )
        except Exception:  # whatever the layer or its device raises
            return None
        return cls(graph, tuple(calls), tuple(variables), tuple(values), inputs, outputs)

    def is_free(self, variable: int, shared: Collection[int]) -> bool:
        """Whether a variable may be multiplied with numbers."""
        own = self.variables[variable]
        return (
            id(own) not in shared
            and keras.backend.is_float_dtype(own.dtype)
            and getattr(own, "constraint", None) is None
        )

    def holds(
        self,
        scaled: set[int],
        scales: npt.NDArray[np.float64],
        powers: Powers,
        axes: Sequence[Axis],
    ) -> bool:
        """Whether the calls make the same, with these tensors scaled and the weights multiplied.

        Args:
            scaled: The numbers of the tensors, read or made.
            scales: The scale of each of the model's channels.
            powers: The powers of the scales for the variables.
            axes: The axes of the variables that have these channels.
        """
        values = list(self.values)
        for axis in axes:
            power = powers[axis.variable, axis.axis]
            value = values[axis.variable]
            values[axis.variable] = _times(value, axis.axis, scales[axis.channels] ** power)
        program = self.graph.program
        for number, inputs, outputs in zip(self.calls, self.inputs, self.outputs, strict=True):
            call = program.calls[number]
            for own, expected in zip(inputs, outputs, strict=True):
                given = [
                    self._along(ref.index, x, scales) if ref.index in scaled else x
                    for ref, x in zip(call.inputs, own, strict=True)
                ]
                try:
                    made = self.run(number, given, values)
                except Exception:  # whatever the layer raises
                    return False
                for ref, found, wanted in zip(call.outputs, made, expected, strict=True):
                    if ref.index in scaled:
                        found = self._along(ref.index, found, 1 / scales)
                    if not _equal(found, wanted):
                        return False
        return True

    def _along(self, index: int, x: Array, scales: npt.NDArray[np.float64]) -> Array:
        for axis, channels in enumerate(self.graph.tensors.get(index, ())):
            if channels is not None:
                x = _times(x, axis, scales[channels])
        return x

    def run(self, number: int, inputs: Sequence[Array], values: Sequence[Array]) -> list[Array]:
        """What a call makes of inputs with such values of the layer's variables."""
        program = self.graph.program
        call = program.calls[number]
        tensors = {
            ref.index: keras.ops.convert_to_tensor(x)
            for ref, x in zip(call.inputs, inputs, strict=True)
        }
        in_code = any(code.start <= number < code.stop for code in program.codes)
        args, kwargs = inference_arguments(call, tensors, in_code=in_code)
        mapping = list(zip(self.variables, map(keras.ops.convert_to_tensor, values), strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return arrays_of(call.operation(*args, **kwargs))


def _inputs(graph: ChannelGraph, number: int) -> Iterator[list[Array]]:
    """Random inputs of a call, two samples, at several magnitudes."""
    program = graph.program
    refs = program.calls[number].inputs
    dtypes = [program.dtypes[ref.index] for ref in refs]
    shapes = [program.shapes[ref.index] for ref in refs]
    drawn = random_inputs([(2, *s[1:]) if s[:1] == (None,) else s for s in shapes], dtypes, 0)
    same: dict[int, Any] = {ref.index: x for ref, x in zip(refs, drawn, strict=True)}
    magnitudes = next((_MAGNITUDES.get(d, _FEW_DIGITS) for d in dtypes if "float" in d), (1.0,))
    for magnitude in magnitudes:
        yield [
            np.asarray(keras.ops.cast(same[ref.index] * magnitude, dtype))
            if "float" in dtype
            else same[ref.index]
            for ref, dtype in zip(refs, dtypes, strict=True)
        ]


def _drawn(variable: Any, seed: int) -> Array:
    """A random value for a variable; one that holds no floats keeps its own."""
    if not keras.backend.is_float_dtype(variable.dtype):
        return np.asarray(keras.ops.convert_to_numpy(variable.value))
    values = random_weights(tuple(variable.shape), np.random.default_rng(seed))
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(values, variable.dtype)))


def _times(x: Array, axis: int, factors: npt.NDArray[np.float64]) -> Array:
    along = [1] * x.ndim
    along[axis] = -1
    return x * factors.reshape(along).astype(x.dtype)


def _equal(found: Array, wanted: Array) -> bool:
    """Whether arrays are equal but for rounding, number by number."""
    if found.shape != wanted.shape:
        return False
    if found.dtype.kind not in "fV":  # V: NumPy's view of bfloat16
        return bool((found == wanted).all())
    one, other = found.astype(np.float64), wanted.astype(np.float64)
    digits = 1e-5 if found.dtype.itemsize > 2 else 2e-2
    size = np.abs(other[np.isfinite(other)]).max(initial=0)
    return bool(np.allclose(one, other, rtol=10 * digits, atol=digits * size, equal_nan=True))
