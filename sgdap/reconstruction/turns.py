"""Which consumers are refitted in which pass over the data; it runs none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.planning.work import work_by_layer

Array = npt.NDArray[np.float64]

WORK = 2e12
"""FLOPs that all passes together may take: the whole model's, on all samples."""


class Turns:
    """Splits consumers into passes. No consumer of a pass reads what another one of it makes.

    A pass runs from where tensors are kept to its consumers. Where they are too large to be kept,
    each pass begins with the inputs; there only some consumers get a turn, in even steps, if all
    would take too long. The others stay as they are.

    Args:
        graph: The model's channels.
        places: The first place of each consumer, in the order of their calls.
        samples: The number of samples.
        room: Bytes of tensors that may be kept from one pass to the next.
    """

    def __init__(
        self, graph: ChannelGraph, places: Mapping[str, Place], samples: int, room: int
    ) -> None:
        self._graph, self._places, self._samples = graph, places, samples
        self._end = max(place.call for place in places.values()) + 1
        self._room = room
        self._work = work_until_calls(graph)
        self._kept: dict[int, bool] = {}

    def within(self, needed: Mapping[str, int], limit: int) -> list[list[str]]:
        """The consumers of each pass.

        Args:
            needed: Bytes that each consumer's moments take.
            limit: Bytes that those of one pass may take together.
        """
        stretches = self._stretches(self._side_by_side(needed, limit))
        for most in range(max(map(len, stretches)), 0, -1):
            chosen = [part for own in stretches for part in _in_even_steps(own, most)]
            if self._total(chosen) <= WORK:
                break
        return chosen

    def _side_by_side(self, needed: Mapping[str, int], limit: int) -> list[list[str]]:
        """Neighbours of which none comes after another."""
        parts: list[list[str]] = []
        behind: set[int] = set()
        done = 0
        for path in self._places:
            number = self._places[path].call
            for call in self._graph.program.calls[done:number]:
                if any(ref.index in behind for ref in call.inputs):
                    behind.update(ref.index for ref in call.outputs)
            done = number
            call = self._graph.program.calls[number]
            full = parts and sum(needed[own] for own in parts[-1]) + needed[path] > limit
            if not parts or full or any(ref.index in behind for ref in call.inputs):
                parts.append([])
                behind = set()
            parts[-1].append(path)
            behind.update(ref.index for ref in call.outputs)
        return parts

    def _stretches(self, parts: Sequence[list[str]]) -> list[list[list[str]]]:
        """The passes that begin with the same tensors, one stretch after another."""
        stretches: list[list[list[str]]] = [[]]
        for part in parts:
            stretches[-1].append(part)
            if self._is_kept(part):
                stretches.append([])
        return [stretch for stretch in stretches if stretch]

    def _is_kept(self, part: Sequence[str]) -> bool:
        """Whether there is room for the tensors before a pass, of both models."""
        first = self._places[part[0]].call
        if first not in self._kept:
            shapes = self._graph.counted.shapes
            taken = self._graph.program.needed(first, self._end)
            numbers = sum(math.prod(n or 1 for n in shapes[index][1:]) for index in taken)
            self._kept[first] = 2 * 4 * numbers * self._samples <= self._room
        return self._kept[first]

    def _total(self, parts: Iterable[Sequence[str]]) -> float:
        """FLOPs of all passes of one model."""
        total, start = 0.0, 0
        for part in parts:
            first, last = self._places[part[0]].call, self._places[part[-1]].call
            total += self._work[last + 1] - self._work[start]
            if self._is_kept(part):
                start = first
        return total * self._samples


def work_until_calls(graph: ChannelGraph) -> Array:
    """FLOPs of all calls before each one, for one sample, `(calls + 1,)`."""
    paths = [call.path for call in graph.program.calls]
    flops, counts = work_by_layer(graph), Counter(paths)
    return np.cumsum([0.0, *(flops[path] / counts[path] for path in paths)])


def _in_even_steps(parts: Sequence[list[str]], most: int) -> list[list[str]]:
    """At most so many of the passes, the last one among them."""
    count = min(most, len(parts))
    return [parts[-(-(n + 1) * len(parts) // count) - 1] for n in range(count)]
