"""The backup of a run in a folder, from which a killed run goes on; it never judges or prunes."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sgdap import _keras
from sgdap._arguments import shown
from sgdap.channels.groups import ChannelGraph
from sgdap.model.generators import random_state, set_random_state
from sgdap.model.program import OperationCall, Program, Ref
from sgdap.model.tracing import trace
from sgdap.model.trusted import NO_LAMBDA, is_lambda
from sgdap.planning.bypassed import BypassedUnit
from sgdap.planning.plan import GroupPlan, Plan, model_fingerprint
from sgdap.surgery.adopt import remake_functions
from sgdap.surgery.snapshot import Snapshot, restore_snapshot, take_snapshot
from sgdap.surgery.wiring import Wiring, restore_wired
from sgdap.training.guard import Guard, QuantizationRound, Round, SparsityRound
from sgdap.training.state import RunState
from sgdap.training.state_file import read_state_file, write_state_file

_NAME = "run.sgdap"
_CLASSES = (
    *(RunState, Guard, Round, SparsityRound, QuantizationRound),
    *(Snapshot, OperationCall, Ref, Plan, GroupPlan, BypassedUnit, Wiring),
)


class Backup:
    """Stores a run's model, optimizer and state, and the states of the default random generators.

    Args:
        folder: The folder for the backup file. It is made when it is first needed.

    Raises:
        TypeError: `folder` is not a path.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not isinstance(folder, (str, os.PathLike)) or not str(folder):
            raise TypeError(
                f"backup_dir must be the path of a folder, or None. Received: {shown(folder)} "
                f"(of type {type(folder).__name__})"
            )
        self.folder = Path(folder)
        self._is_own = False
        self._path = self.folder / _NAME

    def begin(
        self,
        graph: ChannelGraph,
        states: Sequence[RunState],
        settings: Mapping[str, str],
        epochs: int,
    ) -> Sequence[RunState] | None:
        """Restores the model from the last backup, if there is one, when a `fit` begins.

        Args:
            graph: The channels of the model as the user's script made it.
            states: The present states of the runs of this `fit`.
            settings: The user's options for the runs, as text.
            epochs: The epoch at which this `fit` is to end.

        Returns:
            The states of the runs in the backup; None if there is no backup.

        Raises:
            ValueError: The folder can't be written to, the backup is damaged, belongs to another
                model or other settings or goes beyond the last epoch, or the state of this run
                can't be stored. Nothing was changed.
        """
        self._model = graph.program.model
        self._fingerprint = model_fingerprint(graph)
        self._settings = dict(settings)
        self._first: int | None = None
        self._check(self._content(0, states, graph.program))
        _keras.begin_at_epoch(self._model, None)
        if not self._path.exists():
            return None
        try:
            content = read_state_file(self._path, _CLASSES)
        except (ValueError, OSError) as error:
            raise ValueError(f"{str(error).rstrip('.')}. Delete it to begin anew.") from error
        other = (
            f"The backup '{self._path}' is of a run of another model or optimizer. Make the model "
            "as the script did that was interrupted, or delete the file to begin anew."
        )
        if content["fingerprint"] != self._fingerprint:
            raise ValueError(other)
        if content["settings"] != self._settings:
            before, now = content["settings"], self._settings
            changed = [
                f"{name}={before.get(name)}, now {now.get(name)}"
                for name in sorted({*before, *now})
                if before.get(name) != now.get(name)
            ]
            raise ValueError(
                f"The backup '{self._path}' is of a run with other settings: {'; '.join(changed)}. "
                "Set them as they were, or delete the file to begin anew."
            )
        if content["epoch"] >= epochs:
            raise ValueError(
                f"The backup '{self._path}' is of a run that has done {content['epoch']} epochs, "
                f"and this fit ends after {epochs}: nothing would be trained. Train for more "
                "epochs to go on, or delete the file to begin anew."
            )
        try:
            self._restore(content["model"], content["states"], graph.program)
        except ValueError as error:
            raise ValueError(f"{other} {error}") from error
        if content["jit_compile"] != self._model.jit_compile:
            self._model.jit_compile = content["jit_compile"]
            remake_functions(self._model)
        self._is_own = content["is_own"]
        set_random_state(content["random"])
        _keras.begin_at_epoch(self._model, content["epoch"])
        taken_up: Sequence[RunState] = content["states"]
        return taken_up

    def _restore(self, wanted: Snapshot, states: Sequence[RunState], program: Program) -> None:
        """Restores the model, of which layers may have left as a whole."""
        state = next((own for own in states if own.wiring is not None), None)
        if state is None or state.wiring is None:
            restore_snapshot(self._model, wanted, counters=True, program=program)
            return
        good, before = state.good, state.wiring_before
        if not state.pending or good is None or before is None:
            restore_wired(program, state.wiring, wanted, counters=True)
            return
        restore_wired(program, before, good)  # the last round may bring layers back
        back = restore_wired(trace(self._model), state.wiring, wanted, counters=True)
        state.way_back = None if back is None else (back, wanted)

    def write(self, epoch: int, states: Sequence[RunState], program: Program) -> None:
        """Writes a backup. If that fails, a warning says whether there is one from before.

        Args:
            epoch: The epoch that begins. At the first one of a `fit` nothing is written.
            states: The states of the runs.
            program: The model's calls as they are now.
        """
        if self._first is None:
            self._first = epoch
        if epoch == self._first:
            return
        try:
            self._is_own = self._is_own or not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_state_file(self._path, self._content(epoch, states, program), _CLASSES)
        except OSError as error:
            left = (
                "The one before stays."
                if os.path.exists(self._path)
                else "There is none before it: a run that is killed now begins anew."
            )
            warnings.warn(
                f"The backup after epoch {epoch} could not be written: {error}. {left}",
                stacklevel=2,
            )

    def end(self) -> None:
        """Removes the file, and its folder too if this object made it and it is empty."""
        _keras.begin_at_epoch(self._model, None)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        if self._is_own:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _content(self, epoch: int, states: Sequence[RunState], program: Program) -> dict[str, Any]:
        return {
            "fingerprint": self._fingerprint,
            "settings": self._settings,
            "is_own": self._is_own,
            "epoch": epoch,
            "model": take_snapshot(self._model, program),
            "jit_compile": self._model.jit_compile,
            "random": random_state(),
            "states": list(states),
        }

    def _check(self, content: Mapping[str, Any]) -> None:
        """Writes a backup beside the last one, reads it and removes it.

        Raises:
            ValueError: The folder can't be written to, or the state can't be stored.
        """
        trial = self._path.with_name(_NAME + ".trial")
        try:
            for layer in _keras.flatten_layers(self._model):
                if any(is_lambda(getattr(layer, name, None)) for name in layer.get_config()):
                    raise TypeError(f"(layer '{layer.name}') {NO_LAMBDA}")
            with _made(self.folder):
                try:
                    write_state_file(trial, content, _CLASSES)
                    read_state_file(trial, _CLASSES)
                finally:
                    trial.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"No backup can be written to backup_dir='{self.folder}': {error}. Pass a folder "
                "that this process can make or write to, with room for the run."
            ) from error
        except Exception as error:  # a user's get_config may raise anything
            raise ValueError(
                f"The state of this run can't be kept in backup_dir: {error} Let the get_config "
                "of your layers return plain values, or leave backup_dir out."
            ) from error


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Within, a folder is there; those that were made for it are removed afterwards.

    Raises:
        OSError: The folder can't be made.
    """
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for part in missing:
            with contextlib.suppress(OSError):
                part.rmdir()
