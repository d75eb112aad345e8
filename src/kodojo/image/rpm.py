"""The members of an RPM package: lead, signature, header, and a compressed cpio archive.

The format is described in rpm's own documentation (``docs/manual/format*.md``); cpio archives are
of the usual kind (:mod:`kodojo.image.cpio`), or of rpm's variant for large files (``07070X``), which
leaves everything but a file's number to the header. Signatures are not verified: whoever gives a
kernel to kodojo runs it inside an emulator, not on their machine.
"""

from __future__ import annotations

import stat
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from kodojo.errors import PackageError
from kodojo.image.archive import Member, Window, damaged, decompressed, exactly
from kodojo.image.bounds import LONGEST_NAME
from kodojo.image.cpio import Entry, cpio_members

__all__ = ["MAGIC", "rpm_members"]

MAGIC = b"\xed\xab\xee\xdb"

_HEADER_MAGIC = b"\x8e\xad\xe8\x01"
_MAXIMUM_HEADER = 32 << 20  # bytes; that of a kernel with 5,000 modules has about 2 MB
_MAXIMUM_TAGS = 0xFFFF  # lib/header.c: hdrchkTags

# Tags of rpm (include/rpm/rpmtag.h) that are looked at.
_FILESIZES, _FILEMODES, _FILEDEVICES, _FILEINODES = 1028, 1030, 1095, 1096
_DIRINDEXES, _BASENAMES, _DIRNAMES, _PAYLOADFORMAT, _LONGFILESIZES = 1116, 1117, 1118, 1124, 5008
_TYPES = {2: "b", 3: "H", 4: "I", 5: "Q"}  # rpmTagType of integers -> struct's letter


def rpm_members(window: Window) -> Iterator[Member]:
    """The members of the package that ``window`` covers.

    :raises PackageError: it is truncated, damaged, a source package, or not of a known kind.
    """
    lead = exactly(window, 96, window.name)
    if lead[:4] != MAGIC:
        raise PackageError(f"{window.name}: not an RPM package", hint="fetch it again")
    if struct.unpack_from(">H", lead, 6) == (1,):
        raise PackageError(
            f"{window.name}: a source package; it holds no kernel",
            hint="take the binary package (kernel-core)",
        )
    signature = _Header.read(window)
    exactly(window, -signature.size % 8, window.name)
    header = _Header.read(window)
    payload = (header.strings(_PAYLOADFORMAT, 1) or ["cpio"])[0]
    if payload != "cpio":
        raise PackageError(
            f"{window.name}: its payload is {payload[:40]!r}; only cpio is known",
            hint="unpack it yourself and give the directory",
        )
    large_files = lru_cache(lambda: _LargeFiles(header))  # most packages have none, and lack what they need
    yield from cpio_members(decompressed(window), window.account, lambda number: large_files().entry(number))


@dataclass(frozen=True, slots=True)
class _Header:
    """A header structure: an index of tags, and the store that they point into."""

    name: str
    most: int  # values of a tag
    index: dict[int, tuple[int, int, int]]  # tag -> type, offset, count
    store: bytes

    @classmethod
    def read(cls, window: Window) -> _Header:
        start = exactly(window, 16, window.name)
        count, size = struct.unpack_from(">II", start, 8)
        if start[:4] != _HEADER_MAGIC or count > _MAXIMUM_TAGS or 16 * count + size > _MAXIMUM_HEADER:
            raise damaged(window.name, "no RPM header where one belongs")
        index = exactly(window, 16 * count, window.name)
        entries = {tag: (kind, offset, items) for tag, kind, offset, items in struct.iter_unpack(">IIII", index)}
        return cls(window.name, window.account.limits.members, entries, exactly(window, size, window.name))

    @property
    def size(self) -> int:
        return len(self.store)

    def strings(self, tag: int, most: int | None = None) -> list[str]:
        """A string or an array of strings, the first ones if not all are wanted; empty if the tag is absent."""
        _, offset, count = self.index.get(tag, (0, 0, 0))
        count = self._reasonable(tag, count) if most is None else min(count, most)
        items = self.store[offset:].split(b"\0", count)[:count]
        if len(items) < count:
            raise self._damaged(tag)
        return [item.decode("utf-8", "surrogateescape") for item in items]

    def numbers(self, tag: int) -> tuple[int, ...]:
        """An array of integers; empty if the tag is absent."""
        if tag not in self.index:
            return ()
        kind, offset, count = self.index[tag]
        letter = _TYPES.get(kind)
        self._reasonable(tag, count)
        if letter is None or offset + count * struct.calcsize(letter) > len(self.store):
            raise self._damaged(tag)
        return struct.unpack_from(f">{count}{letter}", self.store, offset)

    def _reasonable(self, tag: int, count: int) -> int:
        if count > self.most:
            raise PackageError(
                f"{self.name}: refused: tag {tag} of its header has {count} values; no package has so many files",
                hint="fetch it again",
            )
        return count

    def _damaged(self, tag: int) -> PackageError:
        return damaged(self.name, f"tag {tag} of its header leaves it")


class _LargeFiles:
    """Entries of the large-file variant: the archive has a number, the package's header the rest."""

    def __init__(self, header: _Header) -> None:
        self._name = header.name
        self._directories = header.strings(_DIRNAMES)
        self._bases = header.strings(_BASENAMES)
        self._where = header.numbers(_DIRINDEXES)
        self._modes = header.numbers(_FILEMODES)
        self._sizes = header.numbers(_LONGFILESIZES) or header.numbers(_FILESIZES)
        count = len(self._bases)
        devices = header.numbers(_FILEDEVICES) or (0,) * count
        inodes = header.numbers(_FILEINODES) or tuple(range(count))
        if {len(self._where), len(self._modes), len(self._sizes), len(devices), len(inodes)} != {count}:
            raise damaged(self._name, "its lists of files differ in length")
        self._files = list(zip(devices, inodes, strict=True))
        self._links = Counter(self._files)
        self._seen: Counter[tuple[int, ...]] = Counter()

    def entry(self, number: int) -> Entry:
        if number >= len(self._bases) or self._where[number] >= len(self._directories):
            raise damaged(self._name, f"file {number} is not in its header")
        directory = self._directories[self._where[number]]
        # The header's paths begin at the root of the file system; those in an archive, in the package.
        name = directory.removeprefix("/") + self._bases[number]
        if len(name) > LONGEST_NAME:
            raise damaged(self._name, f"a member's name of {len(name)} bytes")
        mode, file = self._modes[number], self._files[number]
        links = self._links[file] if stat.S_ISREG(mode) else 1
        self._seen[file] += 1
        has_data = stat.S_ISLNK(mode) or (stat.S_ISREG(mode) and self._seen[file] == links)
        size = self._sizes[number] if has_data else 0
        return Entry(name, mode, size, file, links, iter(()))
