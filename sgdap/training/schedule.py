"""Schedules: how the budget is approached over the rounds of a run; they know no model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sgdap._arguments import check_integer, is_number, shown


@dataclass(frozen=True)
class Schedule:
    """A way from the whole model to the budget. Subclass it for a custom one.

    Attributes:
        rounds: The number of rounds. None: as many as there are epochs for, or as many as the
            budget needs if `final_finetune_epochs` is `"auto"`.

    Raises:
        ValueError: `rounds` is not a positive integer.
    """

    rounds: int | None = None

    name: ClassVar[str] = ""
    """What users write: `schedule="cubic"`."""

    def __post_init__(self) -> None:
        if self.rounds is not None:
            check_integer("rounds", self.rounds, 1)

    def progress(self, done: float) -> float:
        """How far on the way to the budget the model should be, from 0 to 1.

        Args:
            done: The share of the rounds that are done or due, from 0 to 1.
        """
        return done

    def fraction(self, progress: float, final: float) -> float:
        """What the model may cost at some progress, as a fraction of the whole model's cost.

        Args:
            progress: How far on the way to the budget the model is, from 0 to 1.
            final: The fraction that the budget allows.
        """
        return 1 - (1 - final) * progress

    def step(self, final: float) -> float:
        """The most progress of one round, from 0 to 1.

        Args:
            final: The fraction that the budget allows, of the measure that it limits most.
        """
        return 1.0

    def least(self, final: float) -> int:
        """The number of rounds without which the schedule can't reach its end.

        Args:
            final: The fraction that the budget allows, of the measure that it limits most.
        """
        return self.rounds or 1

    def enough(self, final: float, judged: bool) -> int | None:
        """The number of rounds after which epochs are better spent on fine-tuning.

        So many rounds that each removes at most 70 % of what is left, were they equal. Where
        rounds are judged, at most 30 %, so that one that is undone takes less with it.

        Args:
            final: The fraction that the budget allows, of the measure that it limits most.
            judged: Whether rounds are judged.

        Returns:
            The number; None: the schedule goes on for as long as there are epochs.
        """
        return self.rounds or _rounds_of(_JUDGED_CUT if judged else _LARGEST_CUT, final)

    def check(self, rounds: int, final: float) -> None:
        """Checks that the schedule can reach its end.

        Args:
            rounds: How many rounds there are epochs for.
            final: The fraction that the budget allows, of the measure that it limits most.

        Raises:
            ValueError: It can't reach its end in so few rounds.
        """
        if self.rounds is not None and self.rounds > rounds:
            raise ValueError(
                f"{self!r} needs {self.rounds} rounds, and there are epochs for {rounds}. "
                f"{_MORE_ROUNDS} or ask for fewer rounds."
            )


@dataclass(frozen=True)
class Linear(Schedule):
    """Each round removes the same amount of the whole model's cost.

    Example:
        >>> sgdap.Linear(rounds=4).fraction(0.5, 0.2)
        0.6
    """

    name: ClassVar[str] = "linear"


@dataclass(frozen=True)
class Cubic(Schedule):
    """Large rounds first, small ones at the end: `1 − (1 − t)³` of the way after a share t of them.

    Reference:
        Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """

    name: ClassVar[str] = "cubic"

    def progress(self, done: float) -> float:
        """How far the model is to be on its way to the budget, from 0 to 1."""
        return 1 - (1 - done) ** 3


@dataclass(frozen=True)
class Geometric(Schedule):
    """Each round removes the same share of what is left."""

    name: ClassVar[str] = "geometric"

    def fraction(self, progress: float, final: float) -> float:
        """What the model may cost on its way, as a fraction of the whole model's cost."""
        return float(final**progress)


@dataclass(frozen=True)
class OneShot(Geometric):
    """Goes all the way in one round, and in smaller ones if that is undone."""

    rounds: int | None = field(default=1, init=False, repr=False)

    name: ClassVar[str] = "one_shot"

    def progress(self, done: float) -> float:
        """How far the model is to be on its way to the budget, from 0 to 1."""
        return 1.0


@dataclass(frozen=True)
class Adaptive(Geometric):
    """Goes on in equal steps; each round that is undone halves the step.

    Use it with `max_accuracy_drop`.

    Attributes:
        cut: The share of the remaining cost that each round removes, until one is undone.

    Raises:
        ValueError: `cut` is not between 0 and 1.
    """

    rounds: int | None = field(default=None, init=False, repr=False)
    cut: float = 0.3

    name: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        if not is_number(self.cut) or not 0 < self.cut < 1:
            raise ValueError(
                f"cut must be a number between 0 and 1. Received: cut={shown(self.cut)}"
            )

    def progress(self, done: float) -> float:
        """Always 1, all the way to the budget; `step` limits each round."""
        return 1.0

    def step(self, final: float) -> float:
        """How far one round may go at most, from 0 to 1."""
        return min(1.0, math.log(1 - self.cut) / math.log(final)) if final < 1 else 1.0

    def least(self, final: float) -> int:
        """The number of rounds that it takes if none is undone."""
        return _rounds_of(self.cut, final)

    def enough(self, final: float, judged: bool) -> None:
        """None: after a round that is undone, more are needed."""

    def check(self, rounds: int, final: float) -> None:
        """Checks that the schedule can reach its end.

        Raises:
            ValueError: It can't reach its end, even if no round is undone.
        """
        if rounds < self.least(final):
            raise ValueError(
                f"{self!r} leaves {(1 - self.cut) ** rounds:.1%} after the {rounds} rounds that "
                f"there are epochs for, and the budget allows {final:.1%}. {_MORE_ROUNDS} or raise "
                "cut."
            )


_LARGEST_CUT = 0.7
"""The share of what is left that one round removes without harm: larger cuts recover worse."""

_JUDGED_CUT = 0.3
"""The share of what is left that a round removes if it may be undone, as in `Adaptive`."""


def _rounds_of(cut: float, final: float) -> int:
    """How many rounds that remove the share `cut` of what is left lead to the share `final`."""
    return max(1, math.ceil(math.log(final) / math.log(1 - cut) - 1e-9))


_MORE_ROUNDS = "Train for more epochs, lower begin_epoch, frequency or final_finetune_epochs,"

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    kind.name: kind for kind in (OneShot, Linear, Cubic, Geometric, Adaptive)
}
"""The schedules by name."""


class StepSchedule:
    """A `tfmot.sparsity.keras.PruningSchedule` read as a way to the budget.

    Its sparsity is read as the share of the cost that is removed, in the measure that the budget
    limits. The sparsity divided by the final one is the progress towards the budget.

    Args:
        schedule: The tfmot schedule. Called with a step, it returns whether to prune in that step
            and the sparsity.
        steps: The number of steps of the run in which it may prune.

    Raises:
        ValueError: The schedule does not prune within the run, or ends after it.
    """

    def __init__(self, schedule: Any, steps: int) -> None:
        self._schedule = schedule
        config = schedule.get_config()["config"]
        last = self._last_pruning_step(0, steps)
        if last is None:
            raise ValueError(
                f"The schedule {type(schedule).__name__}({config}) does not prune in any of the "
                f"{steps} steps of this run. Lower its begin_step or train for more epochs."
            )
        self.final = self._sparsity(last)
        if not 0 < self.final < 1:
            raise ValueError(
                "The schedule must end with a sparsity between 0 and 1. "
                f"Received: a final sparsity of {self.final}"
            )
        end = int(config.get("end_step", -1))
        later = self._last_pruning_step(steps, end + 1) if end >= steps else None
        if later is not None and self._sparsity(later) > self.final + 1e-6:
            raise ValueError(
                f"The schedule {type(schedule).__name__}({config}) ends in step {later} with a "
                f"sparsity of {self._sparsity(later):.3g}, but only in {steps} steps of this run "
                f"layers may shrink, and it has come to {self.final:.3g} by then. Lower its "
                "end_step, train for more epochs or lower final_finetune_epochs."
            )

    def progress(self, begin: int, end: int) -> float | None:
        """The progress to reach after the steps `begin` to `end`; None: no step of them prunes."""
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
        TypeError: `identifier` is not a name, a `Schedule` or a tfmot `PruningSchedule`.
    """
    if isinstance(identifier, Schedule):
        return identifier
    if isinstance(identifier, str):
        if identifier not in SCHEDULES:
            raise ValueError(
                f"No schedule is called '{identifier}'. There are: {', '.join(SCHEDULES)}."
            )
        return SCHEDULES[identifier]()
    if callable(identifier) and hasattr(identifier, "get_config"):
        return identifier
    raise TypeError(
        "schedule must be a name, a sgdap.Schedule (sgdap.Geometric()) or a "
        "tfmot.sparsity.keras.PruningSchedule. "
        f"Received: {shown(identifier)} (of type {type(identifier).__name__})"
    )
