"""What a run remembers from one epoch to the next; plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgdap.planning.plan import Plan
from sgdap.surgery.snapshot import Snapshot
from sgdap.training.guard import Guard, Round


@dataclass(eq=False)
class RunState:
    """All that a run remembers, and that a backup keeps beside the model.

    Attributes:
        guard: How rounds are judged, and what they are compared with.
        rounds: What was done.
        plan: The plan of the last round.
        first: The first epoch of the run; None before it began.
        epochs: The epochs after which rounds are planned.
        ended: An epoch that is not judged yet, and its metric.
        served: How many steps of a schedule over steps were looked at.
        good: The model before the last round.
        best: The best model within the present widths.
        said_jit: The choice of `jit_compile` that the user was told last.
        metric: The metric that is watched; None while none was found.
        seconds: What a batch may take in the end, infinite without such a limit.
        reservoir: The sample of the training data.
    """

    guard: Guard
    rounds: list[Round] = field(default_factory=list)
    plan: Plan | None = None
    first: int | None = None
    epochs: Sequence[int] = ()
    ended: tuple[int, float | None] | None = None
    served: int = 0
    good: Snapshot | None = None
    best: Snapshot | None = None
    said_jit: bool | None = None
    metric: str | None = None
    seconds: float = math.inf
    reservoir: Mapping[str, Any] | None = None

    @property
    def pending(self) -> bool:
        """Whether the last round is not decided yet."""
        return bool(self.rounds) and self.rounds[-1].decision == "pending"
