"""The methods that Keras calls on a callback whose `fit` goes in rounds; `run.py` decides."""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import keras

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.model.tracing import check_is_no_tf_keras
from sgdap.training.backup import Backup
from sgdap.training.neighbours import Neighbours
from sgdap.training.run import Run

AnyRun = TypeVar("AnyRun", bound=Run)


class RoundsCallback(keras.callbacks.Callback, Generic[AnyRun]):
    """Runs the rounds of a `fit`, of which subclasses tell what they do.

    Args:
        backup_dir: A folder for a backup of the run; None: there is none.
        verbose: 0: silent, 1: a line for each decision.
    """

    def __init__(self, backup_dir: str | os.PathLike[str] | None, verbose: int) -> None:
        super().__init__()
        self.backup_dir = backup_dir
        self.verbose = verbose
        self.rounds: list[Any] = []
        self.summary: Any = None
        self._backup = None if backup_dir is None else Backup(backup_dir)
        self._run: AnyRun | None = None

    @abstractmethod
    def _start(self, neighbours: Neighbours) -> AnyRun:
        """Checks that a run can work and makes it; nothing is changed."""

    @abstractmethod
    def _settings(self) -> dict[str, str]:
        """The options that decide the result of a run, as text."""

    def show(self, run: AnyRun) -> None:
        """Shows what the run remembers in the attributes of the callback."""
        self.rounds = run.state.rounds

    def set_model(self, model: Any) -> None:
        """Takes the model that Keras trains; refuses one of Keras 2, which has other callbacks."""
        check_is_no_tf_keras(model)
        super().set_model(model)

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Checks everything before anything is changed, and takes up a backup if there is one."""
        self.summary = None
        name = type(self).__name__
        neighbours = Neighbours(*_keras.callbacks_beside(self), name=name)
        if neighbours.of_class(RoundsCallback):
            raise ValueError(
                "A fit takes one callback of sgdap that works in rounds. Received: more than one, "
                f"{name} and {type(neighbours.of_class(RoundsCallback)[0]).__name__}. Leave one "
                "out; where channels and then single weights are to leave, let two fits follow "
                "each other."
            )
        self._run = run = self._start(neighbours)
        with self._running():
            run.install()
            if self._backup is not None:
                state = self._backup.begin(
                    run.graph, run.kept(), self._settings(), int(self.params["epochs"])
                )
                if state is not None:
                    run.take_up(state)
                    self._say(f"SGDAP goes on where the run was interrupted: {self.backup_dir}")
                    return
            run.measure_baseline()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Judges the last round, then starts the next one if it is due.

        This is not done at the end of an epoch, so that all callbacks there, in any order, still
        see the model that the epoch's metrics belong to.
        """
        with self._running() as run:
            run.neighbours.note()
            run.begin_at(epoch)
            if self._backup is not None:  # all callbacks have finished the last epoch
                self._backup.write(epoch, run.kept(), run.graph.program)
            run.between_epochs()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the metric and adds the cost of the model to the logs."""
        with self._running() as run:
            run.note_epoch(epoch, {} if logs is None else logs)

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Undoes a round that never recovered, and restores the best weights since the last one."""
        with self._running() as run:
            self.summary = run.end()
            if self._backup is not None:
                self._backup.end()
            run.untap()
        self._run = None

    @contextlib.contextmanager
    def _running(self) -> Iterator[AnyRun]:
        """A context in which an error gives the model its own train step back."""
        assert self._run is not None
        try:
            yield self._run
        except BaseException:
            self._run.untap()
            raise
        finally:
            self.show(self._run)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: all but a run that was interrupted."""
        return {**vars(self), "_run": None}

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text)


def check_teacher(teacher: Any) -> None:
    """Checks the argument `teacher`.

    Raises:
        TypeError: It is neither a model nor True nor None.
    """
    if teacher is not None and teacher is not True and not isinstance(teacher, keras.Model):
        raise TypeError(
            "teacher must be a keras.Model, True for the model as fit is given it, or None. "
            f"Received: {shown(teacher)} (of type {type(teacher).__name__})"
        )


def teacher_words(teacher: Any) -> str:
    """A teacher as text, for the settings of a run."""
    return str(getattr(teacher, "name", teacher))
