"""Finds the parts of a model that can leave as a whole; runs no data and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from sgdap import _keras
from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.model.own_training import called_in_training
from sgdap.model.program import Call, Program, Ref, fill, leaves_of

OPEN = 3
"""The size that stands for one that a model leaves open, while a sum is looked for."""


@dataclass(frozen=True)
class RemovableUnit:
    """A part of a model that can leave as a whole.

    What reads the tensor `target` reads the tensor `source` in its place, and no call is made that
    nothing reads any more.

    Attributes:
        name: The path of the first of its layers that has a kernel, and that of the last one where
            there are several.
        kind: `"branch"`: a summand that leaves, so that the other one is the sum. `"block"`: its
            output has the shape of its input, which is read in its place. `"linear"`: layers that
            only kernels read; these take a linear map of the input in their place.
        layers: The paths of the layers and operations that leave, in the order of their calls.
        source: Number of the tensor that is read in the place of the target.
        target: Number of the tensor that leaves.
        readers: Numbers of the calls whose kernels take the linear map; empty where there is none.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    source: int
    target: int
    readers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({len(self.layers)} layers and operations)"


def removable_units(graph: ChannelGraph) -> tuple[RemovableUnit, ...]:
    """Finds the parts of a model that can leave as a whole.

    They are found from the model's calls, whatever the layers are called. A call that makes the sum
    of two tensors is found by trying it: with zeros for one of them it makes the other one.

    Args:
        graph: The model's channels.

    Returns:
        The units, in the order of their targets. Of several that take the same kernels away, one is
        among them: a branch, if one is. Units may lie in one another.
    """
    search = _Search(graph)
    found: dict[frozenset[str], RemovableUnit] = {}
    for kind, source, target, readers in (*search.branches(), *search.chains()):
        if target in search.read_outside:  # losses know outputs by the layers that make them
            continue
        layers = search.leaving(source, target)
        heavy = frozenset(path for path in layers if path in search.heavy)
        if heavy and heavy not in found and search.called_by_training.isdisjoint(layers):
            unit = RemovableUnit("", kind, layers, source, target, readers)
            found[heavy] = unit
    units: dict[str, RemovableUnit] = {}
    for heavy, unit in sorted(found.items(), key=lambda item: item[1].target):
        first, *rest = [path for path in unit.layers if path in heavy]
        name = f"{first} … {rest[-1]}" if rest else first
        while name in units:
            name += " (another)"
        units[name] = replace(unit, name=name)
    return tuple(units.values())


def live_calls(program: Program, reads: Mapping[int, int]) -> list[int]:
    """The numbers of the calls that outputs and losses need, in their order.

    Args:
        program: A model's calls.
        reads: For numbers of tensors the one that is read in their place.
    """
    wanted = {resolved(ref.index, reads) for ref in (*program.outputs, *program.losses)}
    live = []
    for number in range(len(program.calls) - 1, -1, -1):
        call = program.calls[number]
        if any(ref.index in wanted for ref in call.outputs):
            live.append(number)
            wanted.update(resolved(ref.index, reads) for ref in call.inputs)
    return live[::-1]


def resolved(index: int, reads: Mapping[int, int]) -> int:
    """The tensor that is read in the place of another one, at the end of all replacements."""
    while index in reads:
        index = reads[index]
    return index


class _Search:
    """Looks through a model's calls for units.

    Attributes:
        heavy: Paths of the layers with a kernel: a variable of more than one axis.
        read_outside: Numbers of the tensors that are outputs, or that losses are made of.
        called_by_training: Paths of the layers that training code of the user's own may call.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph, self._program = graph, graph.program
        self.heavy = {path for path, x in self._program.layers().items() if has_kernel(x)}
        called = {id(layer) for layer in called_in_training(self._program.model)}
        layers = self._program.layers().items()
        self.called_by_training = {path for path, layer in layers if id(layer) in called}
        self._needed = live_calls(self._program, {})
        self._readers: dict[int, list[int]] = {}
        for number in self._needed:
            for ref in self._program.calls[number].inputs:
                self._readers.setdefault(ref.index, []).append(number)
        self.read_outside = {r.index for r in (*self._program.outputs, *self._program.losses)}
        # What an error counts inside of losses is not seen.
        for number in self._program.operations_of_losses():
            self.read_outside.update(r.index for r in self._program.calls[number].outputs)
        counts: dict[str, int] = {}
        for call in self._program.calls:
            counts[call.path] = counts.get(call.path, 0) + 1
        self._called_once = {path for path, count in counts.items() if count == 1}

    def leaving(self, source: int, target: int) -> tuple[str, ...]:
        """The paths of the layers and operations that leave with a tensor, each once."""
        calls = self._program.calls
        live = {calls[number].path for number in live_calls(self._program, {target: source})}
        paths = dict.fromkeys(calls[number].path for number in self._needed)
        return tuple(path for path in paths if path not in live)

    def branches(self) -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
        """Summands: kind, source, target and no readers."""
        for number in self._needed:
            call = self._program.calls[number]
            for source in summands_left(call, self._program):
                yield "branch", source, call.outputs[0].index, ()

    def chains(self) -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
        """Calls one after another, from a kernel on: kind, source, target and readers."""
        for number in self._needed:
            call = self._program.calls[number]
            read = {ref.index for ref in call.inputs if self._is_floating(ref.index)}
            if call.path not in self.heavy or len(read) != 1 or len(call.outputs) != 1:
                continue
            (source,) = read
            alone = self._tail(call.outputs[0].index)
            readers = self._linear_readers(source, alone)
            if readers:
                yield "linear", source, alone, readers
            target = self._of_same_shape(source, call.outputs[0].index)
            if target is not None and (not readers or target != alone):
                linear = self._linear_readers(source, target)
                yield "linear" if linear else "block", source, target, linear

    def _of_same_shape(self, source: int, target: int) -> int | None:
        """The first tensor of the same shape that only what comes after the source needs."""
        while not self._alike(source, target):
            following = self._follower(target)
            if following is None:
                return None
            target = following
        return self._tail(target)

    def _tail(self, target: int) -> int:
        """The tensor after calls without a kernel that nothing else reads, of the same shape."""
        while True:
            following = self._follower(target)
            if following is None or not self._alike(target, following):
                return target
            maker = next(c for c in self._program.calls if Ref(following) in c.outputs)
            if maker.path in self.heavy:
                return target
            target = following

    def _follower(self, index: int) -> int | None:
        """What the only call makes of a tensor that reads it, and reads nothing else."""
        readers = self._readers.get(index, [])
        if len(readers) != 1 or index in self.read_outside:
            return None
        call = self._program.calls[readers[0]]
        alone = {ref.index for ref in call.inputs} == {index}
        return call.outputs[0].index if alone and len(call.outputs) == 1 else None

    def _linear_readers(self, source: int, target: int) -> tuple[int, ...]:
        """The calls that read a tensor, if all are kernels that may read the source instead."""
        shapes = self._program.shapes
        if shapes[source][:-1] != shapes[target][:-1]:
            return ()
        readers = self._readers.get(target, [])
        if not all(self._reading(number, target) for number in readers):
            return ()
        return tuple(dict.fromkeys(readers))

    def _reading(self, number: int, index: int) -> Place | None:
        call = self._program.calls[number]
        place = reading_place(self._graph, number)
        once = call.path in self._called_once and call.inputs.count(Ref(index)) == 1
        return place if once and place and call.inputs[place.tensor].index == index else None

    def _alike(self, first: int, second: int) -> bool:
        program = self._program
        same_shape = program.shapes[first] == program.shapes[second]
        return same_shape and program.dtypes[first] == program.dtypes[second]

    def _is_floating(self, index: int) -> bool:
        return "float" in self._program.dtypes[index]


def has_kernel(operation: Any) -> bool:
    """Whether a layer has a variable of more than one axis."""
    if not isinstance(operation, keras.Layer):
        return False
    return any(len(variable.shape) > 1 for variable in _keras.layer_variables(operation))


def reading_place(graph: ChannelGraph, number: int) -> Place | None:
    """Where the only kernel of a call reads whole rows of channels; None where it does not."""
    places = [own for own in graph.places if own.call == number and own.is_linear]
    if len(places) != 1:
        return None
    (place,) = places
    patches, last = place.patches, len(graph.program.shapes[_read(graph, place)]) - 1
    plain = patches.groups == 1 and patches.depthwise is None and patches.transposed is None
    by_rows = not patches.channels_first and patches.steps == 0 and place.axis in (-1, last)
    return place if plain and by_rows and place.refittable else None


def _read(graph: ChannelGraph, place: Place) -> int:
    return graph.program.calls[place.call].inputs[place.tensor].index


def summands_left(call: Call, program: Program) -> list[int]:
    """The tensors that are what a call makes where its only other tensor is zero.

    Args:
        call: A call.
        program: The calls of the model.

    Returns:
        The numbers of the tensors that are left without the other one; empty where the call makes
        something else.
    """
    operation = call.operation
    taken = [ref.index for ref in call.inputs]
    if len(set(taken)) != 2 or len(taken) != 2 or len(call.outputs) != 1:
        return []
    made = call.outputs[0].index
    shapes = {program.shapes[index] for index in (*taken, made)}
    dtypes = {program.dtypes[index] for index in (*taken, made)}
    if len(shapes) > 1 or len(dtypes) > 1 or "float" not in program.dtypes[made]:
        return []
    if isinstance(operation, keras.Layer) and operation.weights:
        return []
    shape = [OPEN if size is None else size for size in program.shapes[made]]
    numbers = np.random.default_rng(0).normal(size=shape)
    value = keras.ops.convert_to_tensor(numbers, program.dtypes[made])
    left = []
    for stays, goes in (taken, taken[::-1]):
        args, kwargs = fill(call, {stays: value, goes: keras.ops.zeros_like(value)})
        try:
            with keras.StatelessScope():
                (result,) = leaves_of(operation(*args, **kwargs))
            same = np.array_equal(keras.ops.convert_to_numpy(result), np.asarray(value))
        except Exception:  # it takes no such numbers
            same = False
        if same:
            left.append(stays)
    return left
