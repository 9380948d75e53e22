r"""`sgdap.pack` and `sgdap.unpack`: a model in the fewest bytes, for downloads and flash.

A file has these parts, whole numbers in groups of 7 bits, the least first (LEB128):

    magic           6 bytes   b"sgdap\x02", the last one counts versions
    text length               bytes of the architecture's text once it is unpacked
    packed length             bytes of the architecture
    architecture              the model's config, as `configs` writes it, and what its layers
                              know beside their weights, such as vocabularies
    content                   the arrays, in the order of the model's weights, as one number
    checksum        4 bytes   the first ones of the SHA-256 of all before it
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from sgdap._arguments import check_integer, checked_path, shown
from sgdap._extras import check_installed
from sgdap._keras.variables import without_values
from sgdap.execution.backend import check_backend
from sgdap.exporting.coding import DamagedError, Reader, Writer
from sgdap.exporting.configs import GROWTH, deflated, inflated
from sgdap.exporting.converting import first_line
from sgdap.exporting.learned import tell, told
from sgdap.exporting.place import TEMPORARY, check_packed_place
from sgdap.exporting.tensors import read, write
from sgdap.model.functional import saves_by_its_graph
from sgdap.model.tracing import trace
from sgdap.model.trusted import NO_LAMBDA, check_names, own_classes
from sgdap.weights.kernels import kernels_of

MAGIC = b"sgdap\x02"
LEARNT = "learnt"
"""The key of what layers know beside their weights, in the architecture's text."""

_CHECKSUM = 4

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
        TypeError: `model` is no Keras model, or `path` no path.
        ValueError: It is not built, has a `call` of its own or a lambda, which no config holds, or
            Keras can't make it again from its config; or `path` ends as files of another format.

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
    place = checked_path("path", path)
    check_packed_place(place)
    if program.functional is None or not saves_by_its_graph(model):
        raise ValueError(
            f"The model '{model.name}' is of a class of its own ({type(model).__name__}), which no "
            "config describes. Pack sgdap.functional(model)."
        )
    layouts = {id(kernel.variable): kernel.layout for kernel in kernels_of(program.layers())}
    writer = Writer()
    for variable in model.weights:
        array = np.asarray(keras.ops.convert_to_numpy(variable.value))
        write(writer, array, layouts.get(id(variable)))
    config = json.loads(model.to_json(), object_hook=_checked)
    if not config.get("compile_config"):
        config.pop("compile_config", None)
    own = own_classes(program.layers().values())
    try:
        again = _rehearsed(config, own)
        without = {k: p if k == "compile_config" else _unbuilt(p) for k, p in config.items()}
        without.pop("build_config", None)
        if _rehearses_as(without, own, again):
            config = without
    except Exception as error:  # Keras raises anything
        raise ValueError(
            f"Keras can't make the model '{model.name}' again from its config: "
            f"{first_line(error)}. Nothing was written. sgdap.export writes it as another file."
        ) from error
    if again[1] != _described(model):
        raise ValueError(
            f"The model '{model.name}' comes back from its config with other weights. Nothing was "
            "written. sgdap.export writes it as another file."
        )
    known = told(model)
    length, packed = deflated(config if known is None else {**config, LEARNT: known})
    whole = b"".join([MAGIC, _number(length), _number(len(packed)), packed, writer.content()])
    whole += hashlib.sha256(whole).digest()[:_CHECKSUM]
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

    Nothing in the file is run. Before anything gets memory, the checksum is compared, and what the
    weights of the architecture would take with `memory_limit`.

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
        TypeError: `path` is no path.
        ValueError: The file is damaged, cut, foreign or from a later version, it would take more
            than `memory_limit`, or its architecture can't be made.
    """
    check_backend("sgdap.unpack")
    check_installed(["constriction"], "pack", "sgdap.unpack")
    check_integer("memory_limit", memory_limit, 1)
    place = checked_path("path", path)
    whole = place.read_bytes()
    try:
        plain, config_bytes, reader = _opened(whole, memory_limit)
    except DamagedError as error:
        raise ValueError(
            f"{path} is no file of sgdap.pack, or it is damaged: {error}. Copy it again."
        ) from error
    known = plain.pop(LEARNT, None) if isinstance(plain, dict) else None
    weights = _weights(path, plain, custom_objects)
    _check_memory(config_bytes + _memory(weights), memory_limit)
    model = keras.models.model_from_json(json.dumps(plain), custom_objects)
    try:
        for variable, (dtype, shape) in zip(model.weights, weights, strict=True):
            variable.assign(read(reader, dtype, shape))
        if not reader.ended:
            raise DamagedError("something is left over")
        tell(model, known)
    except DamagedError as error:
        raise ValueError(f"{path} is damaged: {error}. Copy it again.") from error
    return model


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.get("class_name") == "__lambda__":
        raise ValueError(NO_LAMBDA)
    return entry


def _opened(whole: bytes, memory_limit: int) -> tuple[Any, int, Reader]:
    """The config, the bytes that it takes, and what follows it.

    Raises:
        DamagedError: The bytes are no file of ours.
        ValueError: It takes too much memory.
    """
    start = len(MAGIC)
    if len(whole) < start + _CHECKSUM or whole[: start - 1] != MAGIC[:-1]:
        raise DamagedError(f"it begins with {shown(whole[:8])}")
    if whole[start - 1] != MAGIC[-1]:
        raise DamagedError(f"it is of version {whole[start - 1]}, and this sgdap reads {MAGIC[-1]}")
    if hashlib.sha256(whole[:-_CHECKSUM]).digest()[:_CHECKSUM] != whole[-_CHECKSUM:]:
        raise DamagedError("its checksum is wrong")
    content = whole[:-_CHECKSUM]
    length, start = _read_number(content, start)
    packed, start = _read_number(content, start)
    _check_memory(GROWTH * length, memory_limit)
    config = inflated(content[start : start + packed], length)
    return config, GROWTH * length, Reader(content[start + packed :])


def _number(number: int) -> bytes:
    """A whole number in groups of 7 bits, each but the last with a bit that says so."""
    made = bytearray()
    while number >= 128:
        made.append(128 | number & 127)
        number >>= 7
    return bytes(made) + bytes([number])


def _read_number(content: bytes, start: int) -> tuple[int, int]:
    """The number that begins at a place, and the place behind it."""
    found = 0
    for place, byte in enumerate(content[start : start + 6]):
        found |= (byte & 127) << 7 * place
        if byte < 128:
            return found, start + place + 1
    raise DamagedError("a number has no end")


def _check_memory(taken: int, memory_limit: int) -> None:
    if taken > memory_limit:
        raise ValueError(
            f"The file takes {taken:,} bytes of memory once it is unpacked, more than "
            f"memory_limit={memory_limit:,}. If you trust it, raise the limit."
        )


def _memory(weights: list[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes that the weights take, and work on the largest."""
    entries = [(math.prod(shape), np.dtype(dtype).itemsize) for dtype, shape in weights]
    most = max((count for count, _ in entries), default=0)
    return int(sum(count * size for count, size in entries) + _WORK * most)


def _weights(path: Any, config: Any, custom_objects: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes of the weights of the architecture; they get no memory here."""

    def allowed(entry: dict[str, Any]) -> dict[str, Any]:
        check_names(entry, custom_objects)
        return entry

    try:
        plain = json.loads(json.dumps(config), object_hook=allowed)
        return _rehearsed(plain, custom_objects)[1]
    except Exception as error:  # Keras raises anything
        raise ValueError(
            f"The architecture in {path} can't be made: {first_line(error)}. Classes of your own "
            "are passed as custom_objects."
        ) from error


def _rehearsed(
    config: Any, own: Mapping[str, Any] | None
) -> tuple[Any, list[tuple[str, tuple[int, ...]]]]:
    """An architecture as it comes back: its config, and its weights, which get no memory."""
    plain = {key: part for key, part in config.items() if key != "compile_config"}
    with without_values():
        model = keras.models.model_from_json(json.dumps(plain), own)
        return json.loads(model.to_json()), _described(model)


def _described(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes of the weights of a model."""
    return [
        (keras.backend.standardize_dtype(v.dtype), tuple(map(int, v.shape))) for v in model.weights
    ]


def _rehearses_as(config: Any, own: Mapping[str, Any] | None, wanted: Any) -> bool:
    """Whether an architecture comes back as another one does."""
    try:
        return bool(_rehearsed(config, own) == wanted)
    except Exception:  # Keras raises anything
        return False


def _unbuilt(part: Any) -> Any:
    """A config without the shapes that layers were built for: most follow from the inputs'."""
    if isinstance(part, list):
        return [_unbuilt(own) for own in part]
    if not isinstance(part, dict):
        return part
    left_out = ("build_config", "build_input_shape")
    return {key: _unbuilt(own) for key, own in part.items() if key not in left_out}
