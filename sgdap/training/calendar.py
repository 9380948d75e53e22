"""The epochs of a run after which layers may shrink; holds numbers, knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Calendar:
    """The epochs after which a round of pruning may take place.

    Attributes:
        epochs: The number of epochs of the run.
        begin: The first epoch (from 0) after which layers may shrink.
        frequency: The number of epochs from one round to the next.
        final: The number of epochs at the end that are left for fine-tuning.
        measured: The epochs that have the metric. Rounds are placed so that each has one before
            and one after it. None: every epoch has it, or rounds are not judged.
    """

    epochs: int
    begin: int
    frequency: int
    final: int
    measured: Sequence[int] | None = None

    @property
    def end(self) -> int:
        """The first epoch after which layers no longer shrink."""
        end = self.epochs - self.final
        return end if self.measured is None else min(end, self.measured[-1])

    def rounds(self, first: int = 0) -> list[int]:
        """The epochs after which there may be a round.

        Args:
            first: The first epoch of the run.

        Raises:
            ValueError: There is no such epoch.
        """
        first = max(self.begin, first)
        found: list[int] = []
        for epoch in range(first, self.end):
            rested = not found or epoch - found[-1] >= self.frequency
            if rested and (self.measured is None or epoch in self.measured):
                found.append(epoch)
        if not found:
            judged = (
                " With max_accuracy_drop a round begins after a validated epoch and is judged by a "
                f"later one: validation_freq leaves {len(self.measured)} of them."
                if self.measured is not None
                else ""
            )
            raise ValueError(
                f"There is no epoch for a round: of {self.epochs} epochs, pruning begins after "
                f"epoch {first} (begin_epoch or fit's initial_epoch, counted from 0) and "
                f"{self.final} are left for fine-tuning (final_finetune_epochs). Train for more "
                f"epochs or lower one of the two.{judged}"
            )
        return found
