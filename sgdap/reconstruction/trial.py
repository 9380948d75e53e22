"""Tries slim models before one is chosen: refits each and measures what it loses on other data."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from sgdap.channels.groups import ChannelGraph
from sgdap.execution.data import batches
from sgdap.execution.divergence import Divergence
from sgdap.execution.inputs import affordable_batch
from sgdap.execution.losses import model_loss
from sgdap.execution.memory import batch_memory, checked_memory_limit
from sgdap.execution.output_scales import settled_losses
from sgdap.execution.segments import Segments
from sgdap.planning.cost import cost_model
from sgdap.reconstruction.refit import WORK, in_full_size, refitted_weights
from sgdap.reconstruction.weights import Mask, Weights, reconstructed_weights
from sgdap.statistics.collect import CalibrationStatistics

FITTED = 1000
"""The most samples that the consumers of a slim model on trial are refitted on."""

MEASURED = 500
"""The most samples that its loss is measured on; they are others."""

TRIALS = 64
"""The most slim models that are tried."""


class Trials:
    """Measures slim models of a model by the rise of its loss.

    Args:
        graph: The model's channels.
        statistics: The result of a calibration pass over the same model.
        data: Calibration inputs that can be read repeatedly. A third of those used, 500 at most,
            is held back to measure the loss on.
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
        self._light = statistics.without_products()
        self._reconstruction = reconstruction
        self._segments = Segments(graph, positions)
        self._positions, self._seed, self._limit = positions, seed, memory_limit
        drawn = _drawn(data, samples, batch_memory(limit))
        count = len(keras.tree.flatten(drawn)[0])
        held = min(MEASURED, count // 3)
        self._fitted_on, measured_on = (
            (keras.tree.map_structure(lambda leaf, part=part: leaf[part], drawn),)
            for part in (slice(held, None), slice(None, held))
        )
        most = affordable_batch(graph, batch_memory(limit))
        losses, _ = settled_losses(
            graph, model_loss(graph), data, batch_size=256, samples=samples, most=most, seed=seed
        )
        keys = {(axis.path, axis.variable) for axis in graph.axes if axis.role != "follower"}
        for own in statistics.consumers.values():
            path, numbers = (
                graph.program.calls[own.place.call].path,
                (own.place.kernel, own.place.bias),
            )
            keys.update((path, number) for number in numbers if number is not None)
        self._divergence = Divergence(graph, measured_on, losses, sorted(keys), min(most, 256))
        self.affordable = _affordable(graph, count)
        """The number of slim models to try, so that it takes no more than a refit may take."""

    def loss_of(self, kept: Mask) -> float:
        """The rise of the loss if only the channels of a mask stay."""
        weights: Weights = {}
        if self._reconstruction:
            weights = reconstructed_weights(self._graph, self._statistics, kept)
            weights = refitted_weights(
                self._graph,
                self._light,
                kept,
                weights,
                self._fitted_on,
                positions=self._positions,
                seed=self._seed,
                memory_limit=self._limit,
                segments=self._segments,
            )
        return self._divergence.of(in_full_size(self._graph, kept, weights))


def _drawn(data: Any, samples: int | None, room: int) -> Any:
    """Inputs of the first samples, as many as are tried on and fit into some bytes, as arrays."""
    wanted = min(samples or FITTED + MEASURED, FITTED + MEASURED)
    parts: list[Any] = []
    taken = 0
    for x, _, _ in batches(data, 64, wanted):
        part = keras.tree.map_structure(np.asarray, x)
        taken += sum(leaf.nbytes for leaf in keras.tree.flatten(part))
        if parts and taken > room:
            break
        parts.append(part)
    return keras.tree.map_structure(lambda *rows: np.concatenate(rows), *parts)


def _affordable(graph: ChannelGraph, samples: int) -> int:
    if graph.open_inputs:
        return TRIALS
    model = cost_model(graph)
    flops = float(model.cost(model.lengths(np.ones(graph.count, bool)))[1])
    return int(np.clip(WORK / max(2 * flops * samples, 1.0), 1, TRIALS))
