"""Numbers in as few bytes as their frequencies allow, and back; no model is known here.

All that is written goes through one range coder (Martin 1979), `constriction`'s, with
probabilities of 24 bits; so no part of it is rounded up to whole bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Symbols = npt.NDArray[np.int64]

_STEPS = 8
"""How many frequencies there are between one and its double: the nearest costs 0.0005 bits."""

_NEVER = 26 * _STEPS
"""The frequency of what never comes; those of others count down from the most frequent one."""

_ROOTS = np.array(
    [134217728, 123078199, 112863206, 103496017, 94906266, 87029429, 79806339, 73182735]
)
"""2²⁷ times the negative powers of the eighth root of two."""

_BITS = 40
"""The bits of the largest number."""

_CHUNK = 16
"""So many bits of a number at once."""

_SPAN = 1 << _CHUNK
"""The most that symbols may be apart."""

_ONE, _EVEN, _TABLE = 0, 1, 2


class DamagedError(ValueError):
    """Bytes that no encoder of ours wrote."""


class Writer:
    """Writes one thing after another; `content` gives the bytes."""

    def __init__(self) -> None:
        import constriction

        self._encoder = constriction.stream.queue.RangeEncoder()

    def choice(self, number: int, count: int) -> None:
        """One of `count` things, by its number."""
        self._even(np.array([number]), count)

    def number(self, number: int) -> None:
        """A whole number, not negative: how many bits it has, and the bits after the first."""
        bits = number.bit_length()
        if bits > _BITS:
            raise OverflowError(f"{number} has more than {_BITS} bits")
        self.choice(bits, _BITS + 1)
        for start in range(0, bits - 1, _CHUNK):
            size = min(_CHUNK, bits - 1 - start)
            self.choice(number >> start & ((1 << size) - 1), 1 << size)

    def raw(self, content: bytes) -> None:
        """Bytes as they are."""
        self._even(np.frombuffer(content, np.uint8), 256)

    def floats(self, numbers: npt.NDArray[np.float32]) -> None:
        """Numbers of 32 bits; their last bytes are left out where they are zero in all of them."""
        planes = np.ascontiguousarray(numbers, "<f4").view(np.uint8).reshape(-1, 4)
        there = np.flatnonzero(planes.any(axis=0))
        first = int(there[0]) if len(there) else 3
        self.choice(first, 4)
        self.raw(planes[:, first:].tobytes())

    def symbols(self, symbols: npt.NDArray[Any]) -> None:
        """Whole numbers in one axis, as many bits each as its frequency in them tells.

        Args:
            symbols: Numbers that are less than 65536 apart; of either sign.
        """
        if not symbols.size:
            return
        least, places, how, table = _described(symbols)
        span = int(places.max()) + 1
        self.choice(how, 3)
        self.number(2 * least if least >= 0 else -2 * least - 1)
        if how == _ONE:
            return
        self.number(span - 2)
        if how == _EVEN:
            self._even(places, span)
            return
        self._even(table, _NEVER + 1)
        self._encoder.encode(places.astype(np.int32), _model(table))

    def content(self) -> bytes:
        """All that was written."""
        words: bytes = self._encoder.get_compressed().astype(">u4").tobytes()
        return words.rstrip(b"\0")

    def _even(self, numbers: npt.NDArray[Any], count: int) -> None:
        if count > 1 and numbers.size:
            self._encoder.encode(numbers.astype(np.int32), _uniform(count))


class Reader:
    """Reads what a `Writer` wrote, in the same order.

    Args:
        content: The bytes.
    """

    def __init__(self, content: bytes) -> None:
        import constriction

        words = np.frombuffer(content + bytes(-len(content) % 4), ">u4").astype(np.uint32)
        self._decoder = constriction.stream.queue.RangeDecoder(words)

    @property
    def ended(self) -> bool:
        """Whether all was read, as far as can be seen."""
        return bool(self._decoder.maybe_exhausted())

    def choice(self, count: int) -> int:
        """The number of one of `count` things."""
        return int(self._even(1, count)[0])

    def number(self) -> int:
        """A whole number."""
        bits = self.choice(_BITS + 1)
        found = 1 << bits >> 1
        for start in range(0, bits - 1, _CHUNK):
            found |= self.choice(1 << min(_CHUNK, bits - 1 - start)) << start
        return found

    def raw(self, count: int) -> bytes:
        """Bytes."""
        return self._even(count, 256).astype(np.uint8).tobytes()

    def floats(self, count: int) -> npt.NDArray[np.float32]:
        """Numbers of 32 bits."""
        first = self.choice(4)
        planes = np.zeros((count, 4), np.uint8)
        planes[:, first:] = self._even(count * (4 - first), 256).reshape(count, 4 - first)
        return planes.view("<f4").reshape(-1).astype(np.float32)

    def symbols(self, count: int) -> Symbols:
        """Whole numbers.

        Args:
            count: How many there are.

        Raises:
            DamagedError: They are no code.
        """
        if not count:
            return np.zeros(0, np.int64)
        how, least = self.choice(3), self.number()
        least = -(least + 1) // 2 if least % 2 else least // 2
        if how == _ONE:
            return np.full(count, least, np.int64)
        span = self.number() + 2
        if span > _SPAN:
            raise DamagedError("symbols are too far apart")
        if how == _EVEN:
            return self._even(count, span) + least
        table = self._even(span, _NEVER + 1)
        if (table == _NEVER).all():
            raise DamagedError("no symbol ever comes")
        return self._decoded(count, _model(table)) + least

    def _even(self, count: int, size: int) -> Symbols:
        if size == 1 or not count:
            return np.zeros(count, np.int64)
        return self._decoded(count, _uniform(size))

    def _decoded(self, count: int, model: Any) -> Symbols:
        try:
            found: Symbols = self._decoder.decode(model, count).astype(np.int64)
        except Exception as error:  # the coder raises AssertionError
            raise DamagedError(f"the range coder says: {error}") from error
        return found


def bits_of(symbols: npt.NDArray[Any]) -> float:
    """The bits that symbols take, within two or so.

    Args:
        symbols: What `Writer.symbols` takes.
    """
    if not symbols.size:
        return 0.0
    _, places, how, table = _described(symbols)
    head = 20.0
    if how == _ONE:
        return head
    if how == _EVEN:
        return head + float(places.size * np.log2(int(places.max()) + 1))
    return head + _bits(places, table)


def _bits(places: npt.NDArray[Any], table: npt.NDArray[Any]) -> float:
    shares = _shares(table)
    counts = np.bincount(places, minlength=len(table))
    with np.errstate(divide="ignore"):
        each = np.where(counts > 0, -np.log2(shares / shares.sum()), 0.0)
    return float((counts * each).sum() + len(table) * np.log2(_NEVER + 1))


def _described(symbols: npt.NDArray[Any]) -> tuple[int, Symbols, int, npt.NDArray[Any]]:
    """The least symbol, how far each is above it, how they are written, and their frequencies."""
    least = int(symbols.min())
    places = symbols.astype(np.int64) - least
    counts = np.bincount(places)
    if len(counts) == 1:
        return least, places, _ONE, counts
    with np.errstate(divide="ignore"):
        apart = np.rint(_STEPS * np.log2(counts.max() / counts))
    table = np.where(counts > 0, np.minimum(apart, _NEVER - 1), _NEVER).astype(np.int64)
    even = places.size * np.log2(len(counts))
    return least, places, _EVEN if even <= _bits(places, table) else _TABLE, table


def _shares(table: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Whole numbers, so that they and their sum are the same on every machine."""
    shares = _ROOTS[table % _STEPS] >> table // _STEPS
    return np.where(table < _NEVER, shares, 0).astype(np.float64)


def _model(table: npt.NDArray[Any]) -> Any:
    import constriction

    return constriction.stream.model.Categorical(_shares(table), perfect=False)


def _uniform(count: int) -> Any:
    import constriction

    return constriction.stream.model.Uniform(count)
