"""The methods that Keras calls on a callback whose `fit` goes in rounds; `run.py` decides."""

from __future__ import annotations

import contextlib
import itertools
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import keras

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.model.tracing import check_is_no_tf_keras
from sgdap.training.backup import Backup
from sgdap.training.bit_run import check_zeros_are_levels
from sgdap.training.neighbours import Neighbours
from sgdap.training.run import Run
from sgdap.training.runs import Runs

AnyRun = TypeVar("AnyRun", bound=Run)


class RoundsCallback(keras.callbacks.Callback, Generic[AnyRun]):
    """Runs the rounds of a `fit`, of which subclasses tell what they do.

    Args:
        backup_dir: A folder for a backup of the run; None: there is none.
        verbose: 0: silent, 1: a line for each decision.
    """

    turn: ClassVar[int]
    """The place of the kind of callback in the order of rounds."""

    teacher: Any

    def __init__(self, backup_dir: str | os.PathLike[str] | None, verbose: int) -> None:
        super().__init__()
        self.backup_dir = backup_dir
        self.verbose = verbose
        self.rounds: list[Any] = []
        self.summary: Any = None
        self.backup = None if backup_dir is None else Backup(backup_dir)
        self._run: AnyRun | None = None
        self._runs: Runs | None = None

    @abstractmethod
    def start(self, neighbours: Neighbours, teacher: Any) -> AnyRun:
        """Checks that a run can work and makes it; nothing is changed.

        Args:
            neighbours: The other callbacks.
            teacher: The teacher; None: there is none, or another run has made it.
        """

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """The options that decide the result of a run, as text."""

    def show(self, run: AnyRun) -> None:
        """Shows what the run remembers in the attributes of the callback."""
        self.rounds = run.state.rounds

    def set_model(self, model: Any) -> None:
        """Takes the model that Keras trains; refuses one of Keras 2, which has other callbacks."""
        check_is_no_tf_keras(model)
        super().set_model(model)

    def join(self, run: AnyRun, runs: Runs) -> None:
        """Takes part in a `fit`, with others or alone."""
        self.summary = None
        self._run, self._runs = run, runs

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Checks everything before anything is changed, and takes up a backup if there is one.

        Of several callbacks the first in the list does it for all, then and at each epoch's begin.
        """
        before, after = _keras.callbacks_beside(self)
        if not any(isinstance(other, RoundsCallback) for other in before):
            others = [other for other in after if isinstance(other, RoundsCallback)]
            start_together([self, *others])
        with self._running() as runs:
            folder = runs.begin()
            if folder is not None:
                self.say(f"SGDAP goes on where the run was interrupted: {folder}")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Judges the last rounds, then starts those that are due.

        This is not done at the end of an epoch, so that all callbacks there, in any order, still
        see the model that the epoch's metrics belong to.
        """
        with self._running() as runs:
            runs.begin_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the metric and adds the cost of the model to the logs."""
        with self._running():
            assert self._run is not None
            self._run.note_epoch(epoch, {} if logs is None else logs)

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Undoes a round that never recovered, and restores the best weights since the last one."""
        with self._running() as runs:
            assert self._run is not None
            self.summary = runs.end()[self._run]
        self._run = self._runs = None

    @contextlib.contextmanager
    def _running(self) -> Iterator[Runs]:
        """A context in which an error gives the model its own train step back."""
        assert self._run is not None and self._runs is not None
        try:
            yield self._runs
        except BaseException:
            self._runs.untap()
            raise
        finally:
            self.show(self._run)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: all but a run that was interrupted."""
        return {**vars(self), "_run": None, "_runs": None}

    def say(self, text: str) -> None:
        """Shows the user a line, unless the callback is silent."""
        if self.verbose:
            print(text)


def start_together(callbacks: Sequence[RoundsCallback[Any]]) -> None:
    """Starts the runs of the callbacks of one `fit`, which share a teacher and a backup.

    Raises:
        TypeError: The calibration data or the teacher of one are of a wrong kind.
        ValueError: Two are of one kind, they have different teachers or backups, or a run can't
            work. Nothing was changed.
    """
    together = sorted(callbacks, key=lambda callback: callback.turn)
    for one, other in itertools.pairwise(together):
        if one.turn == other.turn:
            raise ValueError(
                "A fit takes one callback that takes out channels, one that makes weights zero, "
                "and one that rounds them. Received: more than one of a kind, "
                f"{type(one).__name__} and {type(other).__name__}. Leave one out, or let two fits "
                "follow each other."
            )
    teachers = [callback for callback in together if callback.teacher is not None]
    if any(callback.teacher is not teachers[0].teacher for callback in teachers):
        raise ValueError(
            "A fit takes one teacher. Received: different ones, "
            f"{' and '.join(teacher_words(callback.teacher) for callback in teachers)}. Give one "
            "of the callbacks a teacher, or both the same."
        )
    keepers = [callback for callback in together if callback.backup is not None]
    folders = {os.path.abspath(str(callback.backup_dir)) for callback in keepers}
    if len(folders) > 1:
        raise ValueError(
            "A fit has one backup. Received: different folders, "
            f"{' and '.join(sorted(folders))}. Give one of the callbacks a backup_dir, or both the "
            "same."
        )
    runs = []
    for callback in together:
        beside = _keras.callbacks_beside(callback)
        neighbours = Neighbours(*beside, name=type(callback).__name__)
        teacher = callback.teacher if callback in teachers[:1] else None
        runs.append(callback.start(neighbours, teacher))
    check_zeros_are_levels(runs)
    words = {
        f"{type(callback).__name__}.{name}" if len(together) > 1 else name: value
        for callback in together
        for name, value in callback.settings().items()
    }
    joined = Runs(runs, keepers[0].backup if keepers else None, words)
    for callback, run in zip(together, runs, strict=True):
        callback.join(run, joined)


def check_teacher(teacher: Any) -> None:
    """Checks the argument `teacher`.

    Raises:
        TypeError: It is neither a model nor True nor None.
    """
    check_is_no_tf_keras(teacher)
    if teacher is not None and teacher is not True and not isinstance(teacher, keras.Model):
        raise TypeError(
            "teacher must be a keras.Model, True for the model as fit is given it, or None. "
            f"Received: {shown(teacher)} (of type {type(teacher).__name__})"
        )


def teacher_words(teacher: Any) -> str:
    """A teacher as text, for the settings of a run."""
    return str(getattr(teacher, "name", teacher))
