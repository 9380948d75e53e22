r"""`sgdap.pack` and `sgdap.unpack`: a model in the fewest bytes, for downloads and flash.

A file has these parts, numbers with the least byte first:

    magic           8 bytes   b"sgdap\x00\x00\x01", the last one counts versions
    memory          8 bytes   what unpacking takes: all arrays, and work on the largest
    index length    4 bytes   once it is unpacked
    packed length   4 bytes   of the index
    index                     JSON, by zlib: the model's config, and how each array is written
    content                   the arrays, one after another
    checksum       32 bytes   SHA-256 of all before it
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from sgdap._arguments import check_integer, shown
from sgdap._extras import check_installed
from sgdap._keras.variables import without_values
from sgdap.execution.backend import check_backend
from sgdap.exporting.coding import DamagedError, Reader
from sgdap.exporting.converting import first_line
from sgdap.exporting.place import TEMPORARY
from sgdap.exporting.tensors import read, written
from sgdap.model.functional import saves_by_its_graph
from sgdap.model.tracing import trace
from sgdap.model.trusted import NO_LAMBDA, check_names, own_classes
from sgdap.weights.kernels import kernels_of

MAGIC = b"sgdap\x00\x00\x01"
_HEAD = struct.Struct("<8sQII")
_CHECKSUM = 32

MEMORY = 1 << 31
"""The bytes that a file may take by default once it is unpacked."""

_WORK = 48
"""Bytes for each entry of the largest array while it is read, at most."""


def pack(model: Any, path: str | os.PathLike[str]) -> int:
    """Writes a model in few bytes: architecture and weights, no code.

    Kernels that lie on a lattice, as `sgdap.quantize` makes them, are written as codes and scales,
    and codes in as few bits as their frequencies allow, so that zeros take little. All else is
    written losslessly too. `unpack` gives back a plain Keras model with the same bits.

    Args:
        model: A built `keras.Sequential` or functional `keras.Model`; it is not changed. Its
            optimizer's state is left out.
        path: The file, by custom `.sgdap`.

    Returns:
        The bytes of the file.

    Raises:
        ImportError: `constriction` is missing.
        RuntimeError: Keras uses another backend than TensorFlow.
        TypeError: `model` is no Keras model.
        ValueError: It is not built, has a `call` of its own or a lambda, which no config holds, or
            Keras can't make it again from its config.

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> small = sgdap.quantize(model, None, "ternary", compensate=False)
        >>> sgdap.pack(small, "small.sgdap") < 64 * 64 * 4 / 8
        True
        >>> again = sgdap.unpack("small.sgdap")
        >>> bool(np.all(again.layers[0].kernel == small.layers[0].kernel))
        True
    """
    check_backend("sgdap.pack")
    check_installed(["constriction"], "pack", "sgdap.pack")
    program = trace(model)
    if program.functional is None or not saves_by_its_graph(model):
        raise ValueError(
            f"The model '{model.name}' is of a class of its own ({type(model).__name__}), which no "
            "config describes. Pack sgdap.functional(model)."
        )
    layouts = {id(kernel.variable): kernel.layout for kernel in kernels_of(program.layers())}
    arrays, contents = [], []
    for variable in model.weights:
        array = np.asarray(keras.ops.convert_to_numpy(variable.value))
        index, content = written(array, layouts.get(id(variable)))
        dtype = keras.backend.standardize_dtype(variable.dtype)
        arrays.append({**index, "dtype": dtype, "shape": list(array.shape)})
        contents.append(content)
    config = json.loads(model.to_json(), object_hook=_checked)
    try:
        _rehearsed(config, own_classes(program.layers().values()))
    except Exception as error:  # Keras raises anything
        raise ValueError(
            f"Keras can't make the model '{model.name}' again from its config: "
            f"{first_line(error)}. Nothing was written. sgdap.export writes it as another file."
        ) from error
    text = json.dumps({"model": config, "arrays": arrays}).encode()
    packed = zlib.compress(text, 9)
    head = _HEAD.pack(MAGIC, _memory(arrays), len(text), len(packed))
    whole = b"".join([head, packed, *contents])
    whole += hashlib.sha256(whole).digest()
    place = Path(path)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=TEMPORARY) as folder:
        made = Path(folder, place.name)
        made.write_bytes(whole)
        made.replace(place)
    return len(whole)


def unpack(
    path: str | os.PathLike[str],
    *,
    memory_limit: int = MEMORY,
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """Reads a model that `pack` wrote.

    Nothing in the file is run. Before anything is made, the checksum is compared, and what the file
    says that it takes with `memory_limit`; the model gets memory only if its weights are those that
    the file holds.

    Args:
        path: The file.
        memory_limit: The most bytes that unpacking may take, the file itself aside.
        custom_objects: Classes and functions of your own by their names, as for
            `keras.models.load_model`.

    Returns:
        A Keras model, compiled as the packed one was, with a new optimizer.

    Raises:
        FileNotFoundError: There is no file.
        ImportError: `constriction` is missing.
        RuntimeError: Keras uses another backend than TensorFlow.
        ValueError: The file is damaged, cut, foreign or from a later version, it would take more
            than `memory_limit`, or its architecture can't be made.
    """
    check_backend("sgdap.unpack")
    check_installed(["constriction"], "pack", "sgdap.unpack")
    check_integer("memory_limit", memory_limit, 1)
    whole = Path(path).read_bytes()
    try:
        index, reader = _opened(whole, memory_limit)
        arrays = [_entry(own) for own in index["arrays"]]
        if _memory(index["arrays"]) > _HEAD.unpack_from(whole)[1]:
            raise DamagedError("it takes more memory than it says")
        config = json.dumps(index["model"])
    except (DamagedError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no file of sgdap.pack, or it is damaged: {error}. Copy it again."
        ) from error
    _check_weights(path, config, arrays, custom_objects)
    model = keras.models.model_from_json(config, custom_objects)
    try:
        for variable, (own, dtype, shape) in zip(model.weights, arrays, strict=True):
            variable.assign(read(own, reader, dtype, shape))
        if reader.left:
            raise DamagedError(f"{reader.left} bytes are left over")
    except DamagedError as error:
        raise ValueError(f"{path} is damaged: {error}. Copy it again.") from error
    return model


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.get("class_name") == "__lambda__":
        raise ValueError(NO_LAMBDA)
    return entry


def _opened(whole: bytes, memory_limit: int) -> tuple[dict[str, Any], Reader]:
    """The index, and what follows it.

    Raises:
        DamagedError: The bytes are no file of ours.
        ValueError: It takes too much memory.
    """
    if len(whole) < _HEAD.size + _CHECKSUM or whole[:7] != MAGIC[:7]:
        raise DamagedError(f"it begins with {shown(whole[:8])}")
    if whole[7] != MAGIC[7]:
        raise DamagedError(f"it is of version {whole[7]}, and this sgdap reads {MAGIC[7]}")
    if hashlib.sha256(whole[:-_CHECKSUM]).digest() != whole[-_CHECKSUM:]:
        raise DamagedError("its checksum is wrong")
    _, memory, length, packed = _HEAD.unpack_from(whole)
    if memory + length > memory_limit:
        raise ValueError(
            f"The file takes {memory + length:,} bytes of memory once it is unpacked, more than "
            f"memory_limit={memory_limit:,}. If you trust it, raise the limit."
        )
    reader = Reader(whole[_HEAD.size : -_CHECKSUM])
    inflating = zlib.decompressobj()
    try:
        text = inflating.decompress(reader.take(packed), length)
        index = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise DamagedError(f"its index can't be read: {error}") from error
    if len(text) != length or not inflating.eof or not isinstance(index, dict):
        raise DamagedError("its index is longer than it says")
    return index, reader


def _entry(own: Any) -> tuple[Mapping[str, Any], str, tuple[int, ...]]:
    """What the index says of an array: the way it is written, its dtype and shape."""
    shape = own["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise DamagedError("an array has no shape")
    try:
        np.dtype(own["dtype"])
    except TypeError as error:
        raise DamagedError(f"an array has no dtype: {shown(own['dtype'])}") from error
    return own, own["dtype"], tuple(shape)


def _memory(arrays: Any) -> int:
    """Bytes that unpacking takes."""
    entries = [(math.prod(own["shape"]), np.dtype(own["dtype"]).itemsize) for own in arrays]
    most = max((count for count, _ in entries), default=0)
    return int(sum(count * size for count, size in entries) + _WORK * most)


def _check_weights(path: Any, config: str, arrays: Any, custom_objects: Any) -> None:
    """Raises unless the architecture's weights are those of the file; they get no memory here."""

    def allowed(entry: dict[str, Any]) -> dict[str, Any]:
        check_names(entry, custom_objects)
        return entry

    try:
        plain = json.loads(config, object_hook=allowed)
        found = _rehearsed(plain, custom_objects)
    except Exception as error:  # Keras raises anything
        raise ValueError(
            f"The architecture in {path} can't be made: {first_line(error)}. Classes of your own "
            "are passed as custom_objects."
        ) from error
    if found != [(dtype, shape) for _, dtype, shape in arrays]:
        raise ValueError(
            f"{path} is damaged: its architecture has other weights than the file. Copy it again."
        )


def _rehearsed(config: Any, own: Mapping[str, Any] | None) -> list[tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes of the weights of an architecture, which get no memory."""
    plain = {key: part for key, part in config.items() if key != "compile_config"}
    with without_values():
        model = keras.models.model_from_json(json.dumps(plain), own)
        return [
            (keras.backend.standardize_dtype(v.dtype), tuple(map(int, v.shape)))
            for v in model.weights
        ]
