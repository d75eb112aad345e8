"""Tables in a flat kernel image, recognised by their form, for want of section headers and of symbols.

Export tables: a row of ``struct kernel_symbol`` whose second members point at names and whose names ascend, the
GPL-only ones behind the others, and the CRCs behind both (include/asm-generic/vmlinux.lds.h: RO_DATA). Types: the
header of BTF. ``CONFIG_KALLSYMS_ALL`` would tell where they are; not every kernel has it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kodojo.image.elf import Format

__all__ = ["Table", "recognised_tables"]

_BTF_MAGIC = b"\x9f\xeb\x01\x00"
_BTF_HEADER = struct.Struct("<4sIIIII")
_ENTRY_WORDS = 3  # struct kernel_symbol: value, name, namespace, each relative to itself
_WITH_CRCS = b" modversions "  # in the version magic (CONFIG_MODVERSIONS)
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


def recognised_tables(image: bytes | bytearray, layout: Format, link: int, *, relative: bool) -> list[Table]:
    """The export tables, their CRCs, and the types; what is not there is left out.

    :param link: the address of the image's first byte.
    :param relative: do exports have distances of 32 bits (``CONFIG_HAVE_ARCH_PREL32_RELOCATIONS``), not addresses?
    """
    types = _types(image) if layout.little else []  # BTF of the other byte order is not read
    return [*types, *_exports(image, _Entries.of(image, layout, link, relative=relative))]


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


@dataclass(frozen=True, slots=True)
class _Entries:
    """The image as words, one of which might be a member of a ``struct kernel_symbol``.

    :param targets: where in the image each word points to if it is a pointer; negative, or behind the end: nowhere.
    """

    words: npt.NDArray[np.signedinteger]
    targets: Offsets

    @classmethod
    def of(cls, image: bytes | bytearray, layout: Format, link: int, *, relative: bool) -> _Entries:
        """The words of an image."""
        width = 4 if relative else layout.word
        words = np.frombuffer(image, f"{layout.order}i{width}", len(image) // width)
        if relative:
            return cls(words, 4 * np.arange(len(words), dtype=np.int64) + words)
        addresses = words.astype(np.int64) & np.int64(layout.mask if layout.bits < 64 else -1)
        return cls(words, addresses - np.uint64(link).astype(np.int64))

    @property
    def width(self) -> int:
        """The size of a word."""
        return self.words.itemsize

    def possible(self, image: bytes | bytearray) -> npt.NDArray[np.bool_]:
        """For each word, whether an entry may begin there."""
        data = np.frombuffer(image, np.uint8)
        names = self.targets[1:-1]
        possible: npt.NDArray[np.bool_] = (names > 0) & (names < len(data)) & (self.words[:-2] != 0)
        # What is before a name does not matter: the linker lets one be the end of another.
        possible &= _NAME_START[data[np.where(possible, names, 1)]]
        values, spaces = self.targets[:-2], self.targets[2:]
        possible &= (values > 0) & (values < 2 * len(data))
        possible &= (self.words[2:] == 0) | ((spaces > 0) & (spaces < len(data)))
        return possible

    def names(self, image: bytes | bytearray, first: int, count: int) -> list[bytes]:
        """The names in a row of entries."""
        places = self.targets[first + 1 : first + _ENTRY_WORDS * count : _ENTRY_WORDS].tolist()
        return [bytes(image[at : image.find(b"\0", at, at + _LONGEST_NAME)]) for at in places]


def _exports(image: bytes | bytearray, entries: _Entries) -> list[Table]:
    first, count = _longest_row(entries.possible(image))
    if count < _FEWEST:
        return []
    names = entries.names(image, first, count)
    descents = [index for index in range(1, count) if names[index] < names[index - 1]]
    if len(descents) > 1:
        return []
    plain = descents[0] if descents else count
    size = _ENTRY_WORDS * entries.width
    start, crcs = entries.width * first, entries.width * first + size * count
    tables = [
        Table("__ksymtab", start, size * plain),
        Table("__ksymtab_gpl", start + size * plain, size * (count - plain)),
    ]
    if _WITH_CRCS not in image:
        return tables
    return [
        *tables,
        Table("__kcrctab", crcs, 4 * plain),
        Table("__kcrctab_gpl", crcs + 4 * plain, 4 * (count - plain)),
    ]


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
