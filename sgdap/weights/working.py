"""A copy of a model whose weights are changed, and the step that moves them together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras

from sgdap import _keras
from sgdap.channels.groups import ChannelGraph
from sgdap.execution.data import joined
from sgdap.execution.inputs import counted_on_data
from sgdap.execution.precision import computing_in_float32
from sgdap.model.generators import random_state, set_random_state
from sgdap.surgery.apply import copied
from sgdap.weights.curvature import Calibration
from sgdap.weights.joint import FEWEST, Freedom, JointStep, affordable_steps, batch_of
from sgdap.weights.kernels import Kernel

STEPS, LAST = 30, 100
"""Steps over all weights after a stage and after the last one, at most."""

_ALONE = "Weights were moved kernel by kernel only"


@contextmanager
def working_copy(graph: ChannelGraph, data: Any) -> Iterator[ChannelGraph]:
    """A copy of a model that computes in float32 within; no generator of random numbers moves.

    Args:
        graph: The model's channels.
        data: Calibration data, of which open sizes are taken; None: there are none.
    """
    drawn = random_state()
    try:
        with _keras.scope_of(graph.program.model), _keras.name_counters_kept():
            made = copied(graph)
            made = made if data is None else counted_on_data(made, data)
            with computing_in_float32(made.program.model):
                yield made
    finally:
        set_random_state(drawn)


@dataclass(frozen=True, eq=False)
class Together:
    """The steps over all weights of a compression in stages.

    Attributes:
        step: The step; None: there is none.
        affordable: How many steps may be taken in all.
        said: Why there is no step, for the user.
    """

    step: JointStep | None
    affordable: int
    said: str = ""

    @classmethod
    def of(
        cls,
        dense: ChannelGraph,
        graph: ChannelGraph,
        kernels: Sequence[Kernel],
        moving: Collection[str],
        data: Any,
        reading: Calibration,
    ) -> Together:
        """The steps that are affordable.

        Args:
            dense: The channels of the model as it was.
            graph: The channels of the model that is changed.
            kernels: The kernels that may move.
            moving: Paths of the layers whose weights may move.
            data: Calibration data.
            reading: How they are read.
        """
        arrays = joined(data, reading.samples)
        count, unit = len(keras.tree.flatten(arrays[0])[0]), batch_of(graph)
        affordable = affordable_steps(graph, count)
        if count < 2 * unit:
            return cls(None, 0, f"{_ALONE}: a batch to learn from and one to judge by are needed.")
        if affordable < FEWEST:
            said = f"{_ALONE}: a step over all would take too long. Fewer samples allow it."
            return cls(None, 0, said)
        step = JointStep(
            graph,
            dense.program.model,
            arrays,
            kernels,
            moving=moving,
            seed=reading.seed,
            memory_limit=reading.memory_limit,
        )
        if not step.moves:
            return cls(None, 0, f"{_ALONE}: none is trainable.")
        return cls(step, affordable)

    def run(self, free: Mapping[str, Freedom], stages: int, last: bool = False) -> None:
        """Moves the weights, as far as the steps for a stage reach.

        Args:
            free: How kernels may move, by path.
            stages: The number of stages.
            last: Whether this is the last stage.
        """
        if self.step is None:
            return
        share = min(self.affordable / (stages * STEPS + LAST), 1.0)
        self.step.run(free, max(round(share * (LAST if last else STEPS)), 1))
