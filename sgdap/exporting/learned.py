"""What layers know beside their weights as plain data of a packed file, and back."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from sgdap import _keras
from sgdap.exporting.coding import DamagedError
from sgdap.model.learnt import learners, learnt, teach


def told(model: Any) -> list[Any] | None:
    """What the layers of a model know that neither their configs nor their weights tell.

    Returns:
        For each of the `learners` its arrays and files, or None where its weights are all; None
        if that holds for each.

    Raises:
        ValueError: It is nothing that plain data can hold.
    """
    entries = [_told(layer) for layer in learners(model)]
    return entries if any(entry is not None for entry in entries) else None


def _told(layer: Any) -> Any:
    store, files = learnt(layer)
    numbers = {id(v): i for i, v in enumerate(_keras.layer_variables(layer))}
    if not files and all(id(value) in numbers for value in store.values()):
        return None
    arrays = {name: numbers.get(id(v), v) for name, v in store.items()}
    return [
        {name: v if isinstance(v, int) else _written(layer, name, v) for name, v in arrays.items()},
        {name: content.decode("utf-8", "surrogateescape") for name, content in files.items()},
    ]


def _written(layer: Any, name: str, value: Any) -> list[Any]:
    array = np.asarray(keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else value)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"Layer '{layer.name}' saves '{name}' of type {array.dtype}, which a packed file can't "
            "hold. sgdap.export writes it as another file."
        )
    return [array.dtype.name, array.tolist()]


def tell(model: Any, entries: Any) -> None:
    """Gives the layers of a model what `told` tells of another one, after their weights.

    Raises:
        DamagedError: It is not of this model.
    """
    found = learners(model)
    entries = [None] * len(found) if entries is None else entries
    try:
        for layer, entry in zip(found, entries, strict=True):
            if entry is None:
                store: dict[str, Any] = {}
                layer.save_own_variables(store)
                teach(layer, store, {})
                continue
            variables = _keras.layer_variables(layer)
            arrays, files = entry
            teach(
                layer,
                {k: variables[v] if isinstance(v, int) else _read(v) for k, v in arrays.items()},
                {k: v.encode("utf-8", "surrogateescape") for k, v in files.items()},
            )
    except Exception as error:  # Keras raises anything
        raise DamagedError(f"what its layers know can't be given to them: {error}") from error


def _read(value: Any) -> Any:
    dtype, entries = value
    return np.asarray(entries, dtype)
