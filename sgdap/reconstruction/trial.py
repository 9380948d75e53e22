"""Tries slim models before one is chosen: refits each and measures what it loses on other data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.channels.facts import Place
from sgdap.channels.groups import ChannelGraph
from sgdap.execution.divergence import rises
from sgdap.execution.heads import heads
from sgdap.execution.inputs import affordable_batch
from sgdap.execution.losses import model_loss
from sgdap.execution.memory import batch_memory, checked_memory_limit
from sgdap.execution.output_scales import settled_losses
from sgdap.execution.precision import full_precision
from sgdap.execution.slim_runs import SlimRuns, State, bytes_of_sample
from sgdap.reconstruction.held_back import ENOUGH, Samples, affordable_trials
from sgdap.reconstruction.predictions import Rows
from sgdap.reconstruction.refit import behind_changes, in_full_size, refitted
from sgdap.reconstruction.residuals import ResidualAccumulator
from sgdap.reconstruction.weights import Mask, Weights, reconstructed_weights
from sgdap.statistics.collect import CalibrationStatistics

Array = npt.NDArray[np.float64]


class Trials:
    """Measures slim models of a model by the rise of its loss.

    Args:
        graph: The model's channels.
        statistics: The result of a calibration pass over the same model.
        data: Calibration inputs that can be read repeatedly. Half of those used, 1 000 at
            most, are held back to measure the loss on; a single batch serves for both.
        reconstruction: Whether the consumers are refitted.
        samples: The number of samples to use at most; None: all.
        positions: The most output positions of a convolution to use from each sample.
        seed: Seed for the sampled positions.
        memory_limit: Bytes for the samples, moments and batches; None: as for
            `collect_statistics`.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        statistics: CalibrationStatistics,
        data: Any,
        *,
        reconstruction: bool = True,
        samples: int | None = None,
        positions: int = 32,
        seed: int = 0,
        memory_limit: int | None = None,
    ) -> None:
        limit = checked_memory_limit(memory_limit)
        self._graph, self._statistics = graph, statistics
        self._reconstruction = reconstruction
        self._places = _consumers(statistics, limit) if reconstruction else []
        room = max(limit - batch_memory(limit) - statistics.nbytes, 0) // 2
        needed = {
            keeps: bytes_of_sample(graph, self._places, positions, keeps) for keeps in (False, True)
        }
        wanted = min(samples or ENOUGH, ENOUGH)
        keeps = needed[True] * wanted <= room
        drawn = Samples(graph, data, min(wanted, room // needed[keeps]), 0.5)
        most = affordable_batch(graph, batch_memory(limit))
        self._losses, _ = settled_losses(
            graph, model_loss(graph), data, batch_size=256, samples=samples, most=most, seed=seed
        )
        keys = {(axis.path, axis.variable) for axis in graph.axes if axis.role != "follower"}
        for own in statistics.consumers.values():
            path = graph.program.calls[own.place.call].path
            numbers = (own.place.kernel, own.place.bias)
            keys.update((path, number) for number in numbers if number is not None)
        self._shifts = {
            own.path: statistics.consumers[own.path].moments.total().mean[0] for own in self._places
        }
        self._heads = heads(graph)
        self._runs = SlimRuns(
            graph,
            drawn.fitted_on,
            drawn.measured_on,
            self._places,
            self._shifts,
            sorted(keys),
            positions=positions,
            most=min(most, 256),
            seed=seed,
            shown=self._heads,
            keeps=keeps,
        )
        whole = np.ones(graph.count, bool)
        self._best = _Measured(np.inf, whole, {}, self._runs.states())
        self.affordable = affordable_trials(graph, drawn.count)
        """The number of slim models to try, so that it takes no more than a refit may take."""

    def losses_of(self, kept: Mask) -> Array:
        """The rise of the loss at each sample if only the channels of a mask stay, `(samples,)`."""
        with full_precision():
            weights = self._refitted(kept)
            full = in_full_size(self._graph, kept, weights)
            losses = rises(self._losses, self._runs.outputs(full))
        loss = float(losses.mean())
        if loss < self._best.loss:
            self._best = _Measured(loss, kept, weights, self._runs.states())
        return losses

    def _refitted(self, kept: Mask) -> Weights:
        """The slim weights, taken from the best model so far up to where they differ."""
        graph, best = self._graph, self._best
        weights: Weights = {}
        if self._reconstruction:
            weights = reconstructed_weights(graph, self._statistics, kept)
        behind = behind_changes(graph, {path for path, _ in weights}, self._heads)
        same = self._runs.resume(best.states, self._first_difference(kept ^ best.kept))
        for place in self._places[:same]:
            path = graph.program.calls[place.call].path
            weights.update({key: own for key, own in best.weights.items() if key[0] == path})
        for place in self._places[same:]:
            shift = self._shifts[place.path]
            sums = ResidualAccumulator(shift[kept[place.features]])
            rows = Rows() if place.path in self._heads else None
            for _, share, found in self._runs.compare(in_full_size(graph, kept, weights), kept):
                sums.add(share, found)
                if rows is not None:
                    rows.add(found)
            if graph.program.calls[place.call].path in behind:
                own = place, sums, shift, rows, self._heads
                weights.update(refitted(graph, kept, weights, *own))
        return weights

    def _first_difference(self, differ: Mask) -> int:
        """The number of consumers before which no layer has channels that differ."""
        touched = {axis.path for axis in self._graph.axes if differ[axis.channels].any()}
        calls = self._graph.program.calls
        first = next((n for n, call in enumerate(calls) if call.path in touched), len(calls))
        return sum(place.call < first for place in self._places)


@dataclass(frozen=True, eq=False)
class _Measured:
    """A slim model that was measured: its loss, channels, weights and what it made."""

    loss: float
    kept: Mask
    weights: Weights
    states: Mapping[int, State]


def _consumers(statistics: CalibrationStatistics, limit: int) -> list[Place]:
    """The consumers that are refitted, in the order of their calls."""
    places = [own.place for own in statistics.consumers.values() if own.place.refittable]
    fitting = [own for own in places if 2 * 8 * len(own.features) ** 2 * 2 <= limit]
    return sorted(fitting, key=lambda place: place.call)
