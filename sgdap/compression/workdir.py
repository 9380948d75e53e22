"""The folder of a compression: models after each stage and what is known of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from sgdap.compression.work import Work
from sgdap.exporting.converting import first_line
from sgdap.exporting.place import TEMPORARY
from sgdap.model.copying import compile_alike
from sgdap.model.tracing import trace
from sgdap.model.trusted import own_classes

_STATE = "state.json"


class Workdir:
    """Keeps a compression so that it can be gone on with; without a folder it keeps nothing.

    Args:
        work: What stages share, with the folder.
        asked: The arguments of the compression, as plain values.

    Attributes:
        folder: The folder; None: there is none.
        kept: What is known of the compression: `before`, `stages` and perhaps `search`.

    Raises:
        ValueError: The folder holds another compression, or the model can't be loaded from a file.
    """

    def __init__(self, work: Work, asked: Mapping[str, Any]) -> None:
        self._work, self.folder = work, work.folder
        self.kept: dict[str, Any] = {"identity": "", "before": None, "stages": []}
        if self.folder is None:
            return
        self._own = own_classes(trace(work.model).layers().values())
        self._check_loads()
        self.kept["identity"] = self._identity(asked)
        place = self.folder / _STATE
        if not place.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        found = json.loads(place.read_text())
        if found.get("identity") != self.kept["identity"]:
            if not found.get("stages"):  # it ended before its first stage did: nothing is lost
                return
            raise ValueError(
                f"{self.folder} holds a compression of another model or with other arguments. "
                "Call it as before, or pass another workdir."
            )
        self.kept = found
        for stale in [*self.folder.rglob(f"{TEMPORARY}*")]:  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)

    def keep(self, **entries: Any) -> None:
        """Writes what is known now, and adds entries to it."""
        self.kept |= entries
        if self.folder is None:
            return
        made = self.folder / f"{_STATE}.new"
        made.write_text(json.dumps(self.kept, indent=1))
        made.replace(self.folder / _STATE)

    def saved(self, model: Any, number: int) -> Any:
        """The model as it is read back, so that going on makes no difference."""
        if self.folder is None:
            return model
        made = self.folder / f"new-{number}.keras"
        model.save(made, include_optimizer=False)
        made.replace(self._place(number))
        return self.loaded(number)

    def loaded(self, number: int) -> Any:
        """The model after a number of stages."""
        model = keras.models.load_model(
            self._place(number), custom_objects=self._own, compile=False
        )
        if self._work.model.compiled:
            compile_alike(model, self._work.model)
        return model

    def _place(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"stage-{number}.keras"

    def _check_loads(self) -> None:
        config = json.loads(self._work.model.to_json())
        config.pop("compile_config", None)
        try:
            keras.models.model_from_json(json.dumps(config), self._own)
        except Exception as error:  # Keras raises anything
            raise ValueError(
                "workdir keeps models as .keras files, and this one can't be made from its config: "
                f"{first_line(error)}. Leave workdir out."
            ) from error

    def _identity(self, asked: Mapping[str, Any]) -> str:
        """What a compression must have been asked for, to be gone on with."""
        work = self._work
        digest = hashlib.sha256(work.model.to_json().encode())
        for weights in work.model.get_weights():
            digest.update(np.ascontiguousarray(weights).tobytes())
        whole = {
            **asked,
            "epochs": work.epochs,
            "seed": work.seed,
            "batch_size": work.batch_size,
            "teacher": work.teacher is not None,
            "data": [_size_of(work.data), _size_of(getattr(work.judge, "data", None))],
        }
        digest.update(json.dumps(whole, sort_keys=True).encode())
        return digest.hexdigest()


def _size_of(data: Any) -> list[Any]:
    if not isinstance(data, tuple):
        return [type(data).__name__]
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    return [[list(np.shape(leaf)), str(leaf.dtype)] for leaf in leaves]
