"""The ways to write an array in few bytes, and to read the same bits back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdap.exporting.coding import DamagedError, Reader, Writer, bits_of
from sgdap.exporting.lattices import common_steps
from sgdap.quantization.schemes import ALaw, MuLaw
from sgdap.weights.layouts import Layout

Array = npt.NDArray[Any]

_ALL = -1
"""As a block: one scale for the whole array."""

_BLOCKS = (_ALL, 0, 256, 128, 64, 32, 16)
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

_WAYS = ("plain", "planes", "steps", "levels", "pairs", *_CURVES)
"""The ways, in the order of their numbers in a file."""

_AXES = 24
"""Bits that the axes of a kernel take, where they are not the usual ones."""


@dataclass(frozen=True)
class Written:
    """A way to write an array.

    Attributes:
        how: One of `_WAYS`.
        parts: Numbers of 32 bits, bytes, and symbols (int64), in the order in which they are read.
        block: One of `_BLOCKS`.
        common: Whether there is one codebook for all.
        levels: The levels of a codebook.
        layout: How the array is seen as matrices; None: its last axis are the outputs.
    """

    how: str
    parts: tuple[Array | bytes, ...]
    block: int = _ALL
    common: bool = False
    levels: int = 1
    layout: Layout | None = None

    @property
    def bits(self) -> float:
        """The bits that it takes, nearly."""
        total = 8.0 if self.layout is None else 8.0 + _AXES
        for part in self.parts:
            if isinstance(part, bytes):
                total += 8 * len(part)
            else:
                total += 32 * part.size if part.dtype == np.float32 else bits_of(part.reshape(-1))
        return total


def write(writer: Writer, array: Array, layout: Layout | None) -> None:
    """Writes an array in the fewest bytes that are known.

    Args:
        writer: Takes them.
        array: The array, of any dtype.
        layout: How it is seen as matrices; None: it is no kernel.
    """
    found = [_plain(array), _planes(array)]
    if array.dtype == np.float32 and array.size and array.ndim and np.isfinite(array).all():
        usual = _usual(array.shape)
        matrices = (layout or usual).matrices(array)
        odd = layout if layout not in (None, usual) else None
        found += [replace(own, layout=odd) for own in _few(matrices, layout is not None)]
    best = min(found, key=lambda own: own.bits)
    alone = Writer()
    _write(alone, best)
    assert read(Reader(alone.content()), array.dtype, array.shape).tobytes() == array.tobytes()
    _write(writer, best)


def _write(writer: Writer, own: Written) -> None:
    writer.choice(_WAYS.index(own.how), len(_WAYS))
    if own.how not in ("plain", "planes"):
        writer.choice(own.layout is not None, 2)
        if own.layout is not None:
            _write_layout(writer, own.layout)
        writer.choice(_BLOCKS.index(own.block), len(_BLOCKS))
    if own.how in ("levels", "pairs"):
        writer.choice(own.common, 2)
        writer.choice(own.levels - 1, _LEVELS)
    for part in own.parts:
        if isinstance(part, bytes):
            writer.raw(part)
        elif part.dtype == np.float32:
            writer.floats(part)
        else:
            writer.symbols(part.reshape(-1))


def read(reader: Reader, dtype: Any, shape: tuple[int, ...]) -> Array:
    """The array that was written.

    Args:
        reader: The content; it is read up to the end of the array.
        dtype: The array's dtype.
        shape: Its shape.

    Raises:
        DamagedError: It is none.
    """
    how, kind = _WAYS[reader.choice(len(_WAYS))], np.dtype(dtype)
    size = math.prod(shape)
    if how == "plain":
        return _own(np.frombuffer(reader.raw(size * kind.itemsize), kind).reshape(shape))
    if how == "planes":
        which = reader.symbols(size)
        there = which == _OTHER
        count = int(there.sum())
        planes = [reader.symbols(count) for _ in range(kind.itemsize)]
        made = np.zeros((size, kind.itemsize), np.uint8)
        made[which == _MINUS_ZERO, -1] = 0x80
        made[there] = np.stack(planes, axis=1).astype(np.uint8) if count else 0
        return _own(made.reshape(-1).view(kind).reshape(shape))
    if kind != np.float32 or not shape:
        raise DamagedError("no array is written like this")
    with np.errstate(all="ignore"):
        layout, values = _read_few(reader, how, shape)
        made = values.astype(np.float32)
    if not np.isfinite(made).all():
        raise DamagedError("a weight is not finite")
    return _own(layout.kernel(made, shape))


def _read_few(reader: Reader, how: str, shape: tuple[int, ...]) -> tuple[Layout, Array]:
    """An array that is written as codes: its layout, and it as matrices."""
    layout = _read_layout(reader, shape) if reader.choice(2) else _usual(shape)
    groups, rows, outputs = layout.sizes
    block = _BLOCKS[reader.choice(len(_BLOCKS))]
    units = _units((groups, rows, outputs), block)
    numbers = _unit_numbers((groups, rows, outputs), block)
    values: Array
    if how == "steps":
        steps = reader.floats(units).astype(np.float64)
        values = reader.symbols(numbers.size).reshape(numbers.shape) * steps[numbers]
    elif how in _CURVES:
        scales = reader.floats(units).astype(np.float64)
        codes = _checked(reader.symbols(numbers.size), len(_levels_of(how)))
        values = _levels_of(how)[codes.reshape(numbers.shape)] * scales[numbers]
    else:
        one, together = bool(reader.choice(2)), 2 if how == "pairs" else 1
        levels_each = reader.choice(_LEVELS) + 1
        count = levels_each * (1 if one else units) * together
        table = reader.floats(count).reshape(-1, levels_each, together)
        numbers = numbers[:, ::together]
        codes = _checked(reader.symbols(numbers.size), levels_each)
        codes = codes.reshape(groups, -1, outputs)
        apart = table[0][codes] if one else table[numbers, codes]
        values = apart.transpose(0, 1, 3, 2).reshape(groups, -1, outputs)[:, :rows]
    return layout, values


def _checked(codes: Array, levels: int) -> Array:
    if codes.size and not 0 <= codes.min() <= codes.max() < levels:
        raise DamagedError("a code has no level")
    return codes


def _own(array: Array) -> Array:
    return np.array(array)


def _plain(array: Array) -> Written:
    return Written("plain", (np.ascontiguousarray(array).tobytes(),))


def _planes(array: Array) -> Written:
    """Which entries are zero to the bit, then the others' bytes, each place for itself."""
    entries = np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8)
    which = np.where(entries.any(axis=1), _OTHER, 0)
    which[(entries[:, -1] == 0x80) & ~entries[:, :-1].any(axis=1)] = _MINUS_ZERO
    there = which == _OTHER
    planes = [entries[there, i].astype(np.int64) for i in range(entries.shape[1])]
    return Written("planes", (which, *planes))


def _few(matrices: Array, kernel: bool) -> Iterator[Written]:
    """The ways to write matrices as codes, as far as they have few values.

    Args:
        matrices: `(groups, rows, outputs)`.
        kernel: Whether outputs may have scales and codebooks of their own.
    """
    flat = matrices.reshape(-1)
    different = np.unique(flat)
    if len(different) <= _LEVELS:
        codes = np.searchsorted(different, flat)
        if _same(different[codes], flat):
            yield Written("levels", (different, codes), common=True, levels=len(different))
    if kernel:
        yield from _by_pairs(matrices)
    for block in _BLOCKS if kernel else _BLOCKS[:1]:
        if block >= matrices.shape[1]:
            continue
        numbers = _unit_numbers(matrices.shape, block)
        rows = _rows(matrices, block).astype(np.float64)
        by_steps = _by_steps(matrices, rows, numbers)
        others = () if block or by_steps else (_by_curve, _by_levels)
        for made in (by_steps, *(way(matrices, rows, numbers) for way in others)):
            if made is not None:
                yield replace(made, block=block)
        if by_steps and block != _ALL:
            break


def _by_steps(matrices: Array, rows: Array, numbers: Array) -> Written | None:
    steps = common_steps(rows, _LARGEST)
    if steps is None:
        return None
    steps = steps.astype(np.float32)
    wide = steps.astype(np.float64)[numbers]
    codes = np.rint(matrices / wide).astype(np.int64)
    if not _same(codes * wide, matrices) or np.abs(codes).max() > _LARGEST:
        return None
    return Written("steps", (steps, codes))


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
            return Written(name, (scales.astype(np.float32), codes.astype(np.int64)))
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
    codes = np.zeros(matrices.shape, np.int64)
    for level in range(most):  # tables ascend, so this counts the levels below a weight
        codes += table[numbers, level] < matrices
    if not _same(table[numbers, codes].astype(np.float64), matrices):
        return None
    return Written("levels", (table.astype(np.float32), codes), levels=most)


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
                floats = np.concatenate(padded).view("<f4")
                yield Written("pairs", (floats, code), 0, common, most)


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
    return -(-rows // block) if block > 0 else 1


def _units(sizes: tuple[int, int, int], block: int) -> int:
    """How many scales there are."""
    groups, rows, outputs = sizes
    return 1 if block == _ALL else groups * outputs * _parts(rows, block)


def _unit_numbers(sizes: tuple[int, ...], block: int) -> Array:
    """The number of the unit that each entry of matrices belongs to."""
    groups, rows, outputs = sizes
    if block == _ALL:
        return np.zeros(sizes, np.int64)
    part = np.arange(rows) // (block or max(rows, 1))
    group, output = np.arange(groups)[:, None, None], np.arange(outputs)
    return (group * _parts(rows, block) + part[None, :, None]) * outputs + output


def _rows(matrices: Array, block: int) -> Array:
    """The entries of each unit in a row, filled up with zeros."""
    if block == _ALL:
        return matrices.reshape(1, -1)
    groups, rows, outputs = matrices.shape
    size = block or rows
    wide = np.pad(matrices, ((0, 0), (0, _parts(rows, block) * size - rows), (0, 0)))
    apart = wide.reshape(groups, -1, size, outputs).transpose(0, 1, 3, 2)
    return apart.reshape(-1, size)


def _usual(shape: tuple[int, ...]) -> Layout:
    """The last axis are the outputs."""
    rank = len(shape)
    return Layout(shape, (), tuple(range(rank - 1)), (rank - 1,))


def _write_layout(writer: Writer, layout: Layout) -> None:
    writer.number(len(layout.shape))
    for size in layout.shape:
        writer.number(size)
    for axes in (layout.groups, layout.reduction, layout.outputs):
        writer.number(len(axes))
        for axis in axes:
            writer.number(axis)


def _read_layout(reader: Reader, shape: tuple[int, ...]) -> Layout:
    """The layout that a file tells."""

    def numbers() -> tuple[int, ...]:
        count = reader.number()
        if count > 2 * len(shape) + 1:
            raise DamagedError("a kernel has too many axes")
        return tuple(reader.number() for _ in range(count))

    apart, *order = numbers(), numbers(), numbers(), numbers()
    wrong = sorted(sum(order, ())) != list(range(len(apart)))
    if wrong or math.prod(apart) != math.prod(shape):
        raise DamagedError("the axes of a kernel are not those of its shape")
    return Layout(apart, *order)
