"""Finds out on random numbers which inputs outputs depend on and can do without; knows no channels.

Whatever is tried here sees every label: each is left out once, and once while any other stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Numbers = npt.NDArray[np.int64]
Run = Callable[[Sequence[Array]], "list[Array]"]
"""Computes the flat outputs of an operation from its flat inputs."""


def random_inputs(
    shapes: Sequence[Sequence[int | None]], dtypes: Sequence[str], seed: int
) -> list[Array]:
    """Random arrays of some shapes; sizes that are not known become 8, or 2 of a large tensor."""
    random = np.random.default_rng(seed)
    large = any(math.prod(size or 1 for size in shape) > 100_000 for shape in shapes)
    values: list[Array] = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        sizes = [(2 if large else 8) if size is None else size for size in shape]
        if dtype == "bool":
            values.append(random.integers(2, size=sizes).astype(bool))
        elif "int" in dtype:
            values.append(random.integers(4, size=sizes).astype(dtype))
        else:
            values.append(random.normal(0, 2, sizes).astype("float32"))
    return values


def random_weights(
    shape: Sequence[int], random: np.random.Generator, *, signed: bool = True
) -> npt.NDArray[np.float64]:
    """Random numbers for a weight: near 1, but those of several axes small and of both signs.

    Args:
        shape: The weight's shape; its last axis is what it makes.
        random: Draws them.
        signed: Whether those of several axes are; otherwise they are near 1 too.
    """
    values = random.uniform(0.5, 1.5, shape)
    if signed and len(shape) > 1:
        values *= random.choice([-1, 1], shape) / math.sqrt(math.prod(shape[:-1]))
    return values


def halves(sizes: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Halves of some labels; of any two labels, some half holds the first without the second.

    A half holds the labels whose number in their block has a 0, or a 1, as one of its binary
    digits. Labels of two blocks are told apart by the digits of the blocks' numbers too.

    Args:
        sizes: How many labels are halved by themselves, block after block.

    Returns:
        Which labels each half holds, `(halves, sum(sizes))`.
    """
    numbers = np.concatenate([np.zeros(0, np.int64), *map(np.arange, sizes)])
    blocks = np.repeat(np.arange(len(sizes)), sizes)
    lengths = np.array([max(int(size - 1).bit_length(), 1) for size in sizes], np.int64)[blocks]
    digits = [numbers >> digit % lengths & 1 for digit in range(lengths.max(initial=0))]
    digits += [(numbers ^ blocks >> digit) & 1 for digit in range((len(sizes) - 1).bit_length())]
    return np.array([digit == side for digit in digits for side in (0, 1)], bool)


def agree(found: Sequence[Array], expected: Sequence[Array]) -> bool:
    """Whether arrays are equal but for rounding, relative to the largest number of each."""
    return len(found) == len(expected) and all(map(_agree, found, expected))


def _agree(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape:
        return False
    if found.dtype.kind not in "fcV":  # V: NumPy's view of bfloat16
        return bool((found == expected).all())
    numbers = np.complex128 if found.dtype.kind == "c" else np.float64
    one, other = np.asarray(found, numbers), np.asarray(expected, numbers)
    size = np.abs(other[np.isfinite(other)]).max(initial=0)
    part = 1e-3 if found.dtype.itemsize > 2 else 5e-2
    return bool(np.allclose(one, other, rtol=0, atol=part * size + 1e-30, equal_nan=True))


def fits(shapes: Sequence[Sequence[int]], known: Sequence[Sequence[int | None]]) -> bool:
    """Whether shapes are those that are known of them; None is any size."""
    return len(shapes) == len(known) and all(
        len(shape) == len(sizes)
        and all(size in (None, real) for real, size in zip(shape, sizes, strict=True))
        for shape, sizes in zip(shapes, known, strict=True)
    )


def treats_each_alone(run: Callable[[Array], Array], size: int) -> bool:
    """Whether a function makes each column of `(rows, size)` from that column alone.

    Args:
        run: The function.
        size: The number of columns.

    Returns:
        Whether each column of the output depends on the same column of the input at most, and
        stays the same where any others are left out.
    """
    shapes, dtypes, labels = [(7, size)], ["float32"], np.arange(size)
    (values,), (others,) = (random_inputs(shapes, dtypes, seed) for seed in (0, 1))
    whole = run(values)
    if whole.shape != values.shape:
        return False
    found = sources(lambda inputs: [run(inputs[0])], [values], [others], 0, 1, labels)
    if found is None or ((found[0] >= 0) & (found[0] != labels)).any():
        return False
    return all(agree([run(values[:, half])], [whole[:, half]]) for half in halves([size]))


def sources(
    run: Run,
    values: Sequence[Array],
    others: Sequence[Array],
    number: int,
    axis: int,
    labels: Numbers,
) -> list[Numbers] | None:
    """Which label along an axis of one input each entry of the outputs depends on.

    Entries are exchanged for other random numbers by the binary digits of their label, each digit
    once where it is 0 and once where it is 1. An entry of an output that depends on one label
    alone changes in exactly one of the two, and so spells the label: `2 log2(labels)` runs tell
    what one run for each label would.

    Args:
        run: Computes the outputs.
        values: The inputs.
        others: Other inputs of the same shapes.
        number: Which input is exchanged.
        axis: Along which of its axes.
        labels: The label of each index, `(size,)`, from 0.

    Returns:
        For each output an array of its shape: the label, or -1 where an entry depends on none.
        None where an entry depends on several.
    """
    base = run(values)
    found: list[Numbers] = [np.zeros(np.shape(part), np.int64) for part in base]
    seen = [np.zeros(np.shape(part), np.int64) for part in base]
    digits = max(int(labels.max()).bit_length(), 1)
    along = [1] * values[number].ndim
    along[axis] = -1
    for digit in range(digits):
        changes = []
        for side in (0, 1):
            exchanged = ((labels >> digit) & 1 == side).reshape(along)
            disturbed = list(values)
            disturbed[number] = np.where(exchanged, others[number], values[number])
            changes.append(list(map(_differs, base, run(disturbed))))
        for part, (low, high) in enumerate(zip(*changes, strict=True)):
            if (low & high).any():
                return None
            found[part] |= high.astype(np.int64) << digit
            seen[part] += low | high
    if any(((count > 0) & (count < digits)).any() for count in seen):
        return None
    if any((label > labels.max()).any() for label in found):
        return None
    return [np.where(count == digits, label, -1) for label, count in zip(found, seen, strict=True)]


def _differs(first: Array, second: Array) -> npt.NDArray[np.bool_]:
    both_nan = (first != first) & (second != second)
    differs: npt.NDArray[np.bool_] = (first != second) & ~both_nan
    return differs


def line_of(source: Numbers) -> tuple[int, Numbers, Numbers] | None:
    """The axis of an output along which labels lie.

    Args:
        source: For each entry its label, or -1.

    Returns:
        The axis (the last where labels vary on several), the label of each index along it (-1
        where none lies there) and pairs of labels `(pairs, 2)` that share an index. None where
        labels vary on no axis.
    """
    top = source.max(initial=-1)
    varying = []
    for axis in range(source.ndim):
        high = source.max(axis)
        low = np.where(source < 0, top + 1, source).min(axis)
        if ((low < high) & (high >= 0)).any():
            varying.append(axis)
    if not varying:
        return None
    axis = varying[-1]
    rows = np.moveaxis(source, axis, 0).reshape(source.shape[axis], -1)
    line = rows.max(1)
    pairs = np.stack([rows, np.broadcast_to(line[:, None], rows.shape)], -1)[rows >= 0]
    return axis, line, np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def taken(values: Array, masks: Sequence[npt.NDArray[np.bool_] | None]) -> Array:
    """The entries of an array at the indices that a mask holds along each axis (None: all)."""
    for axis, mask in enumerate(masks):
        if mask is not None:
            values = np.compress(mask, values, axis)
    return values
