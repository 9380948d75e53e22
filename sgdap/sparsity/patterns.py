"""Patterns of zeros: which weights leave together; knows no Keras objects."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from sgdap._arguments import shown
from sgdap.weights.layouts import Layout

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


class Pattern(Protocol):
    """Which weights leave together, and in which order at most.

    Matrices are those of a `Layout`, `(groups, reduction, outputs)`.
    """

    @property
    def least(self) -> float:
        """The least share of zeros with which a kernel has the pattern."""

    def misfit(self, layout: Layout) -> str | None:
        """Why a kernel can't have the pattern, in words; None: it can."""

    def units(self, scores: Array) -> tuple[Numbers, Array, npt.NDArray[np.int8]]:
        """The units in which the weights of a kernel leave.

        Args:
            scores: The expected rise of the loss if a weight alone leaves, as matrices; negative
                where one left before.

        Returns:
            The unit of each weight, in the shape of `scores`; for each unit the sum of its scores;
            and its turn: those of turn 0 leave before any of turn 1.
        """


@dataclass(frozen=True)
class Unstructured:
    """Any weight may leave."""

    least: ClassVar[float] = 0.0

    def misfit(self, layout: Layout) -> str | None:
        """None: any kernel can have it."""
        return None

    def units(self, scores: Array) -> tuple[Numbers, Array, npt.NDArray[np.int8]]:
        """Each weight is a unit."""
        numbers = np.arange(scores.size).reshape(scores.shape)
        return numbers, scores.ravel(), np.zeros(scores.size, np.int8)

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class NofM:
    """Of every m weights in a row along the reduction axis, n at most stay.

    So too of a last part of fewer weights, which there is after channels left.

    Attributes:
        n: How many stay at most.
        m: Of how many.
    """

    n: int
    m: int

    @property
    def least(self) -> float:
        """The share of zeros where just n stay."""
        return 1 - self.n / self.m

    def misfit(self, layout: Layout) -> str | None:
        """Why the reduction axis can't be cut into parts of m."""
        rows = layout.sizes[1]
        if rows % self.m == 0:
            return None
        return f"its reduction axis is {rows} long, no multiple of {self.m}"

    def units(self, scores: Array) -> tuple[Numbers, Array, npt.NDArray[np.int8]]:
        """Each weight is a unit; the m − n least of each part leave first."""
        groups, rows, outputs = scores.shape
        whole = np.pad(scores, ((0, 0), (0, -rows % self.m), (0, 0)), constant_values=-np.inf)
        parts = whole.reshape(groups, -1, self.m, outputs)
        place = np.argsort(np.argsort(parts, axis=2, kind="stable"), axis=2, kind="stable")
        turn = (place >= self.m - self.n).astype(np.int8).reshape(whole.shape)[:, :rows]
        numbers = np.arange(scores.size).reshape(scores.shape)
        return numbers, scores.ravel(), turn.ravel()

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Block:
    """Blocks of weights leave as a whole; after channels left, the last ones may be smaller.

    Attributes:
        rows: Their length along the reduction axis, the inputs.
        columns: Their length along the outputs.
    """

    rows: int
    columns: int
    least: ClassVar[float] = 0.0

    def misfit(self, layout: Layout) -> str | None:
        """Why the kernel can't be cut into blocks."""
        _, rows, outputs = layout.sizes
        for name, size, own in (("reduction", rows, self.rows), ("output", outputs, self.columns)):
            if size % own:
                return f"its {name} axis is {size} long, no multiple of {own}"
        return None

    def units(self, scores: Array) -> tuple[Numbers, Array, npt.NDArray[np.int8]]:
        """Each block is a unit."""
        groups, rows, outputs = scores.shape
        shape = groups, -(-rows // self.rows), -(-outputs // self.columns)
        numbers = np.arange(math.prod(shape)).reshape(shape)
        numbers = numbers.repeat(self.rows, axis=1).repeat(self.columns, axis=2)
        added = (0, 0), (0, -rows % self.rows), (0, -outputs % self.columns)
        whole = np.pad(scores, added, constant_values=-1.0)
        parts = whole.reshape(groups, shape[1], self.rows, shape[2], self.columns)
        gone = (parts < 0).all(axis=(2, 4))
        sums = np.where(gone, -1.0, np.maximum(parts, 0.0).sum(axis=(2, 4))).ravel()
        return np.ascontiguousarray(numbers[:, :rows, :outputs]), sums, np.zeros(sums.size, np.int8)

    def __str__(self) -> str:
        return f"block {self.rows}x{self.columns}"


def zeros_of_share(share: float, size: int) -> int:
    """The number of zeros that are a share of some weights, or the least above it.

    Args:
        share: The share, from 0 to 1.
        size: The number of weights.
    """
    return math.ceil(share * size * (1 - 1e-12))


_N_OF_M = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")
_BLOCK = re.compile(r"\s*block\s+(\d+)\s*[x×]\s*(\d+)\s*")


def get_pattern(name: Any) -> Pattern:
    """Makes a pattern of its name: `"unstructured"`, `"2:4"` (any), `"block 4x1"` (any).

    Raises:
        TypeError: It is no string.
        ValueError: No pattern has that name.
    """
    if not isinstance(name, str):
        raise TypeError(f"pattern must be a string. Received: pattern={shown(name)}")
    if name == "unstructured":
        return Unstructured()
    if (found := _N_OF_M.fullmatch(name)) and 0 < int(found[1]) < int(found[2]):
        return NofM(int(found[1]), int(found[2]))
    if (found := _BLOCK.fullmatch(name)) and int(found[1]) and int(found[2]):
        return Block(int(found[1]), int(found[2]))
    raise ValueError(
        "pattern must be 'unstructured', 'n:m' with n below m, such as '2:4' (2 of 4 weights along "
        "the inputs stay), or 'block RxC', such as 'block 4x1' (R along the inputs, C along the "
        f"outputs). Whole filters are sgdap.plan's. Received: pattern={shown(name)}"
    )
