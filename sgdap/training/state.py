"""What a run remembers from one epoch to the next, as plain data; decides nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.planning.plan import Plan
from sgdap.surgery.rewire import WayBack
from sgdap.surgery.snapshot import Snapshot
from sgdap.surgery.wiring import Wiring
from sgdap.training.guard import AnyRound, Guard


@dataclass(eq=False)
class RunState:
    """All that a run remembers. A backup stores it beside the model.

    Attributes:
        guard: The guard, which judges rounds, with its baseline.
        rounds: The rounds so far.
        plan: The plan of the last round.
        widths: What was left in each place that may shrink at the end of each epoch, by name: the
            width of a group, or the weights of a variable that are not zero.
        first: The first epoch of the run; None before it began.
        epochs: The epochs after which rounds are planned.
        ended: The last epoch and its metric, if it is not judged yet.
        steps_done: How many steps of a schedule over steps are dealt with.
        good: The model before the last round.
        good_epoch: The epoch after which it was so.
        best: The best model with the present widths.
        best_epoch: The epoch after which it was so.
        metrics: The monitored metric after each epoch, None where it had none.
        metric: The name of the monitored metric; None until it is found.
        brought: The validation metrics of the model before it was trained, by name.
        unmeasured: Why there are none, in words.
        seconds: The seconds that the final model may take for a batch, infinite without a limit.
        reservoir: The sample of the training data.
        teacher: The weights of the model that `fit` was given, where it teaches.
        masks: The masks of the model as it is now, by the path of the variable, True where a
            weight stays; empty where channels leave.
        masks_before: The masks before the last round, also one in which channels left.
        watched: The sums over train steps of what is watched of each weight, and their number.
        watched_before: The same before the last round.
        zeros: The weights that were zero when quantization began, and stay so, by the path of the
            kernel.
        zeros_before: The same before the last round in which channels left.
        noted: What kernels on lattices held after each epoch, in a few characters each.
        lattices: The full numbers, lattices and learned scales of quantized kernels; None: they
            are float.
        activations: The ranges of rounded activations; None: they are float.
        wiring: The calls of the model as it is now; None: no layer may leave as a whole.
        wiring_before: The same before the last round.
        way_back: Where layers left as a whole in the last round: the way back, and the model
            without them. No backup holds it.
    """

    guard: Guard
    rounds: list[AnyRound] = field(default_factory=list)
    plan: Plan | None = None
    widths: list[dict[str, int]] = field(default_factory=list)
    first: int | None = None
    epochs: Sequence[int] = ()
    ended: tuple[int, float | None] | None = None
    steps_done: int = 0
    good: Snapshot | None = None
    good_epoch: int | None = None
    best: Snapshot | None = None
    best_epoch: int | None = None
    metrics: dict[int, float | None] = field(default_factory=dict)
    metric: str | None = None
    brought: Mapping[str, float] = field(default_factory=dict)
    unmeasured: str = ""
    seconds: float = math.inf
    reservoir: Mapping[str, Any] | None = None
    teacher: Sequence[npt.NDArray[Any]] | None = None
    masks: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    masks_before: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    watched: Mapping[str, Any] | None = None
    watched_before: Mapping[str, Any] | None = None
    zeros: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    zeros_before: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    noted: list[str] = field(default_factory=list)
    lattices: Mapping[str, Any] | None = None
    activations: Mapping[str, Any] | None = None
    wiring: Wiring | None = None
    wiring_before: Wiring | None = None
    way_back: tuple[WayBack, Snapshot] | None = None

    @property
    def pending(self) -> bool:
        """Whether the last round is still to be judged."""
        return bool(self.rounds) and self.rounds[-1].decision == "pending"
