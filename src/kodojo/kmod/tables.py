"""Sorted tables of texts in flat arrays: what an index on disk consists of. A look-up reads a few entries only."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kodojo.errors import CorruptError, decode, encode

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Texts", "checksum", "pack", "texts"]

Arrays = Mapping[str, "npt.NDArray[Any]"]


def pack(name: str, values: Iterable[str | bytes]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a list of texts, which :func:`texts` reads."""
    entries = [encode(value) if isinstance(value, str) else value for value in values]
    starts = np.zeros(len(entries) + 1, np.uint32)
    np.cumsum([len(entry) for entry in entries], out=starts[1:], dtype=np.uint32)
    return {f"{name}.text": np.frombuffer(b"".join(entries), np.uint8), f"{name}.start": starts}


def checksum(arrays: Arrays) -> npt.NDArray[Any]:
    """CRC-32 of all arrays but ``crc`` itself."""
    crc = 0
    for name in sorted(arrays):
        if name != "crc":
            crc = zlib.crc32(np.ascontiguousarray(arrays[name]).data, zlib.crc32(name.encode(), crc))
    return np.array([crc], np.uint32)


class Texts:
    """A list of texts in two arrays."""

    def __init__(self, text: memoryview, starts: npt.NDArray[Any]) -> None:
        self._text = text
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def raw(self, at: int) -> bytes:
        return bytes(self._text[self._starts[at] : self._starts[at + 1]])

    def __getitem__(self, at: int) -> str:
        return decode(self.raw(at))

    def __iter__(self) -> Iterator[str]:
        return (self[at] for at in range(len(self)))

    def equal(self, value: bytes) -> range:
        """Where a value is in a sorted list."""
        first = self._first(value, after=False)
        return range(first, self._first(value, after=True)) if first < len(self) else range(0)

    def _first(self, value: bytes, *, after: bool) -> int:
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            entry = self.raw(middle)
            if entry < value or (after and entry == value):
                low = middle + 1
            else:
                high = middle
        return low


def texts(arrays: Arrays, name: str) -> Texts:
    """The list that :func:`pack` made.

    :raises CorruptError: the arrays are not what it made.
    """
    text, starts = arrays.get(f"{name}.text"), arrays.get(f"{name}.start")
    if text is None or starts is None or text.dtype != np.uint8 or starts.dtype != np.uint32 or not len(starts):
        raise CorruptError(f"the index has no list {name!r}")
    if int(starts[-1]) != len(text):
        raise CorruptError(f"the list {name!r} is damaged")
    return Texts(np.ascontiguousarray(text).data.cast("B"), starts)
