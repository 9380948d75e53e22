"""The ways to write an array in few bytes, and to read the same bits back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.exporting.coding import DamagedError, Reader, coded
from sgdap.exporting.lattices import common_steps
from sgdap.quantization.schemes import ALaw, MuLaw
from sgdap.weights.layouts import Layout

Array = npt.NDArray[Any]

Written = tuple[dict[str, Any], bytes]
"""What is written of an array in the index of a file, and in its content."""

_BLOCKS = (0, 256, 128, 64, 32, 16)
"""How many inputs of an output have a scale of their own; 0: all."""

_LARGEST = 255
"""The largest integer that is looked for behind a weight: 8 bits around a zero point."""

_SOME = 8
"""Rows that are looked at first: most arrays fail at these."""

_LEVELS = 256
"""The most levels of a codebook."""

_MINUS_ZERO, _OTHER = 1, 2
"""What an entry is, besides 0: masks that are multiplied leave −0."""

_CURVES = {"mu_law": MuLaw(), "a_law": ALaw()}
"""Companding laws whose levels are known, for the scale 1."""


def written(array: Array, layout: Layout | None) -> Written:
    """An array in the fewest bytes that are known.

    Args:
        array: The array, of any dtype.
        layout: How it is seen as matrices; None: it is no kernel.
    """
    found = [_plain(array), _planes(array)]
    if array.dtype == np.float32 and array.size and np.isfinite(array).all() and layout:
        matrices = layout.matrices(array)
        axes = [layout.shape, layout.groups, layout.reduction, layout.outputs]
        for index, content in _few(matrices):
            found.append(({**index, "axes": [list(part) for part in axes]}, content))
    index, content = min(found, key=lambda own: len(own[1]) + len(str(own[0])))
    same = read(index, Reader(content), array.dtype, array.shape)
    assert same.tobytes() == array.tobytes()
    return index, content


def read(index: Mapping[str, Any], reader: Reader, dtype: Any, shape: tuple[int, ...]) -> Array:
    """The array that was written.

    Args:
        index: What the index says of it.
        reader: The content; it is read up to the end of the array.
        dtype: The array's dtype.
        shape: Its shape.

    Raises:
        DamagedError: It is none.
    """
    how, kind = index.get("how"), np.dtype(dtype)
    size = math.prod(shape)
    if how == "plain":
        return _own(reader.array(kind, size).reshape(shape))
    if how == "planes":
        which = reader.symbols(size)
        there = which == _OTHER
        count = int(there.sum())
        planes = [reader.symbols(count) for _ in range(kind.itemsize)]
        made = np.zeros((size, kind.itemsize), np.uint8)
        made[which == _MINUS_ZERO, -1] = 0x80
        made[there] = np.stack(planes, axis=1).astype(np.uint8) if count else 0
        return _own(made.reshape(-1).view(kind).reshape(shape))
    layout = _layout(index.get("axes"), shape)
    groups, rows, outputs = layout.sizes
    block = index.get("block", 0)
    if block not in _BLOCKS or kind != np.float32:
        raise DamagedError("no array is written like this")
    units = groups * outputs * _parts(rows, block)
    numbers = _unit_numbers((groups, rows, outputs), block)
    if how == "steps":
        steps = reader.array("<f4", units).astype(np.float64)
        codes = reader.symbols(size).astype(np.int64).reshape(groups, rows, outputs) - _LARGEST
        values = codes * steps[numbers]
    elif how in _CURVES:
        scales = reader.array("<f4", units).astype(np.float64)
        levels = _levels_of(how)
        codes = reader.symbols(size).astype(np.int64).reshape(groups, rows, outputs)
        if codes.max(initial=0) >= len(levels):
            raise DamagedError("a code has no level")
        values = levels[codes] * scales[numbers]
    elif how in ("levels", "pairs"):
        levels_each = index.get("levels")
        if type(levels_each) is not int or not 0 < levels_each <= _LEVELS:
            raise DamagedError("a codebook has no levels")
        one, together = bool(index.get("common")), 2 if how == "pairs" else 1
        count = levels_each * (1 if one else units) * together
        table = reader.array("<f4", count).reshape(-1, levels_each, together)
        numbers = numbers[:, ::together]
        codes = reader.symbols(numbers.size).astype(np.int64)
        if codes.max(initial=0) >= levels_each:
            raise DamagedError("a code has no level")
        codes = codes.reshape(groups, -1, outputs)
        values = table[0][codes] if one else table[numbers, codes]
        values = values.transpose(0, 1, 3, 2).reshape(groups, -1, outputs)[:, :rows]
    else:
        raise DamagedError(f"arrays are not written as {how!r}")
    return _own(layout.kernel(values.astype(np.float32), shape))


def _own(array: Array) -> Array:
    return np.array(array)


def _plain(array: Array) -> Written:
    return {"how": "plain"}, np.ascontiguousarray(array).tobytes()


def _planes(array: Array) -> Written:
    """Which entries are zero to the bit, then the others' bytes, each place for itself."""
    entries = np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8)
    which = np.where(entries.any(axis=1), _OTHER, 0).astype(np.uint16)
    which[(entries[:, -1] == 0x80) & ~entries[:, :-1].any(axis=1)] = _MINUS_ZERO
    there = which == _OTHER
    planes = [entries[there, i].astype(np.uint16) for i in range(entries.shape[1])]
    return {"how": "planes"}, coded(which) + b"".join(map(coded, planes))


def _few(matrices: Array) -> Iterator[Written]:
    """The ways to write matrices as codes, as far as they have few values."""
    flat = matrices.reshape(-1)
    different = np.unique(flat)
    if len(different) <= _LEVELS:
        codes = np.searchsorted(different, flat).astype(np.uint16)
        if _same(different[codes], flat):
            index = {"how": "levels", "common": True, "levels": len(different)}
            yield index, different.astype("<f4").tobytes() + coded(codes)
    yield from _by_pairs(matrices)
    for block in _BLOCKS:
        if block >= matrices.shape[1]:
            continue
        numbers = _unit_numbers(matrices.shape, block)
        rows = _rows(matrices, block).astype(np.float64)
        by_steps = _by_steps(matrices, rows, numbers)
        others = () if block or by_steps else (_by_curve, _by_levels)
        for made in (by_steps, *(way(matrices, rows, numbers) for way in others)):
            if made is not None:
                yield {**made[0], "block": block}, made[1]
        if by_steps:
            break


def _by_steps(matrices: Array, rows: Array, numbers: Array) -> Written | None:
    steps = common_steps(rows, _LARGEST)
    if steps is None:
        return None
    steps = steps.astype(np.float32).astype(np.float64)
    codes = np.rint(matrices / steps[numbers])
    if not _same((codes * steps[numbers]), matrices) or np.abs(codes).max() > _LARGEST:
        return None
    symbols = (codes + _LARGEST).astype(np.uint16).reshape(-1)
    return {"how": "steps"}, steps.astype("<f4").tobytes() + coded(symbols)


def _by_curve(matrices: Array, rows: Array, numbers: Array) -> Written | None:
    """Levels of a companding law; the largest weight of a row is one of them, times the scale."""
    for name in _CURVES:
        levels = _levels_of(name)
        if np.isnan(_scales(rows[:_SOME], levels)).any():
            continue
        scales = _scales(rows, levels)
        if np.isnan(scales).any():
            continue
        codes = _nearest(levels, matrices / scales[numbers])
        if _same(levels[codes] * scales[numbers], matrices):
            symbols = codes.astype(np.uint16).reshape(-1)
            return {"how": name}, scales.astype("<f4").tobytes() + coded(symbols)
    return None


def _scales(rows: Array, levels: Array) -> Array:
    """The scale of each row of which all entries are levels, NaN where there is none."""
    largest = np.abs(rows).max(axis=1)
    scales = np.where(largest > 0, np.nan, 1.0)
    for level in levels[levels > 0][::-1]:
        left = np.flatnonzero(np.isnan(scales))
        scale = (largest[left] / level).astype(np.float32).astype(np.float64)
        near = _nearest(levels, rows[left] / scale[:, None])
        same = (levels[near] * scale[:, None]).astype(np.float32) == rows[left]
        fits = same.all(axis=1)
        scales[left[fits]] = scale[fits]
    return scales


def _by_levels(matrices: Array, rows: Array, numbers: Array) -> Written | None:
    tables = [np.unique(row.astype(np.float32)) for row in rows]
    most = max(map(len, tables))
    if most > _LEVELS:
        return None
    table = np.stack([np.pad(own, (0, most - len(own)), mode="edge") for own in tables])
    codes = np.zeros(matrices.shape, np.uint16)
    for level in range(most):  # tables ascend, so this counts the levels below a weight
        codes += (table[numbers, level] < matrices).astype(np.uint16)
    if not _same(table[numbers, codes].astype(np.float64), matrices):
        return None
    return {"how": "levels", "levels": most}, table.astype("<f4").tobytes() + coded(codes.ravel())


def _by_pairs(matrices: Array) -> Iterator[Written]:
    """Codebooks of pairs: two rows of an output together, for all outputs or for each."""
    groups, rows, outputs = matrices.shape
    wide = np.pad(matrices, ((0, 0), (0, rows % 2), (0, 0))).reshape(groups, -1, 2, outputs)
    keys = np.ascontiguousarray(wide.transpose(0, 3, 1, 2)).astype("<f4").view("<u8")
    keys = keys.reshape(groups * outputs, -1)  # the pairs of each output, as they lie in memory
    if len(_pairs_of(keys[:_SOME], rows % 2)[0]) <= _LEVELS * min(_SOME, len(keys)):
        for common in (True, False):
            tables, codes = [], []
            for own in [keys] if common else keys[:, None]:
                table, code = _pairs_of(own, rows % 2)
                tables.append(table)
                codes.append(code.reshape(-1, keys.shape[1]))
                if len(table) > _LEVELS:
                    break
            most = max(map(len, tables))
            if most <= _LEVELS:
                padded = [np.pad(own, (0, most - len(own)), mode="edge") for own in tables]
                code = np.concatenate(codes).reshape(groups, outputs, -1).transpose(0, 2, 1)
                index = {"how": "pairs", "common": common, "levels": most, "block": 0}
                content = np.concatenate(padded).tobytes() + coded(code.astype(np.uint16).ravel())
                yield index, content


def _pairs_of(keys: Array, odd: int) -> tuple[Array, Array]:
    """The different pairs in rows of them, and the number of each.

    The second number of the last one of an odd row is free, so that it may be as another pair.

    Args:
        keys: Pairs as numbers of 64 bits, the first one below, `(outputs, pairs)`.
        odd: 1 where the second number of the last pairs is filled up.
    """
    if odd:
        whole = np.unique(keys[:, :-1])
        firsts = whole.astype(np.uint32)
        order = np.argsort(firsts, kind="stable")
        if len(whole):
            last = keys[:, -1].astype(np.uint32)
            place = np.minimum(np.searchsorted(firsts[order], last), len(whole) - 1)
            other = whole[order[place]]
            keys = keys.copy()
            keys[:, -1] = np.where(other.astype(np.uint32) == last, other, keys[:, -1])
    found, codes = np.unique(keys, return_inverse=True)
    return found.astype("<u8"), codes


def _same(values: Array, matrices: Array) -> bool:
    """Whether numbers are the same to the bit, −0 and all."""
    return values.astype(np.float32).tobytes() == np.ascontiguousarray(matrices).tobytes()


def _levels_of(name: str) -> npt.NDArray[np.float64]:
    levels: npt.NDArray[np.float64] = _CURVES[name].lattice(np.ones((1, 1))).base
    return levels


def _nearest(levels: Array, values: Array) -> Array:
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values)


def _parts(rows: int, block: int) -> int:
    return -(-rows // block) if block else 1


def _unit_numbers(sizes: tuple[int, ...], block: int) -> Array:
    """The number of the unit that each entry of matrices belongs to."""
    groups, rows, outputs = sizes
    part = np.arange(rows) // (block or max(rows, 1))
    group, output = np.arange(groups)[:, None, None], np.arange(outputs)
    return (group * _parts(rows, block) + part[None, :, None]) * outputs + output


def _rows(matrices: Array, block: int) -> Array:
    """The entries of each unit in a row, filled up with zeros."""
    groups, rows, outputs = matrices.shape
    size = block or rows
    wide = np.pad(matrices, ((0, 0), (0, _parts(rows, block) * size - rows), (0, 0)))
    apart = wide.reshape(groups, -1, size, outputs).transpose(0, 1, 3, 2)
    return apart.reshape(-1, size)


def _layout(axes: Any, shape: tuple[int, ...]) -> Layout:
    """The layout that an index tells."""
    parts = axes if isinstance(axes, list) and len(axes) == 4 else [None]
    if not all(isinstance(p, list) and all(type(n) is int for n in p) for p in parts):
        raise DamagedError("a kernel has no axes")
    apart, *order = (tuple(part or ()) for part in parts)
    wrong = sorted(sum(order, ())) != list(range(len(apart))) or min(apart, default=0) < 0
    if wrong or math.prod(apart) != math.prod(shape):
        raise DamagedError("the axes of a kernel are not those of its shape")
    return Layout(apart, *order)
