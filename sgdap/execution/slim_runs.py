"""Runs slim models of a model over the same samples, one after another, as far as they differ."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.channels.slices import variable_of
from sgdap.execution.inputs import input_batches
from sgdap.execution.segments import (
    Key,
    Looked,
    Seen,
    Segment,
    Segments,
    looked_at,
    without_features,
)
from sgdap.execution.side_by_side import Share, Shares

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
State = list[list[Any]]
"""For each batch the tensors that a segment begins with, and their masks."""


class SlimRuns:
    """Runs a model with the weights of one slim model or another, consumer by consumer.

    What the whole model makes is computed once. What a slim model has made before each consumer is
    kept where there is room, so that another one, with the same weights up to there, goes on from
    it.

    Args:
        graph: The model's channels.
        fitted_on: Inputs on which consumers are compared, as for `collect_statistics`.
        measured_on: Inputs on which only the outputs are looked at.
        places: The consumers, in the order of their calls.
        shifts: For each consumer a point near the mean of its features, `(features,)`.
        keys: The variables that may have other values in slim models.
        positions: Output positions of a convolution that are read of each sample at most.
        most: The most samples of a batch.
        seed: Seed for sampled positions.
        shown: The consumers whose rows are shown, not only their sums.
        keeps: Whether there is room to keep what two slim models have made before each consumer;
            else another one begins with the inputs.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        fitted_on: Any,
        measured_on: Any,
        places: Sequence[Place],
        shifts: Mapping[str, Array],
        keys: Sequence[Key],
        *,
        positions: int = 32,
        most: int = 256,
        seed: int = 0,
        shown: Collection[str] = (),
        keeps: bool = True,
    ) -> None:
        self._graph, self._places, self._shifts = graph, places, shifts
        self._seed, self._shown, self._keeps = seed, shown, keeps
        self._segments = Segments(graph, positions)
        self._own = {
            key: tf.convert_to_tensor(variable_of(graph.program, key).value) for key in keys
        }
        fitting, measuring = (
            [inputs for _, inputs in input_batches(graph, data, most, None, most)]
            for data in (fitted_on, measured_on)
        )
        self._fitting = len(fitting)
        self._parts = _segments_of(graph, places)
        self._states: dict[int, State] = {0: [*fitting, *measuring]}
        self._targets: list[list[dict[str, list[Seen]]]] = []
        everything = np.ones(graph.count, bool)
        for number, place in enumerate(places):
            looked = without_features(looked_at(place, everything, shifts[place.path]))
            self._targets.append(list(self._advance(number, self._own, {place.path: looked})))
        self._predicted = self._outputs(self._own)

    @property
    def reached(self) -> int:
        """The number of consumers up to which the last slim model was run."""
        return max(self._states)

    def states(self) -> dict[int, State]:
        """What was kept before consumers, by number; `resume` goes on from it."""
        return dict(self._states) if self._keeps else {0: self._states[0]}

    def resume(self, states: Mapping[int, State], number: int) -> int:
        """Goes on before a consumer, or before an earlier one where no more was kept.

        Args:
            states: What a slim model has made, as `states` returned it.
            number: Number of the consumer.

        Returns:
            The number of the consumer that comes next.
        """
        self._states = {own: state for own, state in states.items() if own <= number}
        return self.reached

    def compare(self, values: Mapping[Key, npt.NDArray[Any]], kept: Mask) -> Iterator[Share]:
        """Compares what the next consumer makes in the whole model and in a slim one.

        Args:
            values: The variables that differ in the slim model, in full size: what is removed is 0.
            kept: A mask of the channels that stay, `(channels,)`.

        Yields:
            The sums of each batch and share of the samples, as `SideBySide.run`.
        """
        number = self.reached
        place = self._places[number]
        looked = {place.path: looked_at(place, kept, self._shifts[place.path])}
        outputs = np.flatnonzero(place.kept_outputs(kept))
        found, sums = (
            self._advance(number, self._given(values, number), looked),
            Shares(self._shown),
        )
        for targets, seen in zip(self._targets[number], found, strict=True):
            wanted = {
                path: [
                    Seen(own.features, tf.gather(own.made, outputs, axis=-1), own.there)
                    for own in each
                ]
                for path, each in targets.items()
            }
            yield from sums.add(wanted, seen)
        yield from sums.rest()

    def outputs(
        self, values: Mapping[Key, npt.NDArray[Any]]
    ) -> Iterator[tuple[list[Any], list[Any]]]:
        """Runs a slim model from the last consumer on, on the samples that are measured.

        Args:
            values: As for `compare`.

        Yields:
            Of each batch the whole model's outputs and the slim one's, flattened.
        """
        made = self._outputs(self._given(values, len(self._places)))
        yield from zip(self._predicted, made, strict=True)

    def _advance(
        self, number: int, values: Mapping[Key, Any], looked: Mapping[str, Looked]
    ) -> Iterator[dict[str, list[Seen]]]:
        """Runs a segment on all batches; what consumers make of those that are fitted on."""
        segment, after = self._parts[number], State()
        for batch, tensors in enumerate(self._states[number]):
            fits = batch < self._fitting
            shown = looked if fits else {path: _nothing(own) for path, own in looked.items()}
            seed = tf.constant([self._seed, batch], tf.int32)
            found, left, masks = self._segments.run(segment, tensors, values, shown, seed)
            after.append([*left, *masks.values()])
            if fits:
                yield found
        following = self._parts[number + 1]
        if len(left) == len(segment.left):
            self._parts[number + 1] = replace(following, masked=tuple(masks))
        else:  # something else than a tensor can't be kept
            names = ("start", "tensors", "masked")
            same = {name: getattr(segment, name) for name in names}
            self._parts[number + 1] = replace(following, **same)
            after = self._states[number]
        if not self._keeps and number:
            del self._states[number]
        self._states[number + 1] = after

    def _outputs(self, values: Mapping[Key, Any]) -> list[list[Any]]:
        seed = tf.constant([self._seed, 0], tf.int32)
        return [
            self._segments.run(self._parts[-1], tensors, values, {}, seed)[1]
            for tensors in self._states[len(self._places)][self._fitting :]
        ]

    def _given(self, values: Mapping[Key, npt.NDArray[Any]], number: int) -> dict[Key, Any]:
        """The values of all variables of a segment, so that there is one trace of it."""
        segment = self._parts[number]
        paths = {call.path for call in self._graph.program.calls[segment.start : segment.stop]}
        return {
            key: tf.cast(tf.constant(values[key]), own.dtype) if key in values else own
            for key, own in self._own.items()
            if key[0] in paths
        }


def _nothing(looked: Looked) -> Looked:
    return Looked(tf.zeros_like(looked.features), tf.zeros_like(looked.outputs), looked.shift)


def outputs_of(
    graph: ChannelGraph, values: Mapping[Key, npt.NDArray[Any]], data: Any, most: int, seed: int
) -> Iterator[list[Any]]:
    """Runs a model with other values of some variables.

    Args:
        graph: The model's channels.
        values: The variables that differ, in full size: what is removed is 0.
        data: Inputs, as for `collect_statistics`.
        most: The most samples of a batch.
        seed: Seed for sampled positions.

    Yields:
        The outputs of each batch, flattened.
    """
    program = graph.program
    first, last = (tuple(ref.index for ref in refs) for refs in (program.inputs, program.outputs))
    count = len(program.calls)
    everything, segments = Segment(0, first, (), count, last, count, ()), Segments(graph, 1)
    given = {
        key: tf.cast(tf.constant(value), variable_of(program, key).dtype)
        for key, value in values.items()
    }
    for number, inputs in input_batches(graph, data, most, None, most):
        numbers = tf.constant([seed, number], tf.int32)
        yield segments.run(everything, inputs, given, {}, numbers)[1]


def bytes_of_sample(
    graph: ChannelGraph, places: Sequence[Place], positions: int, keeps: bool
) -> int:
    """Bytes that a sample takes while slim models are run.

    Args:
        graph: The model's channels.
        places: The consumers, in the order of their calls.
        positions: Output positions of a convolution that are read of each sample at most.
        keeps: Whether what two slim models have made before each consumer is kept.
    """
    sizes = [4 * math.prod(n or 1 for n in shape[1:]) for shape in graph.counted.shapes]
    segments = _segments_of(graph, places)
    states = [sum(sizes[index] for index in segment.tensors) for segment in segments]
    wanted = sum(4 * positions * place.outputs.shape[-1] for place in places)
    return int(wanted + states[0] + 2 * (sum(states) if keeps else max(states)))


def _segments_of(graph: ChannelGraph, places: Sequence[Place]) -> list[Segment]:
    """A segment for each consumer, which ends before it, and one from the last to the outputs."""
    program = graph.program
    count = len(program.calls)
    outputs = [ref.index for ref in program.outputs]
    start, tensors = 0, tuple(ref.index for ref in program.inputs)
    parts = []
    for place in places:
        last = max(own.call for own in graph.places if own.path == place.path)
        made = {ref.index for call in program.calls[: place.call] for ref in call.outputs}
        made.update(ref.index for ref in program.inputs)
        kept = {*program.needed(place.call, count), *(made & {*outputs})}
        left = tuple(sorted(kept))
        parts.append(Segment(start, tensors, (), place.call, left, last + 1, (place.path,)))
        start, tensors = place.call, left
    parts.append(Segment(start, tensors, (), count, tuple(outputs), count, ()))
    return parts
