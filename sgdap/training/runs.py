"""The runs of one `fit`, one of each kind at most: which is judged and which goes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgdap.training.backup import Backup
from sgdap.training.baseline import validation_metrics
from sgdap.training.run import Run


class Runs:
    """Lets the runs of a `fit` take turns.

    When an epoch begins, all runs are judged, then each begins a round if one is due, in their
    order. A round waits while one that may be undone is still to be judged, so what is undone is
    always the last thing that was done. They have one teacher and one backup.

    Args:
        runs: The runs, in the order of their rounds.
        backup: The backup of the runs; None: there is none.
        settings: The options that decide the result, as text.
    """

    def __init__(
        self, runs: Sequence[Run], backup: Backup | None, settings: Mapping[str, str]
    ) -> None:
        self._runs, self._backup, self._settings = tuple(runs), backup, settings
        self._epochs = int(runs[0].params["epochs"])
        self._begun = False
        self._epoch: int | None = None
        self._summaries: Mapping[Run, Any] = {}
        teaching = next((run.teaching for run in runs if run.teaching is not None), None)
        for run in runs:
            run.beside = [other for other in runs if other is not run]
            run.teaching = teaching

    def begin(self) -> Path | None:
        """Prepares the model, and takes up a backup if there is one; a second call does nothing.

        Returns:
            The folder of the backup that was taken up; None: there was none.
        """
        if self._begun:
            return None
        self._begun = True
        for run in self._runs:
            run.check_monitor()
        for run in self._runs:
            run.install()
        if self._backup is not None:
            states = self._backup.begin(
                self._runs[0].graph, self._kept(), self._settings, self._epochs
            )
            if states is not None:
                for run, state in zip(self._runs, states, strict=True):
                    run.take_up(state)
                return self._backup.folder
        comparing = [run for run in self._runs if run.wants_baseline]
        if comparing:
            brought, unmeasured = validation_metrics(self._runs[0].model)
            for run in comparing:
                run.state.brought, run.state.unmeasured = brought, unmeasured
                run.check_drop()
        return None

    def begin_epoch(self, epoch: int) -> None:
        """Writes the backup, judges the last rounds, and starts those that are due.

        A second call in the same epoch does nothing.
        """
        if epoch == self._epoch:
            return
        self._epoch = epoch
        for run in self._runs:
            run.neighbours.note()
            run.begin_at(epoch)
        if self._backup is not None:  # all callbacks have finished the last epoch
            self._backup.write(epoch, self._kept(), self._runs[0].graph.program)
        self._between_epochs(go_on=True)

    def end(self) -> Mapping[Run, Any]:
        """Undoes a round that never recovered, and restores the best weights since the last one.

        Returns:
            The summary of each run. A second call only returns them again.
        """
        if self._summaries:
            return self._summaries
        ended = self._runs[0].state.ended
        epoch = None if ended is None else ended[0]
        self._between_epochs(go_on=epoch == self._epochs - 1)
        for run in self._runs:
            run.conclude()
        for run in self._runs:
            best = run.restore_best()
            epoch = epoch if best is None else best
        self._summaries = {run: run.end(epoch) for run in self._runs}
        if self._backup is not None:
            self._backup.end()
        self.untap()
        return self._summaries

    def untap(self) -> None:
        """Gives the model its own train step back."""
        for run in self._runs:
            run.untap()

    def _between_epochs(self, go_on: bool) -> None:
        """Judges the last rounds, then starts those that are due.

        Args:
            go_on: Whether other rounds may follow.
        """
        for run in self._runs:
            run.remember()
        for run in self._runs:
            run.judge(go_on)
        for run in self._runs:
            if go_on:
                run.go_on()
            run.state.ended = None

    def _kept(self) -> list[Any]:
        return [run.kept() for run in self._runs]
