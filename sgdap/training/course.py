"""Which epochs of a run have a round, and how far each goes; holds numbers, knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sgdap.training.calendar import Calendar
from sgdap.training.guard import AnyRound
from sgdap.training.schedule import Schedule, StepSchedule


@dataclass(frozen=True, eq=False)
class Course:
    """The rounds that are planned for a run.

    Attributes:
        calendar: The epochs after which there may be rounds.
        schedule: The schedule by which the budget is approached.
        epochs: The epochs after which rounds are planned.
        steps: A schedule over training steps that replaces `schedule` and `epochs`; None: there is
            none.
        steps_per_epoch: The number of training steps of an epoch; 0 without such a schedule.
    """

    calendar: Calendar
    schedule: Schedule
    epochs: Sequence[int]
    steps: StepSchedule | None = None
    steps_per_epoch: int = 0

    def begun_at(self, epoch: int, early: bool = False) -> Course:
        """The course of the same run if it begins at another epoch.

        Args:
            epoch: The epoch at which the run begins.
            early: Whether the first round comes before that epoch.

        Raises:
            ValueError: There is no epoch for a round.
        """
        calendar = replace(self.calendar, first=epoch, early=early)
        return replace(self, calendar=calendar, epochs=calendar.rounds())

    def allows(self, epoch: int) -> bool:
        """Whether layers may shrink after an epoch."""
        return self.calendar.begin <= epoch < self.calendar.end

    def progress(self, epoch: int, last: AnyRound | None, steps_done: int) -> float | None:
        """How far on the way to the budget the model should be after an epoch, from 0 to 1.

        Args:
            epoch: The epoch that ended.
            last: The last round; None before the first.
            steps_done: How many steps of the schedule over steps earlier calls have dealt with.

        Returns:
            The progress; None if no round is planned now.
        """
        undone = last is not None and last.decision == "undone"
        if self.steps is not None:
            return self.steps.progress(0 if undone else steps_done, self.steps_until(epoch))
        if last is not None and not undone and epoch - last.epoch < self.calendar.frequency:
            return None
        return self.schedule.progress(sum(e <= epoch for e in self.epochs) / len(self.epochs))

    def steps_until(self, epoch: int) -> int:
        """How many steps of a schedule over steps have passed after an epoch."""
        return (epoch + 1) * self.steps_per_epoch
