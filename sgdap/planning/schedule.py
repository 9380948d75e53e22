"""How the budget is approached over the rounds of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """A way from the whole model to the budget.

    Attributes:
        name: What users write: `schedule="cubic"`.
        progress: For the share of rounds done, from 0 to 1, how far the model is to be on its way
            to the budget, from 0 to 1.
        fraction: For the progress and the fraction of the cost that the budget allows, the
            fraction that the model may cost now.
        rounds: Most rounds; None: as many as there are epochs for.
    """

    name: str
    progress: Callable[[float], float]
    fraction: Callable[[float, float], float]
    rounds: int | None = None


def _linear(progress: float, final: float) -> float:
    return 1 - (1 - final) * progress


def _geometric(progress: float, final: float) -> float:
    return float(final**progress)


SCHEDULES = {
    schedule.name: schedule
    for schedule in (
        Schedule("one_shot", lambda t: 1.0, _geometric, rounds=1),
        Schedule("linear", lambda t: t, _linear),
        # Zhu & Gupta, arXiv 1710.01878, equation 1
        Schedule("cubic", lambda t: 1 - (1 - t) ** 3, _linear),
        Schedule("geometric", lambda t: t, _geometric),
    )
}
"""The schedules by name."""


class StepSchedule:
    """A `tfmot.sparsity.keras.PruningSchedule` read as a way to the budget.

    Its sparsity is the share of the cost (FLOPs or parameters, whatever the budget limits) that is
    removed; relative to the sparsity it ends with, it says how far to go towards the budget.

    Args:
        schedule: The schedule: called with a step, it returns whether to prune in that step and
            the sparsity.
        steps: Steps of the whole run.

    Raises:
        ValueError: It does not prune within the run.
    """

    def __init__(self, schedule: Any, steps: int) -> None:
        self._schedule = schedule
        last = self._last_pruning_step(0, steps)
        if last is None:
            raise ValueError(
                f"The schedule {type(schedule).__name__}({schedule.get_config()['config']}) does "
                f"not prune in any of the {steps} steps of this run. Lower its begin_step or "
                "train for more epochs."
            )
        self.final = self._sparsity(last)
        if not 0 < self.final < 1:
            raise ValueError(
                "The schedule must end with a sparsity between 0 and 1. "
                f"Received: a final sparsity of {self.final}"
            )

    def progress(self, begin: int, end: int) -> float | None:
        """How far to go after the steps from `begin` to `end`; None: no pruning among them."""
        step = self._last_pruning_step(begin, end)
        return None if step is None else self._sparsity(step) / self.final

    def _sparsity(self, step: int) -> float:
        return float(self._schedule(step)[1])

    def _last_pruning_step(self, begin: int, end: int) -> int | None:
        return next((s for s in range(end - 1, begin - 1, -1) if bool(self._schedule(s)[0])), None)


def get_schedule(identifier: Any) -> Any:
    """Returns a schedule by name, or the object itself.

    Raises:
        ValueError: No schedule has that name.
        TypeError: It is neither a name, a `Schedule` nor a tfmot `PruningSchedule`.
    """
    if isinstance(identifier, Schedule):
        return identifier
    if isinstance(identifier, str):
        if identifier not in SCHEDULES:
            raise ValueError(
                f"No schedule is called '{identifier}'. There are: {', '.join(SCHEDULES)}."
            )
        return SCHEDULES[identifier]
    if callable(identifier) and hasattr(identifier, "get_config"):
        return identifier
    raise TypeError(
        "schedule must be a name, a sgdap.Schedule or a tfmot.sparsity.keras.PruningSchedule. "
        f"Received: {identifier!r} (of type {type(identifier).__name__})"
    )
