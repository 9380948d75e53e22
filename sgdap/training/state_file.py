"""A file of plain data and arrays, written whole or not at all.

Reading it never runs code from the file: it makes only Keras' own objects and those that the user
registered. (safetensors stores only arrays, without checksum or nesting, and does not protect
against half-written files.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from sgdap.model.trusted import NO_LAMBDA, check_names, is_lambda

_VERSION = 5
_MAGIC = b"SGDAP record "
_DIGEST = 32
_TAG = "<>"  # key that marks values which JSON can't express


def write_state_file(path: Path, value: Any, classes: Sequence[type] = ()) -> None:
    """Writes a value to a file. The old file is replaced only when the new one is complete.

    Args:
        path: The file. The new one is written beside it, with `.partial` after its name.
        value: Numbers, strings, arrays, containers of them, dataclasses among `classes` and
            whatever `keras.saving.serialize_keras_object` takes.
        classes: The dataclasses that may occur in the value.

    Raises:
        TypeError: The value holds something else, or an object that could not be read again: a
            lambda, or an object of a class that is not registered.
        OSError: The file can't be written. The old file is still whole.
    """
    arrays: list[npt.NDArray[Any]] = []
    text = json.dumps(_encoded(value, arrays, classes)).encode()
    partial = path.with_name(path.name + ".partial")
    digest = hashlib.sha256()
    try:
        with open(partial, "wb") as file:
            begin = _MAGIC + b"%d\n" % _VERSION + len(text).to_bytes(8, "little")
            for piece in itertools.chain((begin, text), (array.tobytes() for array in arrays)):
                file.write(piece)
                digest.update(piece)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    with contextlib.suppress(OSError):  # not all systems let a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_state_file(path: Path, classes: Sequence[type] = ()) -> Any:
    """Reads a file that `write_state_file` wrote.

    Args:
        path: The file to read.
        classes: The dataclasses that may occur in it.

    Raises:
        ValueError: The file is torn, damaged, of another version or not such a file, or it names
            an object that is neither Keras' own nor registered.
        OSError: The file can't be read.
    """
    content = path.read_bytes()
    head, _, _ = content[:64].partition(b"\n")
    if not head.startswith(_MAGIC):
        raise ValueError(f"'{path}' was not written by sgdap.")
    if head != _MAGIC + b"%d" % _VERSION:
        raise ValueError(
            f"'{path}' was written by another version of sgdap: it is of format "
            f"{head[len(_MAGIC) :].decode(errors='replace')}, this version reads {_VERSION}."
        )
    if hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
        raise ValueError(f"'{path}' is torn or damaged: its checksum does not fit its content.")
    start = len(head) + 1
    length = int.from_bytes(content[start : start + 8], "little")
    start += 8
    reader = _Reader(content[start + length : -_DIGEST], {c.__name__: c for c in classes})
    try:
        return reader.value(json.loads(content[start : start + length]))
    except (TypeError, KeyError) as error:
        raise ValueError(f"'{path}' can't be read: {error}") from error


def _encoded(value: Any, arrays: list[npt.NDArray[Any]], classes: Sequence[type]) -> Any:
    def inner(part: Any) -> Any:
        return _encoded(part, arrays, classes)

    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list):
        return [inner(part) for part in value]
    if isinstance(value, tuple):
        return {_TAG: "tuple", "parts": [inner(part) for part in value]}
    if type(value) in classes:
        fields = {f.name: inner(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_TAG: "dataclass", "class": type(value).__name__, "fields": fields}
    if isinstance(value, Mapping):
        check_names(value)
        if _TAG not in value and all(type(key) is str for key in value):
            return {key: inner(part) for key, part in value.items()}
        return {_TAG: "dict", "parts": [[inner(key), inner(part)] for key, part in value.items()]}
    if isinstance(value, slice):
        return {_TAG: "slice", "parts": [inner(p) for p in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {_TAG: "ellipsis"}
    if isinstance(value, bytes):
        return {_TAG: "bytes", "hex": value.hex()}
    if isinstance(value, np.dtype):
        return {_TAG: "dtype", "name": value.name}
    if keras.ops.is_tensor(value):
        return {_TAG: "tensor", "array": inner(keras.ops.convert_to_numpy(value))}
    if isinstance(value, (np.ndarray, np.generic)):
        return _encoded_array(value, arrays)
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if is_lambda(value):
        raise TypeError(NO_LAMBDA)  # Keras would warn first
    try:
        config = keras.saving.serialize_keras_object(value)
    except Exception as error:  # the kind of error depends on the object
        raise TypeError(f"{value!r} (of type {type(value).__name__}) can't be written.") from error
    return {_TAG: "keras", "config": inner(config)}


def _encoded_array(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    array = np.asarray(value)
    entry: dict[str, Any] = {
        _TAG: "array" if isinstance(value, np.ndarray) else "scalar",
        "dtype": array.dtype.name,
        "shape": list(array.shape),
    }
    if array.dtype.kind in "OSU":  # TensorFlow's strings
        parts = [p if isinstance(p, bytes) else str(p).encode() for p in array.reshape(-1)]
        return {**entry, "dtype": "object", "parts": [part.hex() for part in parts]}
    arrays.append(array)
    return entry


class _Reader:
    """Turns the JSON of a state file back into values. Arrays are read in the order of writing."""

    def __init__(self, data: bytes, classes: Mapping[str, type]) -> None:
        self._data = data
        self._at = 0
        self._classes = classes

    def value(self, entry: Any) -> Any:
        if isinstance(entry, list):
            return [self.value(part) for part in entry]
        if not isinstance(entry, dict):
            return entry
        if _TAG not in entry:
            return self._dict((key, self.value(part)) for key, part in entry.items())
        kind = entry[_TAG]
        if kind == "tuple":
            return tuple(self.value(part) for part in entry["parts"])
        if kind == "dataclass":
            fields = {key: self.value(part) for key, part in entry["fields"].items()}
            return self._classes[entry["class"]](**fields)
        if kind == "dict":
            return self._dict((self.value(key), self.value(p)) for key, p in entry["parts"])
        if kind == "slice":
            return slice(*(self.value(part) for part in entry["parts"]))
        if kind == "ellipsis":
            return Ellipsis
        if kind == "bytes":
            return bytes.fromhex(entry["hex"])
        if kind == "dtype":
            return np.dtype(entry["name"])
        if kind == "tensor":
            return keras.ops.convert_to_tensor(self.value(entry["array"]))
        if kind == "keras":
            config = self.value(entry["config"])
            return keras.saving.deserialize_keras_object(config, safe_mode=True)
        array = self._array(entry)
        return array if kind == "array" else array[()]

    def _dict(self, items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        made = dict(items)
        check_names(made)
        return made

    def _array(self, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
        if "parts" in entry:
            parts = np.array([bytes.fromhex(part) for part in entry["parts"]], object)
            return parts.reshape(entry["shape"])
        dtype = np.dtype(entry["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        array = np.frombuffer(self._data, dtype, count, self._at).reshape(entry["shape"])
        self._at += count * dtype.itemsize
        return array.copy()
