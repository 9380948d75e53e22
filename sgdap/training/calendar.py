"""The epochs of a run after which layers may shrink; holds numbers, knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Calendar:
    """The epochs after which a round of pruning may take place.

    Attributes:
        epochs: The number of epochs of the run.
        earliest: The first epoch (from 0) after which layers may shrink.
        frequency: The number of epochs from one round to the next.
        final: The number of epochs at the end in which nothing is removed. None: rounds are planned
            in the first half of the epochs from then on, rounded down; only one that was undone
            or had to wait may come later.
        measured: The epochs that have the metric. Rounds are placed so that each has one before
            and one after it. None: every epoch has it, or rounds are not judged.
        least: The number of rounds that find a place, even if the half is too short for them.
        most: The number of rounds that are planned at most; None: as many as find a place.
        first: The first epoch of the run.
        early: Whether the first round comes before the first epoch of the run.
    """

    epochs: int
    earliest: int
    frequency: int
    final: int | None
    measured: Sequence[int] | None = None
    least: int = 1
    most: int | None = None
    first: int = 0
    early: bool = False

    @property
    def begin(self) -> int:
        """The first epoch after which layers may shrink; one less than `first` if it is early."""
        return self.first - 1 if self.early else max(self.earliest, self.first)

    @property
    def end(self) -> int:
        """The first epoch after which layers no longer shrink."""
        end = self.epochs - self._final
        return end if self.measured is None else min(end, self.measured[-1])

    def rounds(self) -> list[int]:
        """The epochs after which a round is planned.

        Raises:
            ValueError: There is no such epoch.
        """
        first = self.begin
        found: list[int] = []
        for epoch in range(first, self.end):
            rested = not found or epoch - found[-1] >= self.frequency
            measured = self.measured is None or epoch in self.measured or epoch < self.first
            if rested and measured:
                found.append(epoch)
        if not found:
            judged = (
                " With max_accuracy_drop a round begins after a validated epoch and is judged by a "
                f"later one: validation_freq leaves {len(self.measured)} of them."
                if self.measured is not None
                else ""
            )
            when = f"after epoch {first}" if first >= 0 else "before the first one"
            known = (
                ""
                if self.early
                else " A round before the first epoch takes a model that is trained already, and "
                "data that can be read beforehand (those of fit, or calibration_data with targets)."
            )
            raise ValueError(
                f"There is no epoch for a round: of {self.epochs} epochs, pruning begins {when} "
                "(begin_epoch or fit's initial_epoch, counted from 0) and "
                f"{self._final} are left for fine-tuning (final_finetune_epochs). Train for more "
                f"epochs or lower one of the two.{known}{judged}"
            )
        if self.final is None:
            half = first + (self.epochs - first) // 2
            found = found[: max(self.least, sum(epoch < half for epoch in found))]
        return found[: self.most]

    def left(self, epoch: int) -> int:
        """The number of epochs after `epoch` that have the metric."""
        measured = range(self.epochs) if self.measured is None else self.measured
        return sum(later > epoch for later in measured)

    @property
    def _final(self) -> int:
        return 1 if self.final is None else self.final
