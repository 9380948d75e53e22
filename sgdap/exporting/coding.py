"""Numbers in as few bytes as their frequencies allow, and back; no model is known here."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Symbols = npt.NDArray[np.uint16]

_HEAD = struct.Struct("<BHII")
"""How symbols are stored, the least one, the bytes of their frequencies, and those that follow."""

_PLAIN, _CODED = 0, 1


class DamagedError(ValueError):
    """Bytes that no encoder of ours wrote."""


def coded(symbols: npt.NDArray[np.uint16]) -> bytes:
    """Symbols by a range coder that knows how often each comes, or plainly if that is shorter.

    Range coding: Martin 1979. The coder is `constriction`'s, with probabilities of 24 bits.

    Args:
        symbols: Numbers up to 65535, in one axis.
    """
    import constriction

    small = int(symbols.max(initial=0) < 256)
    plain = symbols.astype(np.uint8 if small else "<u2").tobytes()
    plain = _HEAD.pack(_PLAIN, small, 0, len(plain)) + plain
    if not symbols.size:
        return plain
    least = int(symbols.min())
    counts = np.bincount(symbols - least)
    table = zlib.compress(counts.astype("<u4").tobytes(), 9)
    words = b""
    if len(counts) > 1:
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode((symbols - least).astype(np.int32), _model(counts))
        words = encoder.get_compressed().astype("<u4").tobytes()
    made = _HEAD.pack(_CODED, least, len(table), len(words)) + table + words
    return min(made, plain, key=len)


class Reader:
    """Reads what was written, one piece after another, and never more than there is.

    Args:
        content: The bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._content, self._at = memoryview(content), 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._content) - self._at

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            DamagedError: There are not so many.
        """
        if not 0 <= count <= self.left:
            raise DamagedError(f"{count} bytes are missing where {self.left} are left")
        self._at += count
        return bytes(self._content[self._at - count : self._at])

    def array(self, dtype: Any, count: int) -> npt.NDArray[Any]:
        """The next numbers of a dtype."""
        kind = np.dtype(dtype)
        return np.frombuffer(self.take(count * kind.itemsize), kind)

    def symbols(self, count: int) -> Symbols:
        """The next symbols that `coded` wrote.

        Args:
            count: How many there must be.

        Raises:
            DamagedError: There are not so many, or they are no code.
        """
        import constriction

        how, least, table, words = _HEAD.unpack(self.take(_HEAD.size))
        if how == _PLAIN:
            if words != count * (1 if least else 2):
                raise DamagedError(f"{words} bytes hold no {count} symbols")
            return self.array(np.uint8 if least else "<u2", count).astype(np.uint16)
        inflating = zlib.decompressobj()
        try:
            packed = inflating.decompress(self.take(table), 4 << 16)
            counts = np.frombuffer(packed, "<u4")
        except (zlib.error, ValueError) as error:
            raise DamagedError(f"frequencies can't be read: {error}") from error
        if how != _CODED or not inflating.eof or int(counts.sum(dtype=np.uint64)) != count:
            raise DamagedError(f"the frequencies are not those of {count} symbols")
        if least + len(counts) > 1 << 16 or words % 4:
            raise DamagedError("symbols have 16 bits")
        compressed = self.array("<u4", words // 4).astype(np.uint32)
        if len(counts) == 1:
            return np.full(count, least, np.uint16)
        try:
            decoder = constriction.stream.queue.RangeDecoder(compressed)
            places = decoder.decode(_model(counts), count)
        except Exception as error:  # the coder raises AssertionError
            raise DamagedError(f"the range coder says: {error}") from error
        found: Symbols = (places + least).astype(np.uint16)
        return found


def _model(counts: npt.NDArray[Any]) -> Any:
    import constriction

    shares = counts.astype(np.float64) / counts.sum(dtype=np.float64)
    return constriction.stream.model.Categorical(shares, perfect=False)
