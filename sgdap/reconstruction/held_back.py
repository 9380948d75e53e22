"""Measures what slim models lose against the whole one, on samples that were held back."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap.channels.groups import ChannelGraph
from sgdap.execution.data import batches
from sgdap.execution.divergence import rises
from sgdap.execution.inputs import affordable_batch
from sgdap.execution.losses import model_loss
from sgdap.execution.memory import batch_memory, checked_memory_limit
from sgdap.execution.output_scales import settled_losses
from sgdap.execution.precision import full_precision
from sgdap.execution.slim_runs import outputs_of
from sgdap.planning.cost import cost_model
from sgdap.planning.options import PruningOptions
from sgdap.reconstruction.refit import in_full_size
from sgdap.reconstruction.weights import Mask, Weights

Array = npt.NDArray[np.float64]

WORK = 5e12
"""FLOPs that all slim models on trial may take together."""

FITTED = 500
"""The most samples that the consumers of a slim model on trial are refitted on."""

MEASURED = 1000
"""The most samples that its loss is measured on; they are others."""

ENOUGH = FITTED + MEASURED
"""No more samples are used."""

ALL = 4096
"""No more are used where slim models are refitted as the one that is taken in the end."""

FEWEST = 16
"""The number of samples that are used even where memory is scarce."""

TRIALS = 64
"""The most slim models that are tried."""


def affordable_trials(graph: ChannelGraph, samples: int) -> int:
    """The number of slim models of a model that can be tried on so many samples."""
    if graph.open_inputs:
        return TRIALS
    return int(np.clip(_affordable(graph) / samples, 1, TRIALS))


def _affordable(graph: ChannelGraph) -> float:
    """On how many samples slim models may be tried, all of them together."""
    return WORK / max(2 * float(cost_model(graph).whole[1]), 1.0)


class Samples:
    """A few samples to try slim models on, some to refit them on and others to measure their loss.

    1 000 at most are held back to be measured on; a single batch serves for both.

    Args:
        graph: The model's channels.
        data: Calibration inputs that can be read repeatedly.
        most: Their number at most, as far as a few and two batches are no more.
        share: The share of them that is held back at most.

    Attributes:
        count: Their number.
        fitted_on: Inputs, in one batch.
        measured_on: Other inputs, in one batch.
    """

    def __init__(self, graph: ChannelGraph, data: Any, most: int, share: float) -> None:
        batch = graph.program.shapes[graph.program.inputs[0].index][0] or 1
        drawn = _drawn(data, max(most, FEWEST, 2 * batch))
        self.count = len(keras.tree.flatten(drawn)[0])
        held = int(min(MEASURED, share * self.count)) // batch * batch
        self.measured_on, self.fitted_on = (
            (keras.tree.map_structure(lambda leaf, part=part: leaf[part], drawn),)
            for part in (slice(held or None), slice(held, None))
        )


def _drawn(data: Any, samples: int) -> Any:
    """Inputs of the first samples, as arrays."""
    parts = [keras.tree.map_structure(np.asarray, x) for x, _, _ in batches(data, 64, samples)]
    return keras.tree.map_structure(lambda *rows: np.concatenate(rows), *parts)


class HeldBack:
    """Measures slim models, which may lack some layers, by the rise of the whole one's loss.

    Args:
        graph: The whole model's channels.
        data: Calibration inputs that can be read repeatedly.
        options: The options of calibration, scoring and planning.
        trials: The number of slim models that are measured.

    Attributes:
        others: Inputs to refit slim models on; none of those that they are measured on, if there
            are enough.
    """

    def __init__(
        self, graph: ChannelGraph, data: Any, options: PruningOptions, trials: int
    ) -> None:
        memory = batch_memory(checked_memory_limit(options.memory_limit))
        shapes = (graph.counted.shapes[ref.index] for ref in graph.program.inputs)
        each = sum(8 * int(np.prod([size or 1 for size in shape[1:]])) for shape in shapes)
        enough = max(int(_affordable(graph) / trials), FITTED)
        samples = Samples(
            graph, data, min(options.samples or ALL, ALL, memory // each, enough), 0.25
        )
        self.others = samples.fitted_on
        self._measured_on = samples.measured_on
        self._most = min(affordable_batch(graph, memory), 256)
        self._seed = options.seed
        self._losses, _ = settled_losses(
            graph,
            model_loss(graph),
            data,
            batch_size=256,
            samples=options.samples,
            most=self._most,
            seed=options.seed,
        )
        self._wanted = self._outputs(graph, {})

    def losses_of(self, graph: ChannelGraph, kept: Mask, weights: Weights) -> Array:
        """The rise of the loss at each sample, `(samples,)`.

        Args:
            graph: The channels of a model with the slim one's layers.
            kept: A mask of the channels that stay, `(channels,)`.
            weights: The slim weights, by path of the layer and number of the variable.
        """
        made = self._outputs(graph, in_full_size(graph, kept, weights))
        return rises(self._losses, zip(self._wanted, made, strict=True))

    def _outputs(self, graph: ChannelGraph, values: Weights) -> list[list[Any]]:
        with full_precision():
            return list(outputs_of(graph, values, self._measured_on, self._most, self._seed))
