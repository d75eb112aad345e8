"""Tables in a flat kernel image, recognised by their form, for want of section headers and of symbols.

Export tables: a row of ``struct kernel_symbol`` whose second members point at names and whose names ascend, the
GPL-only ones behind the others, and the CRCs behind both (include/asm-generic/vmlinux.lds.h: RO_DATA). Types: the
header of BTF. ``CONFIG_KALLSYMS_ALL`` would tell where they are; not every kernel has it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Table", "recognised_tables"]

_BTF_MAGIC = b"\x9f\xeb\x01\x00"
_BTF_HEADER = struct.Struct("<4sIIIII")
_ENTRY_WORDS = 3  # struct kernel_symbol: value, name, namespace, each relative to itself
_FEWEST = 64
_LONGEST_NAME = 512
_NAME_START = np.zeros(256, bool)
_NAME_START[list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")] = True

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Table:
    """A section that there might have been; ``offset`` and ``size`` in bytes of the image."""

    name: str
    offset: int
    size: int


def recognised_tables(image: bytes | bytearray) -> list[Table]:
    """The export tables, their CRCs, and the types; what is not there is left out."""
    return [*_types(image), *_exports(image)]


def _types(image: bytes | bytearray) -> list[Table]:
    found = []
    at = image.find(_BTF_MAGIC)
    while at >= 0:
        if at + _BTF_HEADER.size <= len(image):
            _, length, _, types, strings, strings_size = _BTF_HEADER.unpack_from(image, at)
            size = length + strings + strings_size
            if length == _BTF_HEADER.size and types == strings and at + size <= len(image):
                found.append(Table(".BTF", at, size))
        at = image.find(_BTF_MAGIC, at + 1)
    return sorted(found, key=lambda table: -table.size)[:1]


def _exports(image: bytes | bytearray) -> list[Table]:
    words = np.frombuffer(image, "<i4", len(image) // 4)
    first, count = _longest_row(_looks_like_entry(image, words))
    if count < _FEWEST:
        return []
    names = _names(image, words, first, count)
    descents = [index for index in range(1, count) if names[index] < names[index - 1]]
    if len(descents) > 1:
        return []
    plain = descents[0] if descents else count
    start, crcs = 4 * first, 4 * (first + _ENTRY_WORDS * count)
    return [
        Table("__ksymtab", start, 12 * plain),
        Table("__ksymtab_gpl", start + 12 * plain, 12 * (count - plain)),
        Table("__kcrctab", crcs, 4 * plain),
        Table("__kcrctab_gpl", crcs + 4 * plain, 4 * (count - plain)),
    ]


def _looks_like_entry(image: bytes | bytearray, words: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """For each word, whether a ``struct kernel_symbol`` may begin there."""
    data = np.frombuffer(image, np.uint8)
    places: Offsets = 4 * np.arange(len(words) - 2, dtype=np.int64)
    names = places + 4 + words[1:-1]
    possible: npt.NDArray[np.bool_] = (names > 0) & (names < len(data)) & (words[:-2] != 0)
    names = np.where(possible, names, 1)
    # What is before a name does not matter: the linker lets one be the end of another.
    possible &= _NAME_START[data[names]]
    values = places + words[:-2]
    possible &= (values > 0) & (values < 2 * len(data))
    spaces = places + 8 + words[2:]
    named = words[2:] != 0
    possible &= ~named | ((spaces > 0) & (spaces < len(data)))
    return possible


def _longest_row(possible: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The first word and the length of the longest row of entries."""
    best = (0, 0)
    for phase in range(_ENTRY_WORDS):
        flags = np.concatenate(([False], possible[phase::_ENTRY_WORDS], [False]))
        edges = np.flatnonzero(flags[1:] != flags[:-1])
        lengths = edges[1::2] - edges[::2]
        if len(lengths) and int(lengths.max()) > best[1]:
            which = int(lengths.argmax())
            best = (phase + _ENTRY_WORDS * int(edges[2 * which]), int(lengths[which]))
    return best


def _names(image: bytes | bytearray, words: npt.NDArray[np.int32], first: int, count: int) -> list[bytes]:
    found = []
    for index in range(first, first + _ENTRY_WORDS * count, _ENTRY_WORDS):
        at = 4 * (index + 1) + int(words[index + 1])
        found.append(bytes(image[at : image.find(b"\0", at, at + _LONGEST_NAME)]))
    return found
