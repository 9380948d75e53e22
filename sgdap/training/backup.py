"""Backups of a training run, by which a run that was killed goes on; knows nothing of pruning."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgdap import _keras
from sgdap.training.record import read_record, write_record

_NAME = "run.sgdap"


class Backup:
    """The last whole state of a run in a folder.

    Args:
        folder: Where it is; made when it is first written.
        classes: Dataclasses that the state holds.

    Raises:
        TypeError: `folder` is no path.
    """

    def __init__(self, folder: str | os.PathLike[str], classes: Sequence[type] = ()) -> None:
        if not isinstance(folder, (str, os.PathLike)) or not str(folder):
            raise TypeError(
                f"backup_dir must be the path of a folder, or None. Received: {folder!r} (of type "
                f"{type(folder).__name__})"
            )
        self._folder = Path(folder)
        self._classes = tuple(classes)

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / _NAME

    def read(self, model: str) -> tuple[int, Mapping[str, Any]] | None:
        """The epoch at which the run goes on and its state; None where there is no backup.

        Args:
            model: Fingerprint of the model that the run began with.

        Raises:
            ValueError: The file is damaged, or of a run of another model.
        """
        if not self.path.exists():
            return None
        remedy = (
            "Make the model as the script did that was interrupted, or delete the file to begin "
            "anew."
        )
        try:
            content = read_record(self.path, self._classes)
        except ValueError as error:
            raise ValueError(f"{error} Delete it to begin anew.") from error
        if content["model"] != model:
            raise ValueError(f"The backup '{self.path}' is of a run of another model. {remedy}")
        return content["epoch"], content["state"]

    def check(self, state: Mapping[str, Any]) -> None:
        """Says before a run begins whether its state can be written and read again.

        Args:
            state: The state as it will be written.

        Raises:
            ValueError: It can't.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / _NAME
                write_record(path, dict(state), self._classes)
                read_record(path, self._classes)
        except Exception as error:  # what comes from the configs of a user's own layers
            raise ValueError(
                f"The run's state can't be kept in backup_dir: {error} Let the get_config of your "
                "layers return plain values, or leave backup_dir out."
            ) from error

    def write(self, epoch: int, model: str, state: Mapping[str, Any]) -> None:
        """Writes the state; where it can't be written, the one before stays and a warning says so.

        Args:
            epoch: The epoch at which the run goes on from here.
            model: Fingerprint of the model that the run began with.
            state: What `read` returns.

        Raises:
            TypeError: The state holds something that can't be written.
        """
        content = {"model": model, "epoch": epoch, "state": dict(state)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_record(self.path, content, self._classes)
        except OSError as error:
            warnings.warn(
                f"The backup after epoch {epoch} could not be written: {error}. The one before "
                "stays.",
                stacklevel=2,
            )

    def remove(self) -> None:
        """Removes the file, and its folder where nothing else is in it."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def random_state() -> Mapping[str, Any]:
    """The state of the generators that Python, NumPy and Keras draw from by default."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  # what others draw from
        "keras": _keras.global_seed_state(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Sets the generators back to what `random_state` returned."""
    _keras.set_global_seed_state(state["keras"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
